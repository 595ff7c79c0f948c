"""When to start instances, and when a function counts as failed.

Knows neither processes nor a clock: it is told of starts, deaths and settled calls, and answers
whether another start is worth its cost.
"""

import math

FIRST_DELAY_S = 0.1  # after the second failure in a row; the first is made good at once
MAX_DELAY_S = 5.0  # a caller who waits through it is still within common client timeouts of 30 s
FAILED_STARTS = 3  # a start is deterministic (same snapshot, same code): a third try is generous
# One poison item costs two deaths, its batch and its retry alone. Five deaths in a row, with no
# call settled between, therefore come from three or more different items: it is the function.
FAILED_DEATHS = 5
FIRST_COOL_DOWN_S = 30.0  # long enough for a full disk or memory hog to go, short for a watcher
MAX_COOL_DOWN_S = 300.0  # as Kubernetes' CrashLoopBackOff: a repaired function is back in 5 minutes


class Health:
    """Whether a function's instances start and stay alive. All times are monotonic seconds.

    Failures without a settled call between are followed by growing delays before the next start;
    too many of them and the function is ``failed``: its callers get the reason at once. After a
    cool-down one start is allowed as a trial. When it goes well, calls are let in again, and
    the next failure before a call has settled closes the door for twice as long.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: the snapshot has changed, or an operator says to try again."""
        self._failed: str | None = None
        self._next_start_s = 0.0
        self._failures = 0
        self._failed_starts = 0
        self._deaths = 0
        self._cool_downs = 0
        self._starts_work = True

    @property
    def failed(self) -> str | None:
        """Why the function does not run; None while it may."""
        return self._failed

    @property
    def next_start_s(self) -> float:
        """The earliest time for the next start; in the past (0 at first) when there is no delay."""
        return self._next_start_s

    def may_start(self, now_s: float, starting: int = 0) -> bool:
        """Whether an instance may be started now, while ``starting`` others are on their way.

        A failed function gets one trial at a time.
        """
        return now_s >= self._next_start_s and not (self._failed and starting)

    def started_well(self) -> None:
        """An instance is ready. It has proved that starts work, not yet that calls do."""
        self._starts_work = True
        self._failed = None
        self._failed_starts = 0

    def settled_well(self) -> None:
        """An instance has answered a batch and lives: deaths and failures are forgotten.

        While new starts keep failing, their delay stands: one good instance that settles calls
        must not let the pool spin on starting a second.
        """
        self._failed = None
        self._deaths = self._failed_starts = self._cool_downs = 0
        if self._starts_work:
            self._failures = 0
            self._next_start_s = 0.0

    def died(self, now_s: float, reason: str) -> None:
        """A ready instance has died unasked."""
        self._deaths += 1
        self._count(now_s, f"{self._deaths} instances in a row died, the last one: {reason}")

    def start_failed(self, now_s: float, reason: str) -> None:
        """An instance has ended before it was ready."""
        self._starts_work = False
        self._failed_starts += 1
        self._count(now_s, f"{self._failed_starts} starts in a row failed, the last one: {reason}")

    def _count(self, now_s: float, summary: str) -> None:
        if self._failed and now_s < self._next_start_s:
            return  # a straggler of before the cool-down: no trial has failed
        self._failures += 1
        many = self._failed_starts >= FAILED_STARTS or self._deaths >= FAILED_DEATHS
        if many or self._cool_downs:  # has failed before, and no call has settled since
            self._failed = summary
            delay_s = min(FIRST_COOL_DOWN_S * 2**self._cool_downs, MAX_COOL_DOWN_S)
            self._cool_downs += 1
        else:
            delay_s = start_delay_s(self._failures)
        self._next_start_s = now_s + delay_s


def start_delay_s(failures: int) -> float:
    """Seconds between the ``failures``-th failure in a row and the next start: 0, 0.1, 0.2, 0.4 ..."""
    if failures < 2:
        return 0.0
    return min(FIRST_DELAY_S * 2.0 ** (failures - 2), MAX_DELAY_S)


def instances_wanted(
    queued: int, busy: int, idle: int, starting: int, max_size: int, minimum: int, maximum: int
) -> int:
    """How many instances to start now, 0 or more.

    At least what is missing to ``minimum``. One when calls wait and nothing is idle or on its way:
    a start takes milliseconds, a busy instance may be busy for its whole timeout. More only for
    calls that all living and starting instances would not take in one batch each (not one a call:
    Ray #61731 goes from zero to the maximum on its first burst). Never past ``maximum``.
    """
    alive = busy + idle + starting
    first = 1 if queued and not idle and not starting else 0
    left_over = queued - alive * max_size
    wanted = max(minimum - alive, first, math.ceil(left_over / max_size))
    return max(0, min(wanted, maximum - alive))
