"""Which stored runs are used first, and which are written into, seen below every torch operation.

By a TorchDispatchMode, so also what goes on inside a library's modules.
"""

import bisect
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zerowake.snapshot.strided import reach
from zerowake.snapshot.tensors import Run


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
