"""Platform adapters: each translates one platform's protocol into invocations, and nothing else.

``find`` says which one is meant; only that one is imported. Adapters never import each other.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.errors import ConfigError

if TYPE_CHECKING:
    from zerowake.adapters.port import Adapter

ADAPTER = "ZEROWAKE_ADAPTER"  # names one, whatever else the environment says
# Kubernetes sets it in each container of each pod, and Cloud Run, which is none, does not; Google's
# own libraries tell Knative from Cloud Run by it (google-auth-library-nodejs#1177).
POD = "KUBERNETES_SERVICE_HOST"

# What ``run`` asks of one; ``port.Adapter`` says what each is.
_PARTS = (
    "capabilities", "configure", "many_connections", "open", "serve", "drain", "close",
    "report_error",
)  # fmt: skip


class Known(NamedTuple):
    """An adapter that ships with us: its class, and what only its platform shows, any of it.

    marks: variables. argument: what stands behind the image's command. folder: what lies in its
    containers. pod: whether they are pods of Kubernetes; None where that tells nothing.
    """

    where: str
    marks: tuple[str, ...] = ()
    argument: str = ""
    folder: str = ""
    pod: bool | None = None


# Looked through in this order: what is more special comes first.
KNOWN = {
    "lambda": Known("zerowake.adapters.aws.adapter:Lambda", ("AWS_LAMBDA_RUNTIME_API",)),
    "sagemaker": Known(
        "zerowake.adapters.sagemaker:SageMaker",
        ("SAGEMAKER_MULTI_MODEL", "SAGEMAKER_SAFE_PORT_RANGE"),
        argument="serve",
    ),
    "vertex": Known("zerowake.adapters.vertex:Vertex", ("AIP_HTTP_PORT",)),
    "azure": Known("zerowake.adapters.azure:Azure", ("FUNCTIONS_CUSTOMHANDLER_PORT",)),
    "runpod": Known("zerowake.adapters.runpod:RunPod", ("RUNPOD_WEBHOOK_GET_JOB",)),
    "runpod-http": Known("zerowake.adapters.runpod_http:RunPodHttp", ("RUNPOD_ENDPOINT_ID",)),
    "cloud-run": Known("zerowake.adapters.knative:CloudRun", ("K_SERVICE",), pod=False),
    # No variable is KServe's own, and it may run on Knative: what its storage initializer lays out.
    "kserve": Known("zerowake.adapters.kserve:KServe", folder="/mnt/models", pod=True),
    "knative": Known("zerowake.adapters.knative:Knative", ("K_SERVICE",), pod=True),
    "container": Known("zerowake.adapters.container:Container"),
}


def find(
    environ: Mapping[str, str],
    name: str | None = None,
    argument: str = "",
    root: Path = Path("/"),
) -> "type[Adapter]":
    """The adapter called ``name``, or else by ZEROWAKE_ADAPTER, or the one whose platform this is.

    name: one of ``KNOWN``, or ``package.module:Class`` of one's own. argument: what stands behind
    the command. root: of the file system. A plain HTTP container where nothing speaks for another.
    Raises ConfigError for a name that is none.
    """
    name = name or environ.get(ADAPTER) or detect(environ, argument, root)
    where = KNOWN[name].where if name in KNOWN else name
    module, colon, attribute = where.partition(":")
    try:
        if not colon:
            raise ImportError("it is none of ours, and no package.module:Class")
        found: type[Adapter] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"there is no adapter {name!r}: {error}; ours are {', '.join(KNOWN)}, and one of your own "
            "is named package.module:Class"
        ) from error
    lacking = [part for part in _PARTS if not hasattr(found, part)]
    if not isinstance(found, type) or lacking:
        what = f"lacks {', '.join(lacking)}" if isinstance(found, type) else "is no class"
        raise ConfigError(
            f"{name!r} is no adapter: it {what}; docs/adapters.md says how to write one, and ours "
            f"are {', '.join(KNOWN)}"
        )
    return found


def name_of(kind: "type[Adapter]") -> str:
    """What ``find`` finds it by."""
    where = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, known in KNOWN.items() if known.where == where), where)


def detect(environ: Mapping[str, str], argument: str = "", root: Path = Path("/")) -> str:
    """The name of the adapter whose platform has set this environment, argument or folder."""
    for name, known in KNOWN.items():
        if known.pod is not None and known.pod is not (POD in environ):
            continue
        if (
            any(mark in environ for mark in known.marks)
            or (argument and known.argument == argument)
            or (known.folder and under(root, known.folder).is_dir())
        ):
            return name
    return "container"


def under(root: Path, place: str) -> Path:
    """The absolute path ``place`` of a file system that begins at ``root``."""
    return root / place.lstrip("/")
