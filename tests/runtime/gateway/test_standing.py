"""``zerowake.runtime.gateway.standing``: what failures come to, each of them said once."""

import pytest

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import (
    FunctionFailed,
    HandlerFailed,
    RemoteError,
    ZygoteLost,
    to_problem,
)
from zerowake.runtime.gateway.standing import PERMANENT, Standing
from zerowake.snapshot.errors import SnapshotError


class World:
    """A standing at a time of the test's own."""

    def __init__(self, orders: bool = True) -> None:
        self.now_s = 100.0
        self.ended = 0
        self.standing = Standing("f", lambda: self.now_s, self._end_all, orders=orders)

    def _end_all(self) -> None:
        self.ended += 1


@pytest.fixture
def world() -> World:
    return World()


def test_an_error_of_the_author_is_not_permanent() -> None:
    assert not PERMANENT & {HandlerFailed.code, FunctionFailed.code, ZygoteLost.code}


def test_a_quarantine_is_told_once_with_its_first_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    standing, error = world.standing, SnapshotError("block 0 is damaged")
    standing.quarantine(str(error))
    standing.start_failed(RemoteError(to_problem(error)))
    standing.quarantine("it is gone")
    said = "the snapshot of f is quarantined: block 0 is damaged"
    assert caplog.messages == [said]
    assert (standing.quarantined, standing.failed, standing.health.failed) == (said, said, None)
    assert world.ended == 3  # whatever has started meanwhile
    for lives in (False, True):
        assert str(standing.refusal(lives=lives)) == said


def test_a_start_that_fails_for_good_is_told_as_the_quarantine_that_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.standing.start_failed(SnapshotError("it is cut off"))
    assert caplog.messages == ["the snapshot of f is quarantined: it is cut off"]
    assert world.standing.last_failure == "it is cut off"


def test_an_error_that_many_get_is_one_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    error = FunctionFailed("no database")
    for _ in range(5):
        assert world.standing.start_failed(error) is error
    assert caplog.messages == ["f: cannot start: no database"]
    assert world.standing.failed is None and world.standing.refusal(lives=False) is None


@pytest.mark.parametrize("orders", [True, False])
def test_starts_that_keep_failing_are_a_refusal_until_one_may_be_tried(orders: bool) -> None:
    world = World(orders)
    standing = world.standing
    for _ in range(3):
        standing.start_failed(OSError(24, "Too many open files"))
    assert "the system refuses another process" in standing.last_failure
    refusal = standing.refusal(lives=False)
    assert refusal is not None and "does not run: 3 starts in a row failed" in str(refusal)
    assert refusal.retry_after_s == 30
    assert ("zerowake wake f" in str(refusal)) is orders
    assert standing.refusal(lives=True) is None
    world.now_s += 30
    assert standing.refusal(lives=False) is None and world.ended == 0


def test_what_cannot_be_forked_is_hot_or_cold(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert world.standing.allowed == set(Depth)
    for reason in ("a thread is running", "another one too"):
        world.standing.cannot_fork(reason)
    assert world.standing.allowed == {Depth.HOT, Depth.COLD}
    assert world.standing.unforkable == "a thread is running"
    assert caplog.messages == ["f: sleeps only at cold: a thread is running"]
