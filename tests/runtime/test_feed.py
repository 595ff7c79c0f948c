"""``zerowake.runtime.feed``: slots that a test writes into, and the frames that the gateway would get."""

import socket
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from zerowake.runtime.feed import Feed
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.policy.batching import BatchRule
from zerowake.runtime.wire import Connection, Frame


class Line:
    """A ``Slot`` whose calls are lines; the one that says "else" is not for the function."""

    made: ClassVar[dict[int, "Line"]] = {}

    def __init__(self, number: int, descriptor: int, **told: Any) -> None:
        self.number, self.told = number, told
        self.polls_on = self.polled = True
        self.event = self.unacknowledged = b""
        self.sent_nbytes, self.read_nbytes = 7 * number, 0
        self.refused: dict[str, Any] | None = None
        self.over = self.closed = False
        self._socket = socket.socket(fileno=descriptor)
        Line.made[number] = self

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Invocation | None:
        line, end, _ = self._socket.recv(1 << 16).partition(b"\n")
        self.over = not end or line == b"else"
        if self.over:
            return None
        self.event, self.polled = line, False
        return Invocation("f", self.event, self, time.monotonic(), self.event.decode())

    async def item(self, chunk: bytes) -> None: ...

    def finish(self, result: bytes | None = None) -> None:
        self.event, self.polled = b"", self.polls_on
        self.over = not self.polls_on

    def fail(self, problem: dict[str, object]) -> None:
        self.finish()

    def was_told(self) -> None: ...

    def close(self) -> None:
        self._socket.close()


class World:
    """A feed with ``count`` slots; ``platform[number]`` is the other end of each."""

    def __init__(self, rule: BatchRule, count: int) -> None:
        ours, theirs = socket.socketpair()
        self.gateway = Connection(theirs)
        self._instance = Connection(ours)
        self.feed = Feed(self._instance, rule)
        self.platform: dict[int, socket.socket] = {}
        for number in range(1, count + 1):
            self.lend(number)

    def lend(self, number: int) -> None:
        ours, self.platform[number] = socket.socketpair()
        self.feed.lend(number, ours.detach(), f"{__name__}:Line", {"a": 1})

    def bring(self, **lines: str) -> None:
        for name, line in lines.items():
            self.platform[int(name[1:])].sendall(line.encode() + b"\n")

    def batch(self) -> list[str]:
        return [call.id for call in self.feed.next()]

    def told(self) -> Frame:
        frame = self.gateway.receive()
        assert frame is not None
        return frame

    def close(self) -> None:
        for end in (*self.platform.values(), self.gateway.socket, self._instance.socket):
            end.close()


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Line.__module__])
    rule, count = getattr(request, "param", (BatchRule(), 1))
    made = World(rule, count)
    yield made
    made.close()


def answer(world: World) -> list[str]:
    """Run the next batch, telling as an instance does."""
    calls = world.feed.next()
    slots: list[Any] = [call.sink for call in calls]
    world.feed.tell(slots)
    for call in calls:
        call.finish(b"1")
    world.feed.answered(calls)
    return [call.id for call in calls]


def test_a_call_is_told_with_what_it_is_when_it_runs(world: World) -> None:
    world.bring(s1="a")
    assert answer(world) == ["a"]
    frame = world.told()
    assert frame.header == {
        "kind": "fed",
        "slots": [1],
        "sent": [7],
        "runs": [1],
        "sizes": [1],
    }
    assert frame.parts() == [b"a"]
    assert Line.made[1].told == {"a": 1}
    world.bring(s1="b")
    assert answer(world) == ["b"]


@pytest.mark.parametrize("world", [(BatchRule(max_size=2), 3)], indirect=True)
def test_what_waits_for_the_next_batch_is_told_with_this_one(world: World) -> None:
    world.bring(s1="a", s2="b", s3="c")
    first, second = answer(world), answer(world)
    assert len(first) == 2 and sorted(first + second) == ["a", "b", "c"]
    frames = [world.told(), world.told()]
    assert sorted(frames[0].header["slots"]) == [1, 2, 3] and len(frames[0].header["runs"]) == 2
    assert frames[1].header["slots"] == [] and len(frames[1].header["runs"]) == 1


@pytest.mark.parametrize("world", [(BatchRule(max_size=8, window_s=0.05), 2)], indirect=True)
def test_who_waits_for_company_is_told_before(world: World) -> None:
    world.bring(s1="a", s2="b")
    assert sorted(answer(world)) == ["a", "b"]
    assert world.told().header["runs"]
    world.bring(s1="c")  # after a batch of two it pays to wait
    assert answer(world) == ["c"]
    assert [world.told().header["runs"], world.told().header["runs"]] == [[], [1]]


def test_the_gateway_comes_first(world: World) -> None:
    world.bring(s1="a")
    world.gateway.send({"kind": "hook"})
    assert world.feed.next() == ()
    assert world.told().header == {
        "kind": "fed",
        "slots": [1],
        "sent": [7],
        "runs": [],
        "sizes": [1],
    }
    frame = world._instance.receive()
    assert frame is not None and frame.kind == "hook"
    assert world.batch() == ["a"]


def test_what_is_not_for_the_function_goes_back(world: World) -> None:
    world.lend(2)
    world.bring(s1="else")
    world.bring(s2="a")
    assert world.batch() == ["a"]
    frame = world.told()
    assert frame.header == {"kind": "handed", "slot": 1, "polled": True, "sizes": [0]}
    assert len(world.feed) == 1


def test_a_connection_that_ends_goes_back(world: World) -> None:
    world.platform[1].close()
    assert world.feed.next() == ()
    assert world.told().header["polled"] is True
    assert not world.feed


def test_a_recall_gives_back_what_is_idle_and_the_others_once_they_are_answered(
    world: World,
) -> None:
    world.lend(2)
    world.bring(s1="a")
    calls = world.feed.next()
    world.feed.recall()
    assert world.told().header == {"kind": "recalled", "slots": [1, 2]}
    assert world.told().header["slot"] == 2
    slots: list[Any] = [call.sink for call in calls]
    world.feed.tell(slots)
    calls[0].finish(b"1")
    world.feed.answered(calls)
    assert world.told().header["kind"] == "fed"
    assert world.told().header == {"kind": "handed", "slot": 1, "polled": False, "sizes": [0]}
    assert not world.feed


def test_what_was_refused_is_told_once(world: World) -> None:
    Line.made[1].refused = {"status": 413, "said": "too large"}
    world.bring(s1="a")
    assert world.batch() == ["a"]
    assert world.told().header == {"kind": "refused", "slot": 1, "status": 413, "said": "too large"}
    assert Line.made[1].refused is None
