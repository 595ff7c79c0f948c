"""What a function's own ``torch.compile`` and Triton kernels compile: kept with a form, found by instances.

Both keep what they have compiled in a folder each, under keys that stand for code, versions, device
and settings. Here the folders are named, their files listed, and put where an instance may also
write. Knows no form, and imports no torch: nothing is compiled here.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from zerowake.snapshot import publish, state
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.listed import Listed

# Imported where something is compiled by Inductor; it imports dynamo, together 1.5 s.
INDUCTOR = "torch._inductor.compile_fx"
COMPILER = "bin/g++"
_PREFIX = "zerowake-jit-"
_NAME = re.compile(r"(?!\.)[\w.+=-]{1,200}(/(?!\.)[\w.+=-]{1,200}){0,6}")  # as a form lists them
INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_FOLDERS = {INDUCTOR_CACHE: "inductor", "TRITON_CACHE_DIR": "triton"}
_FOREIGN = ("TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE_", "TRITON_")  # an instance has none

# What differs between the process that compiles and one that is to find it must not be part of a key,
# and nothing may want a compiler. The same for both, or nothing is found: by the modules that are
# asked when they are imported already, and by the variables that these read otherwise (torch 2.11).
_SETTINGS = (
    # Sizes that have varied are remembered under this name, and vary at once in the next process.
    ("TORCH_COMPILE_JOB_ID", "torch.compiler.config", "job_id", "zerowake"),
    # One that is made for each process anew, with a compiler, in a folder of all users.
    (
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS",
        "torch._inductor.config",
        "cpp_cache_precompile_headers",
        False,
    ),
    # Instances share cores: their number is set at run time, as for a form's own libraries.
    ("TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "torch._inductor.config", "cpp.dynamic_threads", True),
    # Whether libraries for this processor run has been seen on one like it (1.1 s of a first call).
    ("TORCHINDUCTOR_VEC_ISA_OK", "torch._inductor.config", "cpp.vec_isa_ok", True),
)


def environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """``environ``, with which a process finds in ``folder`` what has been compiled, and leaves more."""
    kept = {k: v for k, v in environ.items() if not k.startswith(_FOREIGN) and k != "CXX"}
    return {**kept, **_variables(folder)}


def files_in(folder: Path) -> dict[str, Path]:
    """All regular files below ``folder`` by their names in it, but for locks; {} where it is not."""
    return {
        file.relative_to(folder).as_posix(): file
        for parent, _, names in os.walk(folder)
        for name in sorted(names)
        if not (file := Path(parent, name)).is_symlink() and not name.endswith(".lock")
    }


def finish(folder: Path) -> None:
    """Leave only what is worth keeping, and a compiler's stand-in: nothing where it is nothing."""
    kept = {file for name, file in files_in(folder).items() if _NAME.fullmatch(name)}
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            if (file := Path(parent, name)) not in kept:
                file.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(parent)
    if kept and shutil.which("g++") is not None:
        file = folder / COMPILER
        file.parent.mkdir()
        file.write_text(_stand_in())


def use(files: Mapping[str, Listed], digest: str) -> None:
    """Have this process, and forks, find ``files``, by their names in ``caches``, when it compiles.

    They are copied once, below the state directory, under the form's ``digest``: a snapshot is
    immutable, and what a call of another shape makes is added to the copy, for all processes. Where
    nothing can be remembered, each has its own in a temporary folder. Raises UnusableForm when
    one does not have its digest or the system refuses something.
    """
    try:
        folder = _copied(files, digest)
    except OSError as error:
        raise UnusableForm(f"its caches cannot be copied: {error}") from error
    os.environ.update(_variables(folder))
    for _, module, setting, value in _SETTINGS:
        if (config := sys.modules.get(module)) is not None:
            *groups, name = setting.split(".")
            for group in groups:
                config = getattr(config, group)
            setattr(config, name, value)
    if shutil.which("g++") is None:
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{(folder / COMPILER).parent}"


def apart() -> None:
    """Have this process compile into a new folder, which nobody else can write to."""
    folder = Path(_temporary())
    os.environ |= {name: str(folder / place) for name, place in _FOLDERS.items()}


def _variables(folder: Path) -> dict[str, str]:
    settings = {name: str(int(v) if isinstance(v, bool) else v) for name, _, _, v in _SETTINGS}
    return {**{name: str(folder / place) for name, place in _FOLDERS.items()}, **settings}


def _copied(files: Mapping[str, Listed], digest: str) -> Path:
    try:
        home = state.state_dir() / "jit"
    except state.NoState:
        folder = Path(_temporary())
        _copy(files, folder)
        return folder
    folder = home / digest.removeprefix("sha256:")
    if folder.is_dir():
        for listed in files.values():  # or the same form would be refused here and used there
            listed.check()
    else:
        home.mkdir(mode=0o700, exist_ok=True)
        with publish.staged(home) as staging:
            _copy(files, staging)
            publish.publish(staging, folder, lambda old: True)
    return folder


def _temporary() -> str:
    """A new folder of this process; those of processes that have ended go."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")


def _copy(files: Mapping[str, Listed], folder: Path) -> None:
    for name, listed in files.items():
        publish.write_file(folder / name, listed.read())
        if name == COMPILER:
            (folder / name).chmod(0o700)


def _stand_in() -> str:
    """A script that is the compiler where there is none: Inductor asks it for its version, which is in
    the keys of what it has compiled, and has nothing compiled that it finds."""

    def said(option: str) -> str:
        run = subprocess.run(
            ["g++", option], capture_output=True, text=True, errors="replace", check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        out, err = shlex.quote(run.stdout), shlex.quote(run.stderr)
        return f"{option}) printf %s {out}; printf %s {err} >&2;;"

    none = "no C++ compiler is installed, and this was not compiled when the snapshot was"
    lines = ["#!/bin/sh", 'case "$*" in', said("--version"), said("-v")]
    return "\n".join([*lines, f"*) echo {shlex.quote(none)} >&2; exit 1;;", "esac", ""])
