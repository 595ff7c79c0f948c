"""``zerowake.snapshot.staging`` on a fake device whose copies happen as late as they may.

``LateDevice`` moves no byte until an event forces it to: a slot refilled too early, or a consumer
that did not wait, then shows as wrong bytes and not as a rare race.
"""

import importlib
import mmap
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from zerowake.snapshot import staging
from zerowake.snapshot.code import collect, install
from zerowake.snapshot.errors import DeviceError
from zerowake.snapshot.freeze import Recipe, freeze
from zerowake.snapshot.restore import restore, wake_up
from zerowake.snapshot.staging import (
    Event,
    Ring,
    Slot,
    copy_to_device,
)
from zerowake.snapshot.store import open_snapshot

SLOT_NBYTES = 64
POISON = 0xEE


@dataclass(frozen=True)
class LateEvent:
    device: "LateDevice"
    number: int

    def synchronize(self) -> None:
        self.device.finish(self.number, "synchronize")

    def wait(self) -> None:
        self.device.finish(self.number, "wait")


class LateDevice:
    """A stream that keeps copies until event ``number`` is asked for, then does them in order."""

    def __init__(self, slots: int, eager: Callable[[], bool] = lambda: False) -> None:
        self.ring = Ring(tuple(Slot(_filled(SLOT_NBYTES)) for _ in range(slots)))
        self.eager = eager  # whether a copy happens to complete by itself, at once
        self.sent: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.waits: list[str] = []
        self.fail_at: int | None = None
        self._lock = threading.Lock()

    def start(self) -> Future[Ring]:
        started: Future[Ring] = Future()
        started.set_result(self.ring)
        return started

    def allocate(self, nbytes: int) -> torch.Tensor:
        return _filled(nbytes)

    def send(self, source: torch.Tensor, target: torch.Tensor) -> Event:
        with self._lock:
            if len(self.sent) == self.fail_at:
                raise RuntimeError("the bus fell off")
            self.sent.append((source, target))
            number = len(self.sent)
        if self.eager():
            self.finish(number, "eager")
        return LateEvent(self, number)

    def finish(self, number: int, how: str) -> None:
        with self._lock:
            self.waits.append(how)
            while self.done < number:
                source, target = self.sent[self.done]
                target.copy_(source)
                self.done += 1


def _filled(nbytes: int) -> torch.Tensor:
    return torch.full((nbytes,), POISON, dtype=torch.uint8)


def _segments(sizes: list[int], seed: int = 0) -> list[memoryview]:
    rng = random.Random(seed)
    return [memoryview(rng.randbytes(size)) for size in sizes]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("sizes", [[1000], [10, 0, 257, 64], [SLOT_NBYTES * 5], [0], []])
def test_every_byte_arrives_when_copies_are_late(sizes: list[int], slots: int) -> None:
    segments = _segments(sizes)
    arena = copy_to_device(segments, "late", LateDevice(slots))
    arena.wait()
    for index, segment in enumerate(segments):
        assert _bytes(arena.view(index, 0, segment.nbytes)) == bytes(segment)


@pytest.mark.parametrize("seed", range(10))
def test_every_byte_arrives_when_some_copies_are_late(seed: int) -> None:
    rng = random.Random(seed)
    device = LateDevice(rng.randrange(1, 6), eager=lambda: rng.random() < 0.4)
    segments = _segments([rng.randrange(3000) for _ in range(4)], seed)
    arena = copy_to_device(segments, "late", device)
    arena.wait()
    for index, segment in enumerate(segments):
        assert _bytes(arena.view(index, 0, segment.nbytes)) == bytes(segment)


def test_a_slot_that_is_refilled_early_would_be_seen() -> None:
    """The fake is adversarial enough: without the wait before a refill the bytes are wrong."""
    device = LateDevice(2)
    segments = _segments([1000])
    device.ring.slots[0].left = device.ring.slots[1].left = None
    arena = copy_to_device(segments, "late", _Forgetful(device))
    arena.wait()
    assert _bytes(arena.view(0, 0, 1000)) != bytes(segments[0])


class _Forgetful:
    """Gives events that never hold the CPU."""

    def __init__(self, device: LateDevice) -> None:
        self.device = device
        self.start = device.start
        self.allocate = device.allocate

    def send(self, source: torch.Tensor, target: torch.Tensor) -> Event:
        late = self.device.send(source, target)

        class Free:
            def synchronize(self) -> None:
                pass

            def wait(self) -> None:
                late.wait()

        return Free()


def test_bytes_are_not_there_before_the_consumer_waits() -> None:
    device = LateDevice(4)
    segments = _segments([SLOT_NBYTES * 3])
    arena = copy_to_device(segments, "late", device)
    assert device.done == 0
    assert set(_bytes(arena.memory)) == {POISON}
    arena.wait()
    assert device.done == 3
    assert "synchronize" not in device.waits  # the consumer's stream waits, no thread does
    assert _bytes(arena.memory) == bytes(segments[0])


def test_a_ring_still_in_flight_is_not_overwritten_by_the_next_model() -> None:
    device = LateDevice(3)
    first, second = _segments([150], seed=1), _segments([170], seed=2)
    arena_1 = copy_to_device(first, "late", device)
    arena_2 = copy_to_device(second, "late", device)  # nobody waited for the first
    arena_1.wait()
    arena_2.wait()
    assert _bytes(arena_1.view(0, 0, 150)) == bytes(first[0])
    assert _bytes(arena_2.view(0, 0, 170)) == bytes(second[0])


def test_two_threads_share_the_ring_one_model_at_a_time() -> None:
    device = LateDevice(2)
    models = [_segments([700, 30], seed) for seed in range(4)]
    copied: dict[int, bool] = {}

    def work(index: int) -> None:
        arena = copy_to_device(models[index], "late", device)
        arena.wait()
        views = [arena.view(n, 0, s.nbytes) for n, s in enumerate(models[index])]
        copied[index] = [_bytes(view) for view in views] == [bytes(s) for s in models[index]]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copied == dict.fromkeys(range(4), True)


def test_views_share_the_arena_and_keep_its_order() -> None:
    segments = _segments([100, 300])
    arena = copy_to_device(segments, "late", LateDevice(2))
    arena.wait()
    view = arena.view(1, 8, 16)
    assert view.dtype == torch.uint8
    assert view.untyped_storage().data_ptr() == arena.memory.untyped_storage().data_ptr()
    assert view.storage_offset() == 256 + 8
    with pytest.raises(ValueError, match="it has 100 bytes"):
        arena.view(0, 90, 11)


def test_the_mapping_may_be_closed_after_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(random.Random(0).randbytes(10_000))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    segment = memoryview(mapped)[4096:]
    arena = copy_to_device([segment], "late", LateDevice(3))
    segment.release()
    mapped.close()  # a BufferError if anything still held it
    arena.wait()
    assert _bytes(arena.memory) == path.read_bytes()[4096:]


def test_pages_are_faulted_in_only_until_the_device_is_ready() -> None:
    asked: list[bool] = []

    def until() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    staging._populate(_segments([staging.POPULATE_NBYTES * 5]), until)
    assert asked in ([False, False, True], [False])  # the second where the kernel is too old


def test_a_lane_that_fails_is_reported() -> None:
    device = LateDevice(2)
    device.fail_at = 3
    with pytest.raises(RuntimeError, match="the bus fell off"):
        copy_to_device(_segments([1000]), "late", device)
    assert not device.ring.lock.locked()


def test_report_has_injected_times() -> None:
    times = iter([10.0, 10.25, 10.75])
    device = LateDevice(2)
    arena = copy_to_device(_segments([500, 500]), "late", device, clock=lambda: next(times))
    assert arena.report.nbytes == 1000
    assert arena.report.ready_ms == 250.0
    assert arena.report.copy_ms == 500.0


_CODE = """
import torch

class Holder:
    def wake(self):
        self.seen = {name: bytes(t.view(torch.uint8).numpy()) for name, t in self.weights.items()}
"""


def test_restore_waits_for_its_arena_before_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(staging, "_backend", lambda device: LateDevice(3))
    (tmp_path / "holder_app.py").write_text(_CODE)
    code = collect(tmp_path / "holder_app.py", tmp_path)
    install(code)
    made = importlib.import_module("holder_app").Holder()
    made.weights = {name: torch.arange(n) for name, n in (("a", 40), ("b", 7), ("c", 64))}
    recipe = Recipe(
        name="holder",
        function={},
        code=code,
        make=lambda: made,
        cases=[[b"1"]],
        probe=lambda instance, items: [[b"1"] for _ in items],
        prove=lambda path: [[[b"1"]]],
    )
    snapshot = open_snapshot(freeze(recipe, tmp_path))
    found: Any = restore(snapshot, code, device="cuda").object
    wake_up(found, "holder")
    wanted = {name: _bytes(tensor) for name, tensor in made.weights.items()}
    assert found.seen == wanted
    assert {name: _bytes(tensor) for name, tensor in found.weights.items()} == wanted


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU: it can be used")
def test_a_device_that_is_not_there() -> None:
    staging.begin("cuda")  # shows nothing yet
    with pytest.raises(DeviceError, match=r"cannot be used.*--device cpu"):
        copy_to_device(_segments([100]), "cuda")
