"""A function sinks step by step, at times that the test chooses."""

from dataclasses import dataclass

import pytest

from zerowake.runtime.depth import Depth
from zerowake.runtime.policy.sleep import next_depth

HOT, PREWARMED, ZYGOTE, COLD = Depth
ALL = frozenset(Depth)
IDLE_S = 10.0
IDLE_SINCE_S = 1000.0


@dataclass(frozen=True, slots=True)
class Case:
    why: str
    depth: Depth
    after_s: float
    want: Depth
    again_after_s: float | None
    floor: Depth = COLD
    allowed: frozenset[Depth] = ALL
    minimum: int = 0
    ready_once: bool = True


CASES = [
    Case("just idle", HOT, 0, HOT, 10),
    Case("nearly due", HOT, 9.999, HOT, 10),
    Case("first step", HOT, 10, PREWARMED, 20),
    Case("second step", PREWARMED, 20, ZYGOTE, 30),
    Case("last step", ZYGOTE, 30, COLD, None),
    Case("at rest", COLD, 99, COLD, None),
    Case("asked late: all that is due", HOT, 25, ZYGOTE, 30),
    Case("asked very late", HOT, 999, COLD, None),
    Case("the floor", PREWARMED, 99, PREWARMED, None, floor=PREWARMED),
    Case("down to the floor", HOT, 99, ZYGOTE, None, floor=ZYGOTE),
    Case("never asleep", HOT, 99, HOT, None, floor=HOT),
    Case("a minimum of instances", HOT, 99, HOT, None, minimum=1),
    Case("never ready: still starting", COLD, 99, COLD, None, ready_once=False),
    Case("never ready: not sunk", HOT, 99, HOT, None, ready_once=False),
    Case("sent deeper by command", ZYGOTE, 5, ZYGOTE, 30),
    Case("sent below the floor", COLD, 5, COLD, None, floor=PREWARMED),
    Case("cannot be forked: waits", HOT, 9, HOT, 10, allowed=frozenset({HOT, COLD})),
    Case("cannot be forked", HOT, 10, COLD, None, allowed=frozenset({HOT, COLD})),
    Case(
        "cannot be forked, cold too deep",
        *(HOT, 99, HOT, None),
        floor=PREWARMED,
        allowed=frozenset({HOT, COLD}),
    ),
    Case("one depth missing", HOT, 15, ZYGOTE, 20, allowed=ALL - {PREWARMED}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_next_depth(case: Case) -> None:
    depth, again_at_s = next_depth(
        case.depth,
        IDLE_SINCE_S if case.ready_once else None,
        IDLE_SINCE_S + case.after_s,
        IDLE_S,
        case.floor,
        case.allowed,
        case.minimum,
    )
    assert depth is case.want
    wanted_s = None if case.again_after_s is None else IDLE_SINCE_S + case.again_after_s
    assert again_at_s == wanted_s


@pytest.mark.parametrize("idle_s", [0.1, 1 / 3, 60.0])
def test_asking_when_told_walks_down_one_step_at_a_time(idle_s: float) -> None:
    depth, at_s = HOT, IDLE_SINCE_S
    seen = [depth]
    for _ in range(3):
        depth, again_at_s = next_depth(depth, IDLE_SINCE_S, at_s, idle_s, COLD, ALL, 0)
        assert depth is seen[-1]
        assert again_at_s is not None
        at_s = again_at_s
        depth, _ = next_depth(depth, IDLE_SINCE_S, at_s, idle_s, COLD, ALL, 0)
        seen.append(depth)
    assert seen == [HOT, PREWARMED, ZYGOTE, COLD]
    assert next_depth(depth, IDLE_SINCE_S, at_s, idle_s, COLD, ALL, 0) == (COLD, None)
