"""The folder that an image is built from: requirements, our wheel, bootstrap, snapshot, Dockerfile."""

import base64
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import zerowake
from zerowake.adapters.deploy.render import template
from zerowake.adapters.deploy.requirements import pinned
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import Chosen, FormName
from zerowake.snapshot.opened import Snapshot

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = ("adapters/deploy",)  # of our package: it only writes bundles
DOCKERFILES = {
    ("container", False): "docker/cpu.Dockerfile",
    ("container", True): "docker/gpu.Dockerfile",
    ("lambda", False): "docker/lambda.Dockerfile",
    ("lambda", True): "docker/lambda-gpu.Dockerfile",
}
INSIDE = "# With the weights inside (--with-snapshot): COPY snapshot /opt/zerowake/snapshot"
BOOTSTRAP = """\
#!/bin/sh
# Runs {name} on whatever platform this is. Rendered by `zerowake bundle`.
: "${{ZEROWAKE_SNAPSHOT:={where}}}" "${{ZEROWAKE_TRUST:={trust}}}"
export ZEROWAKE_SNAPSHOT ZEROWAKE_TRUST
exec python -m zerowake run "$@"
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A file or folder of a bundle, with its bytes on disk, or those of what it stands for here."""

    name: str
    nbytes: int
    about: str = ""


def bundle(
    snapshot: Snapshot,
    form: Chosen,
    out: Path,
    *,
    platform: str,
    url: str,
    trust: tuple[str, ...],
    gpu: bool = False,
    inside: bool = False,
    extra: tuple[str, ...] = (),
    declared: bool = False,
) -> list[Part]:
    """Write the bundle of ``snapshot`` into the new or empty folder ``out``; what is in it.

    platform: "container" or "lambda". url: where the snapshot is; "" puts it into the folder. inside:
    and from there into the image. trust: digests whose code may run. extra, declared: as ``pinned`` has
    them. Raises ConfigError when the folder holds something, or a package is
    not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name a new folder")
    http = platform == "container"
    every = pinned(snapshot, form, http=http, url=url, extra=extra, declared=True)
    lines = every if declared else pinned(snapshot, form, http=http, url=url, extra=extra)
    out.mkdir(parents=True, exist_ok=True)
    (out / "requirements.txt").write_text(_requirements(lines, gpu))
    only_libtorch = form.name is FormName.TORCH_FREE
    installed = _installed_nbytes(lines, only_libtorch)
    about = f"{len(lines)} packages, in the image"
    if left_out := [line.partition("==")[0] for line in every if line not in lines]:
        about += f"; not {', '.join(left_out)}, which nothing uses there (--declared)"
    parts = [Part("requirements.txt", installed, about)]
    if gpu:
        (out / "torch.txt").write_text(f"torch=={metadata.version('torch').partition('+')[0]}\n")
    wheel = out / f"zerowake-{zerowake.__version__}-py3-none-any.whl"
    write_wheel(wheel)
    parts.append(Part(wheel.name, wheel.stat().st_size))
    where = url or '$(dirname -- "$(readlink -f -- "$0")")/snapshot'  # Lambda's is a link
    name = snapshot.manifest.name
    bootstrap = out / "bootstrap"
    bootstrap.write_text(BOOTSTRAP.format(name=name, where=where, trust=",".join(trust)))
    bootstrap.chmod(0o755)
    dockerfile = template(DOCKERFILES[platform, gpu])
    python = f"ARG PYTHON={sys.version_info.major}.{sys.version_info.minor}"
    dockerfile = dockerfile.replace("ARG PYTHON=3.11", python)
    if only_libtorch:
        dockerfile = dockerfile.replace("ARG LIBTORCH_ONLY=", "ARG LIBTORCH_ONLY=1")
    # What is not named here stays out of the build, the weights above all.
    wanted = ["*", "!bootstrap", "!*.txt", "!*.whl"]
    if inside:
        wanted.append("!snapshot")
        dockerfile = dockerfile.replace(INSIDE, INSIDE.partition(": ")[2])
    (out / "Dockerfile").write_text(dockerfile)
    (out / ".dockerignore").write_text("".join(f"{line}\n" for line in wanted))
    if not url:
        shutil.copytree(snapshot.path, out / "snapshot")
        for path in (out / "snapshot").rglob("*"):  # a container runs as somebody else
            path.chmod(0o755 if path.is_dir() else 0o644)
        about = "in the image" if inside else "to be mounted, or uploaded"
        parts.append(Part("snapshot", _nbytes(out / "snapshot"), about))
    return parts


def write_wheel(path: Path) -> None:
    """Our installed package as a wheel, without what only makes bundles.

    https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    info = f"zerowake-{zerowake.__version__}.dist-info"
    files = dict(_own_files())
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: zerowake\nVersion: {zerowake.__version__}\n".encode()
    )
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: zerowake\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nzerowake = zerowake.__main__:main\n"
    record = "".join(f"{name},{_record(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            # The same bytes from the same files: with a time in it each build would be another layer.
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)


def _own_files() -> Iterator[tuple[str, bytes]]:
    root = Path(zerowake.__path__[0])
    todo = [root]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            name = path.relative_to(root).as_posix()
            if path.name == "__pycache__" or name in LEFT_OUT:
                continue
            if path.is_dir():
                todo.append(path)
            else:
                yield f"zerowake/{name}", path.read_bytes()


def _record(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def _requirements(lines: list[str], gpu: bool) -> str:
    head = "# Rendered by `zerowake bundle`; complete, to be installed with --no-deps.\n"
    if gpu:  # the CUDA build and what it needs come first, from torch.txt
        lines = [line for line in lines if not line.startswith(("torch==", "nvidia-", "triton=="))]
    elif any(line.startswith("torch==") and line.endswith("+cpu") for line in lines):
        head += f"--extra-index-url {CPU_INDEX}\n"
    return head + "".join(f"{line}\n" for line in lines)


def _installed_nbytes(lines: list[str], only_libtorch: bool) -> int:
    """What these packages take here, once installed; of torch perhaps only its libraries."""
    total = 0
    for name in (line.partition("==")[0] for line in lines):
        for file in metadata.files(name) or ():
            left_out = ("torch/include", "torch/share", *(("torch/",) if only_libtorch else ()))
            path = file.as_posix()
            if path.startswith(left_out) and not path.startswith("torch/lib/"):
                continue
            total += 0 if path.endswith(".pyc") else file.size or 0
    return total


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
