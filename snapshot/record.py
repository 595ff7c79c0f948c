"""The probe of the original object, twice: what it answers, and what it does to its stored runs.

Knows no file and no skeleton. Imports no torch for an object without stored runs; where there are
some, ``recorder`` sees what happens to them.
"""

import contextlib
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from zerowake.snapshot import jit
from zerowake.snapshot.errors import FreezeError

if TYPE_CHECKING:
    from zerowake.snapshot.tensors import Run

T = TypeVar("T")
_DYNAMO = "torch._dynamo.convert_frame"  # skips, from then on, what has run while it was recorded


def run_twice(
    runs: "list[Run]", wake: Callable[[], None] | None, answer: Callable[[], T]
) -> tuple[T, T]:
    """Wake the original and let it answer twice, both times from the same stored bytes.

    Afterwards each run knows its first use, and those that were written to what ``load`` had left
    there. Raises FreezeError when bytes changed that no torch operation was seen to write.
    """
    recorder = _recorder(runs)
    if wake is not None:
        with _watched(runs), recorder:
            wake()
        for run in runs:
            if run.saved is not None:
                run.awake = bytes(run.current())
    with _watched(runs), recorder:
        first = answer()
    second = _anew(runs, answer)
    if jit.INDUCTOR in sys.modules:
        # What the function compiles itself runs uncompiled while it is recorded, and rounds differently.
        first, second = second, _anew(runs, answer)
    for run in runs:
        run.put_back()
    return first, second


def _recorder(runs: "list[Run]") -> AbstractContextManager[Any]:
    """Sees what is done to ``runs``, as often as it is entered."""
    if not runs:
        return contextlib.nullcontext()
    from zerowake.snapshot.recorder import Recorder

    return Recorder(runs)


def _anew(runs: "list[Run]", answer: Callable[[], T]) -> T:
    """The answer as of a new process: from the stored bytes, with nothing compiled for other shapes yet."""
    for run in runs:
        run.put_back()
    if _DYNAMO in sys.modules:  # else it would be imported, which takes a second
        sys.modules["torch"].compiler.reset()
    return answer()


@contextlib.contextmanager
def _watched(runs: "list[Run]") -> Iterator[None]:
    """Finds the runs that change unseen. Arrays are copied, for numpy writes where no recorder
    looks; of tensors a checksum is kept."""
    copies = {id(run): bytes(run.current()) for run in runs if run.is_array}
    before = [zlib.crc32(run.current()) for run in runs]
    yield
    for run, crc in zip(runs, before, strict=True):
        if run.saved is None and zlib.crc32(run.current()) != crc:
            if id(run) not in copies:
                raise FreezeError(
                    f"{run.members[0].leaf.path} was changed by wake or predict in a way that torch "
                    "does not show (numpy view, custom operator); use torch operations, or copy it"
                )
            run.saved = copies[id(run)]
