"""Restoring: a snapshot's weights mapped, its objects rebuilt around them, ``wake`` called.

Does not know how ``load`` once made the object, and never runs it. Starts no threads.
"""

import contextlib
import gc
import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from zerowake.snapshot import code as code_files
from zerowake.snapshot import names
from zerowake.snapshot.code import CodeFiles
from zerowake.snapshot.errors import WakeFailed
from zerowake.snapshot.layout import TORCH_DTYPES
from zerowake.snapshot.mapping import map_file, populate
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.rebuild import Builder, import_names
from zerowake.snapshot.store import read_file

_TORCH = {stored: getattr(torch, name) for name, (_, stored) in TORCH_DTYPES.items() if stored}


@dataclass(frozen=True, slots=True)
class Restored:
    """``report``: milliseconds by phase. The object's tensors lie in ``mappings``."""

    object: Any
    report: dict[str, float]
    mappings: list[mmap.mmap] = field(repr=False)

    def populate(self) -> None:
        """Fill the page tables, so that the first run takes no faults on the weights."""
        for mapped in self.mappings:
            populate(mapped)


def restore(
    snapshot: Snapshot, code: CodeFiles, *, device: str = "cpu", wake: bool = True
) -> Restored:
    """The object that was frozen, around weights mapped private and writable: zero copy.

    ``code`` comes from ``load_code``. On another device the weights are copied there once, and
    tensors are views of that copy. Raises DamagedSnapshot, ForbiddenClass, SnapshotError when a
    library is missing, and WakeFailed around whatever the object's ``wake`` raised.
    """
    report: dict[str, float] = {}
    with _phase(report, "map"):
        segments = snapshot.manifest.segments
        mappings = [map_file(snapshot.path / s.file, s.nbytes) for s in segments]
    with _phase(report, "import"):
        code_files.install(code)
        own = names.own_modules(code.files)
        classes = import_names(snapshot.skeleton, own)
    if device == "cpu":
        memory: _Memory = _Mapped(snapshot, mappings)
    else:
        with _phase(report, "copy"):
            memory = _OnDevice(snapshot, mappings, device)
    with _phase(report, "build"), _no_collection():
        target = Builder(
            snapshot.skeleton,
            classes,
            memory.whole,
            memory.flat,
            memory.memory,
            lambda path: read_file(snapshot, path),
            torch.device(device),
        ).build()
    if wake:
        with _phase(report, "wake"):
            wake_up(target, snapshot.manifest.name)
    return Restored(target, report, mappings)


def wake_up(target: Any, name: str) -> None:
    """Call the object's ``wake``, if it has one. Raises WakeFailed around whatever that raises."""
    if not callable(getattr(target, "wake", None)):
        return
    try:
        target.wake()
    except BaseException as error:  # SystemExit must not end a process that others share
        if isinstance(error, KeyboardInterrupt):
            raise
        message = f"wake() of {name!r} failed: {type(error).__name__}: {error}"
        raise WakeFailed(message) from error


class _Memory:
    """Stored tensors by index in the table; tied ones come from one storage."""

    def __init__(self, snapshot: Snapshot, mappings: list[mmap.mmap]) -> None:
        self.tensors = snapshot.manifest.tensors
        self.mappings = mappings
        self.starts = [segment.data_offset for segment in snapshot.manifest.segments]
        self.made: dict[int, torch.Tensor] = {}

    def whole(self, index: int) -> torch.Tensor:
        entry = self.tensors[index]
        dtype = _TORCH[entry.dtype]
        if index not in self.made:
            self.made[index] = tensor = self.fresh(index, dtype)
            return tensor if len(entry.shape) == 1 else tensor.view(entry.shape)
        flat = self.flat(index)
        return flat.view(dtype).view(entry.shape)

    def flat(self, index: int) -> torch.Tensor:
        if index not in self.made:
            self.made[index] = self.fresh(index, torch.uint8)
        return self.made[index].view(-1).view(torch.uint8)

    def memory(self, index: int) -> memoryview:
        entry = self.tensors[index]
        start = self.starts[entry.segment] + entry.offset
        return memoryview(self.mappings[entry.segment])[start : start + entry.nbytes]

    def fresh(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """All elements of a stored tensor in one dimension."""
        raise NotImplementedError


class _Mapped(_Memory):
    def fresh(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        entry = self.tensors[index]
        return torch.frombuffer(
            self.mappings[entry.segment],
            dtype=dtype,
            count=entry.nbytes // dtype.itemsize,
            offset=self.starts[entry.segment] + entry.offset,
        )


class _OnDevice(_Memory):
    def __init__(self, snapshot: Snapshot, mappings: list[mmap.mmap], device: str) -> None:
        super().__init__(snapshot, mappings)
        from zerowake.snapshot.staging import copy_to_device

        data = [memoryview(m)[s:] for m, s in zip(mappings, self.starts, strict=True)]
        self.arena = copy_to_device(data, device)
        self.arena.wait()

    def fresh(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        entry = self.tensors[index]
        return self.arena.view(entry.segment, entry.offset, entry.nbytes).view(dtype)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of new objects, none of them garbage: the collector would walk all of torch."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _phase(report: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report[name] = (time.perf_counter() - start) * 1000
