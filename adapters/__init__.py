"""Platform adapters: each translates one platform's protocol into invocations, and nothing else.

``find`` says which one is meant; only that one is imported. Adapters never import each other.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.errors import ConfigError

if TYPE_CHECKING:
    from zerowake.adapters.port import Adapter

ADAPTER = "ZEROWAKE_ADAPTER"  # names one, whatever else the environment says


class Known(NamedTuple):
    """An adapter that ships with us: its class, and the variables that only its platform sets."""

    where: str
    marks: tuple[str, ...] = ()


# Looked through in this order: what is more special comes first.
KNOWN = {
    "lambda": Known("zerowake.adapters.aws.adapter:Lambda", ("AWS_LAMBDA_RUNTIME_API",)),
    "container": Known("zerowake.adapters.container:Container"),
}


def find(environ: Mapping[str, str], name: str | None = None) -> "type[Adapter]":
    """The adapter called ``name``, or else by ZEROWAKE_ADAPTER, or the one whose platform this is.

    name: one of ``KNOWN``, or ``package.module:Class`` of one's own. A plain HTTP container where
    nothing speaks for another. Raises ConfigError for a name that is none.
    """
    name = name or environ.get(ADAPTER) or detect(environ)
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
    return found


def detect(environ: Mapping[str, str]) -> str:
    """The name of the adapter whose platform has set this environment."""
    for name, known in KNOWN.items():
        if any(mark in environ for mark in known.marks):
            return name
    return "container"
