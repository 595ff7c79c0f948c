"""The probe of the original object: which stored runs it uses first, and what it writes into.

Knows no file and no skeleton. Works below every torch operation (TorchDispatchMode), so it also
sees what goes on inside a library's modules.
"""

import bisect
import contextlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zerowake.snapshot import jit
from zerowake.snapshot.errors import FreezeError
from zerowake.snapshot.strided import reach
from zerowake.snapshot.tensors import Run

T = TypeVar("T")
_DYNAMO = "torch._dynamo.convert_frame"  # skips, from then on, what has run while it was recorded


def run_twice(
    runs: list[Run], wake: Callable[[], None] | None, answer: Callable[[], T]
) -> tuple[T, T]:
    """Wake the original and let it answer twice, both times from the same stored bytes.

    Afterwards each run knows its first use, and those that were written to what ``load`` had left
    there. Raises FreezeError when bytes changed that no torch operation was seen to write.
    """
    recorder = Recorder(runs)
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


def _anew(runs: list[Run], answer: Callable[[], T]) -> T:
    """The answer as of a new process: from the stored bytes, with nothing compiled for other shapes yet."""
    for run in runs:
        run.put_back()
    if _DYNAMO in sys.modules:  # else it would be imported, which takes a second
        torch.compiler.reset()
    return answer()


@contextlib.contextmanager
def _watched(runs: list[Run]) -> Iterator[None]:
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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active: numbers runs by first use, and saves a run's bytes before an operation that,
    by its schema, writes into it."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._used = 0
        self._runs: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.start):
            self._runs.setdefault(run.device, []).append(run)
        self._starts = {device: [r.start for r in runs] for device, runs in self._runs.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        given_by_name = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        # batch normalisation writes its running statistics and its schema does not say so
        trains = given_by_name.get("training") is True
        for argument in arguments:
            given = given_by_name.get(argument.name)
            writes = argument.alias_info is not None and argument.alias_info.is_write
            writes |= trains and argument.name in ("running_mean", "running_var")
            for tensor in _tensors(given):
                for run in self._touched(tensor):
                    if run.first_use > self._used:
                        run.first_use = self._used
                        self._used += 1
                    if writes and run.saved is None:
                        run.saved = bytes(run.current())
        return func(*args, **kwargs)

    def _touched(self, tensor: torch.Tensor) -> Iterator[Run]:
        device = str(tensor.device)
        if device not in self._runs or tensor.layout != torch.strided or tensor.numel() == 0:
            return
        try:
            start = tensor.data_ptr()
        except RuntimeError:  # no storage of its own
            return
        end = start + reach(tensor.shape, tensor.stride()) * tensor.element_size()
        runs = self._runs[device]
        i = max(bisect.bisect_right(self._starts[device], start) - 1, 0)
        while i < len(runs) and runs[i].start < end:
            if runs[i].end > start:
                yield runs[i]
            i += 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
