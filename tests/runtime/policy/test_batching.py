"""Every rule and race of the queue, at times that the test chooses."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from zerowake.runtime.errors import QueueFull
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.policy.batching import HORIZON, MAX_RETRY_AFTER_S, Batcher, BatchRule, Plan

NOW_S = 1000.0
WINDOW_S = 0.005


class NoSink:
    async def item(self, chunk: bytes) -> None: ...

    def finish(self, result: bytes | None = None) -> None: ...

    def fail(self, problem: dict[str, object]) -> None: ...


def call(nbytes: int = 1, arrived_s: float = NOW_S) -> Invocation:
    return Invocation("embed", b"x" * nbytes, NoSink(), arrived_s)


def filled(rule: BatchRule, *calls: Invocation) -> Batcher:
    batcher = Batcher(rule)
    for each in calls:
        batcher.submit(each, each.arrived_s)
    return batcher


def sizes(plan: Plan) -> list[int]:
    return [len(batch) for batch in plan.batches]


# What is planned when


@dataclass(frozen=True, slots=True)
class Case:
    why: str
    arrivals_ms: tuple[float, ...]
    idle: int
    sizes: list[int]
    now_ms: float = 0.0
    wake_at_ms: float | None = None
    settled_ms: float | None = None
    settled_size: int = 8
    max_size: int = 4


CASES = [
    Case("nothing waits", (), 3, []),
    Case("idle is served at once", (0,), 1, [1]),
    Case("nothing is bound while all are busy", (0, 0, 0), 0, []),
    Case("what gathered goes together", (-9, -6, -3), 1, [3]),
    Case("one instance, one batch", (0,) * 6, 1, [4]),
    Case("as many batches as instances", (0,) * 9, 2, [4, 4]),
    Case("idle instances are not made up for", (0,) * 5, 5, [4, 1]),
    Case("batches of one", (0, 0, 0), 2, [1, 1], max_size=1),
    Case("company is expected", (0,), 1, [], settled_ms=-1, wake_at_ms=5),
    Case("the window starts at the first call", (-3, 0), 1, [], settled_ms=-4, wake_at_ms=2),
    Case("a full batch does not wait", (0,) * 4, 1, [4], settled_ms=-1),
    Case("the rest of a full batch does", (0,) * 6, 2, [4], settled_ms=-1, wake_at_ms=5),
    Case("company came late", (0,), 1, [1], settled_ms=-5),
    Case("a batch of one brings no company", (0,), 1, [1], settled_ms=-1, settled_size=1),
    Case("busy: no timer, the settle will ask", (0,), 0, [], settled_ms=-1),
    Case("waited before the settle, window over", (-8,), 1, [1], settled_ms=-1),
    Case("waited before the settle, window open", (-3,), 1, [], settled_ms=-1, wake_at_ms=2),
    Case("the decision does not age", (0,), 1, [], now_ms=4.5, settled_ms=-1, wake_at_ms=5),
    Case("batches of one have no window", (0,), 1, [1], settled_ms=-1, max_size=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_plan(case: Case) -> None:
    rule = BatchRule(max_size=case.max_size, window_s=WINDOW_S)
    batcher = filled(rule, *(call(arrived_s=NOW_S + ms / 1000) for ms in case.arrivals_ms))
    if case.settled_ms is not None:
        batcher.settle(case.settled_size, NOW_S + case.settled_ms / 1000)
    plan = batcher.plan(NOW_S + case.now_ms / 1000, case.idle)
    assert sizes(plan) == case.sizes
    assert len(batcher) == len(case.arrivals_ms) - sum(case.sizes)
    if case.wake_at_ms is None:
        assert plan.wake_at_s is None
    else:
        assert plan.wake_at_s == pytest.approx(NOW_S + case.wake_at_ms / 1000)


@pytest.mark.parametrize("arrived_s", [0.1, 1 / 3, 1e6 + 0.7, 123456.789])
def test_window_edge(arrived_s: float) -> None:
    batcher = filled(BatchRule(max_size=4, window_s=WINDOW_S), call(arrived_s=arrived_s))
    batcher.settle(2, arrived_s)
    wake_at_s = batcher.plan(arrived_s, 1).wake_at_s
    assert wake_at_s is not None
    assert sizes(batcher.plan(math.nextafter(wake_at_s, -math.inf), 1)) == []
    assert sizes(batcher.plan(wake_at_s, 1)) == [1]  # asked at that very moment: it must not spin


def test_no_window_never_waits() -> None:
    batcher = filled(BatchRule(max_size=4), call())
    batcher.settle(4, NOW_S)
    assert sizes(batcher.plan(NOW_S, 1)) == [1]


@pytest.mark.parametrize("returning", [32, 31])
def test_burst_returns_after_a_settle(returning: int) -> None:
    """32 callers get their answers at once and come back over 3 ms: again one batch, not 1 + 31."""
    batcher = Batcher(BatchRule(max_size=32, window_s=WINDOW_S))
    batcher.settle(32, NOW_S)
    for number in range(returning):
        at_s = NOW_S + number / 10_000
        assert batcher.plan(at_s, 1) == Plan((), NOW_S + WINDOW_S if number else None)
        batcher.submit(call(arrived_s=at_s), at_s)
    if returning == 31:  # one caller has left for good: the others wait out their window
        assert sizes(batcher.plan(at_s, 1)) == []
        at_s = NOW_S + WINDOW_S
    assert sizes(batcher.plan(at_s, 1)) == [returning]


def test_busy_instance_is_topped_up_until_it_is_free() -> None:
    batcher = filled(BatchRule(max_size=8), call())
    assert batcher.plan(NOW_S, 0) == Plan((), None)
    batcher.submit(call(), NOW_S + 0.010)
    batcher.settle(1, NOW_S + 0.020)
    assert sizes(batcher.plan(NOW_S + 0.020, 1)) == [2]


# Which calls travel together


def test_oldest_is_joined_by_the_nearest_in_size() -> None:
    waiting = [call(nbytes) for nbytes in (100, 900, 120, 90, 500, 880, 99)]
    batcher = filled(BatchRule(max_size=3), *waiting)
    bodies = [sorted(len(each.body) for each in batch) for batch in batcher.plan(NOW_S, 3).batches]
    assert bodies == [[90, 99, 100], [500, 880, 900], [120]]


def test_equal_sizes_go_in_order_of_arrival() -> None:
    waiting = [call(7) for _ in range(5)]
    plan = filled(BatchRule(max_size=2), *waiting).plan(NOW_S, 3)
    assert [each for batch in plan.batches for each in batch] == waiting


def test_few_calls_travel_together_whatever_their_size() -> None:
    assert sizes(filled(BatchRule(max_size=3), *map(call, (1, 900, 5))).plan(NOW_S, 3)) == [3]


def test_a_plan_looks_at_each_size_once_a_batch() -> None:
    looked = 0

    class Body(bytes):
        def __len__(self) -> int:
            nonlocal looked
            looked += 1
            return 5

    batcher = Batcher(BatchRule(max_size=32))
    for _ in range(1000):
        batcher.submit(Invocation("embed", Body(), NoSink(), NOW_S), NOW_S)
    assert sizes(batcher.plan(NOW_S, 1)) == [32]
    assert looked == HORIZON * 32


def test_starvation_bound_is_met_and_is_tight() -> None:
    """Ten calls far apart, each with young neighbours: the last one leaves in the tenth batch."""
    ahead = 9
    old = [call(1000 * (number + 1)) for number in range(ahead + 1)]
    batcher = filled(BatchRule(max_size=4), *old)
    for number in range(ahead):
        for _ in range(3):
            batcher.submit(call(1000 * (number + 1) + 1), NOW_S)
        (batch,) = batcher.plan(NOW_S, 1).batches
        assert old[number] in batch
        assert old[-1] not in batch
    (batch,) = batcher.plan(NOW_S, 1).batches
    assert old[-1] in batch


@pytest.mark.parametrize("seed", range(5))
def test_nobody_starves_in_a_random_overload(seed: int) -> None:
    """A call with n ahead of it leaves in one of the next n + 1 batches, whatever comes after."""
    draw = random.Random(seed)
    batcher = Batcher(BatchRule(max_size=8, max_queued=200))
    batches = 0
    latest: dict[Invocation, int] = {}  # the batch with which each waiting call must have left
    longest = 0
    for _ in range(1500):
        for _ in range(draw.randint(0, 18)):
            each = call(int(draw.lognormvariate(5, 1)))
            if len(batcher) < 200:
                latest[each] = batches + len(batcher) + 1
                batcher.submit(each, NOW_S)
        if latest and draw.random() < 0.2:
            left = draw.choice(list(latest))
            assert batcher.cancel(left)
            del latest[left]
        for batch in batcher.plan(NOW_S, draw.randint(0, 2)).batches:
            batches += 1
            for each in batch:
                due = latest.pop(each)
                assert batches <= due
        longest = max(longest, len(batcher))
    assert longest >= 190  # it was an overload


# Leaving and coming back


def test_cancel_of_a_waiting_call() -> None:
    first, second = call(), call()
    batcher = filled(BatchRule(max_size=4), first, second)
    assert batcher.cancel(first)
    assert not batcher.cancel(first)
    assert batcher.plan(NOW_S, 1).batches == ((second,),)


def test_cancel_of_a_planned_call_is_not_ours() -> None:
    planned = call()
    batcher = filled(BatchRule(), planned)
    batcher.plan(NOW_S, 1)
    assert not batcher.cancel(planned)


def test_cancel_moves_the_window_to_the_next_call() -> None:
    first, second = call(), call(arrived_s=NOW_S + 0.002)
    batcher = filled(BatchRule(max_size=4, window_s=WINDOW_S), first, second)
    batcher.settle(2, NOW_S)
    assert batcher.plan(NOW_S + 0.002, 1).wake_at_s == first.arrived_s + WINDOW_S
    batcher.cancel(first)
    assert batcher.plan(NOW_S + 0.002, 1).wake_at_s == second.arrived_s + WINDOW_S


def test_retry_goes_first_alone_and_in_order() -> None:
    died = [call(), call(), call()]
    batcher = filled(BatchRule(max_size=8, window_s=WINDOW_S), *died)
    batcher.plan(NOW_S, 1)
    fresh = [call(), call()]
    for each in fresh:
        batcher.submit(each, NOW_S)
    batcher.retry(died[1:])
    batcher.retry(died[:1])  # a second batch died later: it goes before
    batcher.settle(3, NOW_S)  # company is expected, but a retried call has none to wait for
    plan = batcher.plan(NOW_S, 2)
    assert plan == Plan(((died[0],), (died[1],)), None)
    assert batcher.plan(NOW_S, 2) == Plan(((died[2],),), NOW_S + WINDOW_S)
    assert batcher.plan(NOW_S + WINDOW_S, 2).batches == (tuple(fresh),)


def test_retry_passes_the_bound_of_the_queue() -> None:
    died = call()
    batcher = filled(BatchRule(max_queued=1), died)
    batcher.plan(NOW_S, 1)
    batcher.submit(call(), NOW_S)
    batcher.retry([died])
    assert len(batcher) == 2
    with pytest.raises(QueueFull):
        batcher.submit(call(), NOW_S)


def test_retry_of_a_call_whose_client_left_while_it_ran() -> None:
    gone, stays = call(), call()
    batcher = filled(BatchRule(max_size=2), gone, stays)
    batcher.plan(NOW_S, 1)
    assert not batcher.cancel(gone)
    gone.done = True
    batcher.retry([gone, stays])
    assert batcher.plan(NOW_S, 2).batches == ((stays,),)


def test_cancel_of_a_retried_call() -> None:
    died = call()
    batcher = filled(BatchRule(), died)
    batcher.plan(NOW_S, 1)
    batcher.retry([died])
    assert batcher.cancel(died)
    assert not batcher.cancel(died)
    assert batcher.plan(NOW_S, 1) == Plan((), None)


def test_retry_twice_runs_once() -> None:
    died = call()
    batcher = filled(BatchRule(), died)
    batcher.retry([died])  # still waiting: taken out of its batch
    batcher.retry([died])
    assert sizes(batcher.plan(NOW_S, 4)) == [1]


def test_all_are_taken_whatever_they_wait_for() -> None:
    calls = [call(arrived_s=NOW_S + n * WINDOW_S / 8) for n in range(4)]
    batcher = filled(BatchRule(max_size=8, window_s=WINDOW_S), *calls)
    batcher.settle(8, NOW_S)  # company is expected
    batcher.retry([repeated := call()])
    assert batcher.take_all() == [repeated, *calls]
    assert len(batcher) == 0 and batcher.take_all() == []


@pytest.mark.parametrize("seed", range(10))
def test_no_call_is_lost_or_runs_twice_at_once(seed: int) -> None:
    draw = random.Random(seed)
    now_s = NOW_S
    batcher = Batcher(BatchRule(max_size=4, window_s=WINDOW_S, max_queued=30))
    waiting: set[Invocation] = set()
    alone: set[Invocation] = set()
    running: list[tuple[Invocation, ...]] = []

    def submit() -> None:
        each = call(draw.randint(1, 99), now_s)
        try:
            batcher.submit(each, now_s)
            waiting.add(each)
        except QueueFull:
            assert len(waiting) >= 30

    def cancel() -> None:
        planned = [each for batch in running for each in batch if not each.done]
        if everyone := [*sorted(waiting, key=lambda each: each.arrived_s), *planned]:
            each = draw.choice(everyone)
            assert batcher.cancel(each) == (each in waiting)
            waiting.discard(each)
            each.done = True

    def plan() -> None:
        for batch in batcher.plan(now_s, draw.randint(0, 3)).batches:
            assert set(batch) <= waiting
            assert len(set(batch)) == len(batch) <= (1 if batch[0] in alone else 4)
            assert not any(each.done for each in batch)
            waiting.difference_update(batch)
            running.append(batch)

    def end() -> None:
        if running:
            batch = running.pop(draw.randrange(len(running)))
            batcher.settle(len(batch), now_s)
            if draw.random() < 0.5:
                batcher.retry(batch)
                back = {each for each in batch if not each.done}
                waiting.update(back)
                alone.update(back)

    actions: list[Callable[[], None]] = [submit, submit, submit, cancel, plan, end]
    for _ in range(3000):
        now_s += draw.random() / 1000
        draw.choice(actions)()
        assert len(batcher) == len(waiting)


# A full queue, and what is said about it


def full(max_queued: int = 8) -> Batcher:
    rule = BatchRule(max_size=4, max_queued=max_queued)
    return filled(rule, *(call() for _ in range(max_queued)))


@pytest.mark.parametrize(
    ("settles", "refused_at_s", "retry_after_s"),
    [
        pytest.param([], 9.0, 1, id="nothing settled yet"),
        pytest.param([(0.1, 4)], 0.1, 1, id="faster than a second"),
        pytest.param([(2.0, 4)], 2.0, 4, id="8 wait, 2 a second"),
        pytest.param([(2.0, 4), (4.0, 4)], 4.0, 4, id="8 in 4 s"),
        pytest.param([(2.0, 4)], 5.0, 10, id="a stall counts"),
        pytest.param([(90.0, 1)], 90.0, MAX_RETRY_AFTER_S, id="never over a minute"),
        pytest.param(
            [(100.0 + number, 1000 if number < 9 else 4) for number in range(40)],
            *(139.0, 2),
            id="only the last 32 settles count, the first of them as a mark in time",
        ),
    ],
)
def test_retry_after(
    settles: list[tuple[float, int]], refused_at_s: float, retry_after_s: int
) -> None:
    batcher = full()
    for at_s, size in settles:
        batcher.settle(size, NOW_S + at_s)
    with pytest.raises(QueueFull) as refused:
        batcher.submit(call(), NOW_S + refused_at_s)
    assert refused.value.retry_after_s == retry_after_s
    assert "8 calls of 'embed' wait already and its queue holds 8; repeat the call in" in str(
        refused.value
    )
    assert len(batcher) == 8


def test_quiet_time_before_a_burst_is_not_slowness() -> None:
    batcher = Batcher(BatchRule(max_size=4, max_queued=8))
    batcher.settle(4, NOW_S - 3600)
    for _ in range(8):
        batcher.submit(call(), NOW_S)
    batcher.settle(4, NOW_S + 1)
    with pytest.raises(QueueFull) as refused:
        batcher.submit(call(), NOW_S + 1)
    assert refused.value.retry_after_s == 2


def test_a_place_that_falls_free_can_be_taken() -> None:
    leaver = call()
    batcher = filled(BatchRule(max_queued=1), leaver)
    batcher.cancel(leaver)
    batcher.submit(call(), NOW_S)
    assert sizes(batcher.plan(NOW_S, 1)) == [1]
    batcher.submit(call(), NOW_S)
