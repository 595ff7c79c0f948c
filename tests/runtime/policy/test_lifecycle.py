"""Back-off, failure and trial starts, at times that the test chooses."""

from collections.abc import Callable

import pytest

from zerowake.runtime.policy.lifecycle import (
    FAILED_DEATHS,
    FAILED_STARTS,
    FIRST_COOL_DOWN_S,
    MAX_COOL_DOWN_S,
    MAX_DELAY_S,
    Health,
    instances_wanted,
    start_delay_s,
)

NOW_S = 1000.0


def failed_health(now_s: float = NOW_S) -> Health:
    health = Health()
    for _ in range(FAILED_STARTS):
        health.start_failed(now_s, "no such file")
    return health


def test_a_new_function_may_start_at_once() -> None:
    health = Health()
    assert health.may_start(0.0)
    assert health.next_start_s == 0.0
    assert health.failed is None


@pytest.mark.parametrize(
    ("failures", "delay_s"),
    [(0, 0), (1, 0), (2, 0.1), (3, 0.2), (4, 0.4), (7, 3.2), (8, 5), (9, 5), (500, MAX_DELAY_S)],
)
def test_start_delay(failures: int, delay_s: float) -> None:
    assert start_delay_s(failures) == pytest.approx(delay_s)


def test_deaths_back_off_and_then_fail() -> None:
    health = Health()
    now_s = NOW_S
    delays_s = []
    for _ in range(FAILED_DEATHS - 1):
        health.started_well()
        health.died(now_s, "killed by signal 9")
        delays_s.append(health.next_start_s - now_s)
        assert health.failed is None
        if health.next_start_s > now_s:
            assert not health.may_start(now_s)
        now_s = health.next_start_s
        assert health.may_start(now_s)
    assert delays_s == pytest.approx([0, 0.1, 0.2, 0.4])
    health.died(now_s, "killed by signal 9")
    assert health.failed == "5 instances in a row died, the last one: killed by signal 9"
    assert health.next_start_s == now_s + FIRST_COOL_DOWN_S


def test_failed_starts_fail_the_function_with_the_last_reason() -> None:
    health = Health()
    health.start_failed(NOW_S, "disk full")
    assert health.may_start(NOW_S)
    health.start_failed(NOW_S, "disk full")
    assert not health.may_start(NOW_S)
    assert health.failed is None
    health.start_failed(NOW_S, "no such file")
    assert health.failed == "3 starts in a row failed, the last one: no such file"
    assert not health.may_start(NOW_S + FIRST_COOL_DOWN_S - 0.001)
    assert health.may_start(NOW_S + FIRST_COOL_DOWN_S)


def test_a_good_start_between_ends_the_row_of_failed_ones() -> None:
    health = Health()
    for _ in range(FAILED_STARTS - 1):
        health.start_failed(NOW_S, "slow disk")
    health.started_well()
    for _ in range(FAILED_STARTS - 1):
        health.start_failed(NOW_S, "slow disk")
    assert health.failed is None


def test_one_trial_at_a_time() -> None:
    health = failed_health()
    now_s = health.next_start_s
    assert health.may_start(now_s, starting=0)
    assert not health.may_start(now_s, starting=1)
    health.started_well()
    assert health.may_start(now_s, starting=1)


def test_cool_down_doubles_with_each_failed_trial_up_to_five_minutes() -> None:
    health = failed_health()
    now_s = NOW_S
    cool_downs_s = []
    for _ in range(6):
        cool_downs_s.append(health.next_start_s - now_s)
        now_s = health.next_start_s
        health.start_failed(now_s, "still")
        assert health.failed is not None
    assert cool_downs_s == pytest.approx([30, 60, 120, 240, 300, MAX_COOL_DOWN_S])


def dead_health() -> Health:
    health = Health()
    for _ in range(FAILED_DEATHS):
        health.died(NOW_S, "killed")
    return health


@pytest.mark.parametrize("make", [failed_health, dead_health])
def test_a_trial_that_starts_well_and_dies_closes_the_door_again(
    make: Callable[[], Health],
) -> None:
    health = make()
    now_s = health.next_start_s
    health.started_well()
    assert health.failed is None
    health.died(now_s, "killed")
    assert health.failed is not None
    assert health.next_start_s == now_s + 2 * FIRST_COOL_DOWN_S


def test_a_trial_that_settles_a_call_opens_the_door_for_good() -> None:
    health = failed_health()
    now_s = health.next_start_s
    health.started_well()
    health.settled_well()
    health.died(now_s, "killed")
    assert health.failed is None
    assert health.next_start_s == now_s  # the first failure again: made good at once


def test_stragglers_do_not_lengthen_the_cool_down() -> None:
    health = failed_health()
    until_s = health.next_start_s
    for _ in range(4):
        health.died(NOW_S + 1, "its zygote is gone")
    assert health.next_start_s == until_s
    assert "no such file" in str(health.failed)


def test_a_settled_call_between_deaths_forgets_them() -> None:
    health = Health()
    for _ in range(3 * FAILED_DEATHS):
        health.started_well()
        health.died(NOW_S, "poison item")
        health.settled_well()
    assert health.failed is None
    assert health.may_start(NOW_S)


def test_failing_starts_beside_a_good_instance_neither_fail_nor_spin() -> None:
    health = Health()
    now_s = NOW_S
    delays_s = []
    for _ in range(10):
        health.start_failed(now_s, "out of memory")
        health.settled_well()  # by the instance that lives
        assert health.failed is None
        delays_s.append(health.next_start_s - now_s)
        now_s = health.next_start_s
    assert delays_s == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    health.started_well()
    health.settled_well()
    assert health.may_start(NOW_S)


def test_reset_forgets_everything() -> None:
    health = failed_health()
    health.reset()
    assert health.failed is None
    assert health.may_start(NOW_S)
    health.start_failed(NOW_S, "again")
    assert health.failed is None


@pytest.mark.parametrize(
    ("why", "queued", "busy", "idle", "starting", "max_size", "minimum", "maximum", "wanted"),
    [
        ("asleep, nothing waits", 0, 0, 0, 0, 8, 0, 4, 0),
        ("the first call", 1, 0, 0, 0, 8, 0, 4, 1),
        ("a start is on its way", 5, 0, 0, 1, 8, 0, 4, 0),
        ("an idle one will take it", 1, 0, 1, 0, 8, 0, 4, 0),
        ("all busy", 1, 2, 0, 0, 8, 0, 4, 1),
        ("a burst that one batch holds", 8, 0, 0, 0, 8, 0, 4, 1),
        ("a burst of three batches", 17, 0, 0, 0, 8, 0, 4, 3),
        ("a burst, one on its way", 17, 0, 0, 1, 8, 0, 4, 2),
        ("a burst, one busy", 17, 1, 0, 0, 8, 0, 4, 2),
        ("a burst, one idle", 17, 0, 1, 0, 8, 0, 4, 2),
        ("no batching: one a call", 3, 0, 0, 0, 1, 0, 4, 3),
        ("never over the maximum", 1000, 0, 0, 0, 1, 0, 4, 4),
        ("at the maximum", 1000, 2, 0, 2, 1, 0, 4, 0),
        ("over a maximum that was lowered", 1000, 5, 0, 0, 1, 0, 4, 0),
        ("the minimum", 0, 0, 0, 0, 8, 2, 4, 2),
        ("the rest of the minimum", 0, 1, 0, 0, 8, 2, 4, 1),
        ("the minimum takes calls, too", 9, 0, 0, 0, 8, 2, 4, 2),
        ("more than the minimum", 0, 0, 3, 0, 8, 2, 4, 0),
    ],
)
def test_instances_wanted(
    why: str,
    queued: int,
    busy: int,
    idle: int,
    starting: int,
    max_size: int,
    minimum: int,
    maximum: int,
    wanted: int,
) -> None:
    got = instances_wanted(queued, busy, idle, starting, max_size, minimum, maximum)
    assert got == wanted, why
