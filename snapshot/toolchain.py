"""What Inductor finds out about the C++ compiler, and its precompiled headers, kept for later compiles.

Trying which vector instructions can be used takes it 9 s (ten libraries), each precompiled header 5 s.
It keeps headers below /tmp, where another user could put them first, and where one that was broken off
in the making fails whatever is compiled after it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from zerowake.snapshot import publish, state

_MOST_HEADERS = 4  # of 150 MB; one form uses two of them, or four
# What torch 2.11 to 2.13 have; with another one, each form begins anew.
_OF_CODECACHE = ("_HEADER_DIR", "_HEADER_LOCK_DIR", "_precompile_header.cache_clear")
_OF_ISA = (
    "VecISA.check_build",
    "VecISA.build_arch_flags",
    "_get_isa_dry_compile_fingerprint",
)


def home() -> Path:
    """The folder of this user. Raises SnapshotError, NoState, as ``state_dir``."""
    return state.state_dir() / "compiler"


@contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Meanwhile Inductor finds in ``folder`` what has been tried and precompiled, and more is left there.

    folder: made if need be; nobody else may write to it. Headers are left only if the body does not
    raise. Instructions that could not be used are tried again each time: there may have been no memory.
    """
    from torch._inductor import codecache, cpu_vec_isa

    if not _has(codecache, _OF_CODECACHE) or not _has(cpu_vec_isa, _OF_ISA):
        yield
        return
    check = cpu_vec_isa.VecISA.check_build

    def check_build(isa: "cpu_vec_isa.VecISA", code: str) -> bool:
        flags = isa.build_arch_flags()  # torch's and the compiler's version go with them
        seen_with = f"{cpu_vec_isa._get_isa_dry_compile_fingerprint(flags)}\n{code}"
        seen = folder / hashlib.sha256(seen_with.encode()).hexdigest()
        if works := seen.exists() or check(isa, code):
            seen.touch()
        return works

    with (
        publish.staged(folder) as headers,
        patch.object(cpu_vec_isa.VecISA, "check_build", check_build),
        patch.object(codecache, "_HEADER_DIR", str(headers)),
        patch.object(codecache, "_HEADER_LOCK_DIR", str(headers / "locks")),
    ):
        kept = {file.name: file for file in folder.glob("*.gch")}
        for name, file in kept.items():
            with contextlib.suppress(OSError):  # another process has just removed it
                os.link(file, headers / name)
        try:
            yield
        finally:
            codecache._precompile_header.cache_clear()  # of where they are
        for made in headers.glob("*.gch"):
            if made.name not in kept:
                publish.sync(made)
                made.replace(folder / made.name)
    with contextlib.suppress(OSError):  # another process was first
        by_age = sorted(folder.glob("*.gch"), key=lambda file: file.stat().st_mtime)
        for old in by_age[:-_MOST_HEADERS]:
            old.unlink()


def _has(module: ModuleType, names: tuple[str, ...]) -> bool:
    try:
        attrgetter(*names)(module)
    except AttributeError:
        return False
    return True
