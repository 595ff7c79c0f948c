"""Mapped bytes to a device: one arena per model, filled through a small ring of pinned buffers.

Does not know what the bytes are, nor where they are mapped from: it takes memoryviews and gives
views of device memory. How it runs::

    mapping --memcpy--> ring slot --DMA on the copy stream--> arena --event--> the consumer's stream

* A ring slot has a thread of its own (a lane): wait until the slot's last copy has left it, fill
  it, send it. One memcpy moves about 10 GB/s and the bus takes 55, so lanes work side by side, and
  a lane waits for its own slot only. memcpy through numpy releases the GIL.
* Pinning costs 1.7 to 2.8 GB/s, more than any other stage, so the ring is small, is made once per
  process, and whole models are never pinned. Its slots are powers of two in size because torch's
  pinned allocator rounds up to one.
* Making the CUDA context and the ring takes 100 to 300 ms: a thread does it while the caller
  faults the pages in. ``begin`` starts that thread earlier, for a caller with imports to do.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np
import torch

from zerowake.snapshot.errors import DeviceError
from zerowake.snapshot.mapping import MADV_POPULATE_READ
from zerowake.snapshot.plan import Copy, CopyPlan, plan_copies

RING_SLOT_NBYTES = 8 << 20
RING_SLOTS = 8
POPULATE_NBYTES = 2 << 20  # one block holds mmap's lock, which making a context takes often


class Event(Protocol):
    """A point in the device's work, as ``torch.cuda.Event`` has it."""

    def synchronize(self) -> None:
        """Holds this thread until the point is reached."""
        ...

    def wait(self) -> None:
        """Holds the current stream's later work until the point is reached; returns at once."""
        ...


@dataclass(slots=True)
class Slot:
    """One pinned buffer (uint8) and the event after the last copy out of it."""

    buffer: torch.Tensor
    left: Event | None = None


@dataclass(frozen=True, slots=True)
class Ring:
    """The process's pinned buffers, all of one size, and the ms that they and the context took."""

    slots: tuple[Slot, ...]
    context_ms: float = 0.0
    ring_ms: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # one model at a time


class Backend(Protocol):
    """What staging needs from a device."""

    def start(self) -> Future[Ring]:
        """Makes the context and the ring beside the caller. Every call gives the same ring."""
        ...

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Uninitialised device memory (uint8) that ``send`` may write into from now on."""
        ...

    def send(self, source: torch.Tensor, target: torch.Tensor) -> Event:
        """Begins to copy pinned ``source`` to device ``target``, in the order of the calls.

        The event is reached when ``target`` holds the bytes and ``source`` may be overwritten.
        """
        ...


class CudaBackend:
    """A CUDA device through plain torch. ``device``: "cuda" (the first one) or "cuda:N"."""

    def __init__(
        self, device: str, slot_nbytes: int = RING_SLOT_NBYTES, slots: int = RING_SLOTS
    ) -> None:
        self._device = torch.device("cuda", torch.device(device).index or 0)
        self._slot_nbytes, self._slots = slot_nbytes, slots
        self._starting = threading.Lock()
        self._started: Future[Ring] | None = None
        self._stream: torch.cuda.Stream | None = None

    def start(self) -> Future[Ring]:
        with self._starting:
            if self._started is None:
                executor = ThreadPoolExecutor(1, thread_name_prefix="zerowake-cuda")
                self._started = executor.submit(self._start)
                executor.shutdown(wait=False)  # the thread ends with its one task
            return self._started

    def _start(self) -> Ring:
        began_s = time.perf_counter()
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            with torch.cuda.device(self._device):
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._stream.synchronize()
                context_s = time.perf_counter()
                buffers = [
                    torch.empty(self._slot_nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
                    for _ in range(self._slots)
                ]
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise DeviceError(
                f"{self._device} cannot be used: {error}; check nvidia-smi, or use --device cpu"
            ) from error
        return Ring(
            slots=tuple(Slot(buffer) for buffer in buffers),
            context_ms=(context_s - began_s) * 1e3,
            ring_ms=(time.perf_counter() - context_s) * 1e3,
        )

    def allocate(self, nbytes: int) -> torch.Tensor:
        stream = self._copy_stream()
        try:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            free_nbytes, total_nbytes = torch.cuda.mem_get_info(self._device)
            raise DeviceError(
                f"the weights need {nbytes} bytes on {self._device}, which has {free_nbytes} of "
                f"{total_nbytes} bytes free; put another function to sleep or use a larger device"
            ) from error
        # The allocator may hand out memory that earlier work of the current stream still reads, and
        # may hand this on while copies are in flight: neither is visible to it without these two.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        memory.record_stream(stream)
        return memory

    def send(self, source: torch.Tensor, target: torch.Tensor) -> Event:
        stream = self._copy_stream()
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            # blocking: a lane that waits sleeps, and leaves its core to a lane that copies
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(stream)
        return event

    def _copy_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            raise RuntimeError("the backend has not started; wait for start() first")
        return self._stream


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Where the time went.

    context_ms and ring_ms are paid once per process and run beside other work; ready_ms is how long
    this call waited for both (faulting pages in meanwhile). copy_ms ends when the last piece has
    been handed to the copy stream: up to one ring of bytes is then still in flight.
    """

    nbytes: int
    context_ms: float
    ring_ms: float
    ready_ms: float
    copy_ms: float


@dataclass(frozen=True, slots=True)
class Arena:
    """A model's weights on a device: one tensor, and views of it.

    Views may be made at once; work on them may be enqueued once ``wait`` was called on its stream.
    """

    memory: torch.Tensor
    report: CopyReport
    _plan: CopyPlan
    _landed: tuple[Event, ...]

    def view(self, segment: int, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes ``offset .. offset + nbytes`` of ``segment`` (uint8, shares the arena's memory).

        Raises ValueError when the range leaves the segment.
        """
        start = self._plan.locate(segment, offset, nbytes)
        return self.memory[start : start + nbytes]

    def wait(self) -> None:
        """Makes the device's current stream wait for every byte. Does not hold this thread."""
        with torch.cuda.device_of(self.memory):  # type: ignore[no-untyped-call]
            for event in self._landed:
                event.wait()


@cache
def _backend(device: str) -> CudaBackend:
    return CudaBackend(device)


def begin(device: str) -> Future[Ring]:
    """Starts to make ``device``'s context and ring in the background; nobody need wait for it."""
    return _backend(device).start()


def copy_to_device(
    segments: Sequence[memoryview],
    device: str,
    backend: Backend | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Arena:
    """Copies ``segments`` into one new arena on ``device`` ("cuda" or "cuda:N").

    When this returns every byte has been read, so the mappings may be closed; the last copies may
    still be in flight: call ``Arena.wait`` before enqueueing work that reads the weights.
    Raises DeviceError when the device cannot be used or is too small.
    """
    if backend is None:
        backend = _backend(device)
    began_s = clock()
    starting = backend.start()
    _populate(segments, until=starting.done)
    ring = starting.result()
    with ring.lock:
        ready_s = clock()
        plan = plan_copies(
            [segment.nbytes for segment in segments], ring.slots[0].buffer.nbytes, len(ring.slots)
        )
        memory = backend.allocate(plan.arena_nbytes)
        landed = _run_lanes(backend, ring, plan, segments, memory)
        copied_s = clock()
    report = CopyReport(
        nbytes=sum(plan.segment_nbytes),
        context_ms=ring.context_ms,
        ring_ms=ring.ring_ms,
        ready_ms=(ready_s - began_s) * 1e3,
        copy_ms=(copied_s - ready_s) * 1e3,
    )
    return Arena(memory, report, plan, landed)


def _run_lanes(
    backend: Backend,
    ring: Ring,
    plan: CopyPlan,
    segments: Sequence[memoryview],
    memory: torch.Tensor,
) -> tuple[Event, ...]:
    """Carries the plan out, one thread a slot; the last event of each lane."""

    def lane(slot: Slot, copies: tuple[Copy, ...]) -> Event | None:
        for copy in copies:
            if slot.left is not None:
                slot.left.synchronize()  # also across calls: the ring outlives them
            source = np.frombuffer(
                segments[copy.segment], np.uint8, copy.nbytes, copy.source_offset
            )
            filled = slot.buffer[: copy.nbytes]
            np.copyto(filled.numpy(), source)
            target = memory[copy.arena_offset : copy.arena_offset + copy.nbytes]
            slot.left = backend.send(filled, target)
        return slot.left

    lanes = [(slot, plan.through(index)) for index, slot in enumerate(ring.slots)]
    busy = [(slot, copies) for slot, copies in lanes if copies]
    if not busy:
        return ()
    with ThreadPoolExecutor(len(busy), thread_name_prefix="zerowake-lane") as executor:
        futures = [executor.submit(lane, slot, copies) for slot, copies in busy]
    events = [future.result() for future in futures]
    return tuple(event for event in events if event is not None)


def _populate(segments: Sequence[memoryview], until: Callable[[], bool]) -> None:
    """Maps the segments' pages in, block by block, as long as there is nothing better to do.

    Only a head start: what is left is faulted in by the lanes. A kernel before 5.14 refuses.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page_nbytes = os.sysconf("SC_PAGE_SIZE")
    for address, nbytes in _blocks(segments):
        start = address - address % page_nbytes
        if until() or madvise(start, address + nbytes - start, MADV_POPULATE_READ) != 0:
            return


def _blocks(segments: Sequence[memoryview]) -> Iterator[tuple[int, int]]:
    """Address and size of pieces of ``segments``, in order."""
    for segment in segments:
        if segment.nbytes:
            address = int(np.frombuffer(segment, np.uint8).ctypes.data)
            for offset in range(0, segment.nbytes, POPULATE_NBYTES):
                yield address + offset, min(POPULATE_NBYTES, segment.nbytes - offset)
