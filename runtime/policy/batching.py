"""The queue of one function, and which of its calls run together.

Knows neither processes nor tasks nor a clock: it is told what arrives, leaves and settles, and how
many instances are idle now; it answers with batches and with the time at which to ask again.

The rules, each paid for by a fault of a peer:

- The window starts at the first waiting call (LitServe counts it from the entry of its loop).
- An idle instance is served at once unless waiting pays (mosec always waits the window out, its
  issue 382; BentoML polls every millisecond).
- While no instance is idle, nothing is bound: calls keep topping up the next batch (Triton's late
  binding).
- When more calls wait than a batch holds, calls of like size travel together (Triton is strictly
  FIFO, Ray #49844 and BentoML #2913 ask for it).
- The queue is bounded (LitServe's and BentoML's are not) and a cancelled call is gone from it
  (BentoML, LitServe and mosec compute it all the same).
- Calls under which an instance died run again one by one, so that a poison item ends only itself
  (in BentoML, LitServe, Ray, mosec and KServe one bad item fails its whole batch).
"""

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from zerowake.runtime.errors import QueueFull
from zerowake.runtime.invocation import Invocation

HORIZON = 8  # batches
RECENT_SETTLES = 32  # enough to smooth unequal batches, few enough to notice a new instance
MAX_RETRY_AFTER_S = (
    60  # past a minute the estimate is a guess, and a client does better to come back
)


class BatchRule(NamedTuple):
    """What the author declared: calls a batch, seconds to wait for company, calls that may wait."""

    max_size: int = 1
    window_s: float = 0.0
    max_queued: int = 1024


class Plan(NamedTuple):
    """Batches to run now, one for each of the first idle instances.

    wake_at_s: when to ask again although nothing happened; None when no call waits on its window.
    """

    batches: tuple[tuple[Invocation, ...], ...]
    wake_at_s: float | None


class Batcher:
    """Calls of one function that wait for an instance. All times are monotonic seconds.

    No call starves: a batch of waiting calls always holds the oldest of them, so each batch that
    passes a call over takes at least one call that was ahead of it. A call with ``n`` calls ahead
    of it leaves in the ``n + 1``-th such batch or earlier (retried calls, which go first and
    alone, not counted). The bound is met when every call ahead has younger calls nearer to it.
    """

    def __init__(self, rule: BatchRule) -> None:
        self.rule = rule
        # Ordered dictionaries, oldest call first: cancel and "the oldest" are both O(1). (A plain
        # dict that loses its first keys scans their graves each time it is asked for the first.)
        self._waiting: OrderedDict[Invocation, None] = OrderedDict()
        self._solo: OrderedDict[Invocation, None] = OrderedDict()
        self._settles: deque[tuple[float, int]] = deque(maxlen=RECENT_SETTLES)
        self._batch_settled_s = -math.inf

    def __len__(self) -> int:
        return len(self._waiting) + len(self._solo)

    def submit(self, call: Invocation, now_s: float) -> None:
        """Queue ``call``. Raises QueueFull when ``max_queued`` calls wait already."""
        if len(self) >= self.rule.max_queued:
            retry_after_s = self._retry_after_s(now_s)
            raise QueueFull(
                f"{len(self)} calls of {call.function!r} wait already and its queue holds "
                f"{self.rule.max_queued}; repeat the call in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        if not self:
            # The rate at which a backlog is served is measured from its first call: quiet time
            # before it says nothing about speed.
            self._settles.clear()
            self._settles.append((now_s, 0))
        self._waiting[call] = None

    def cancel(self, call: Invocation) -> bool:
        """Drop ``call``. False when it is not here: planned already, or never submitted."""
        for queue in (self._waiting, self._solo):
            if call in queue:
                del queue[call]
                return True
        return False

    def retry(self, calls: Iterable[Invocation]) -> None:
        """Put planned calls back at the front, in their order, each to run alone.

        They were admitted once, so ``max_queued`` does not apply. A call that is done (its client
        left while it ran) is not run again.
        """
        for call in reversed(list(calls)):
            if not call.done:
                self._waiting.pop(call, None)
                self._solo[call] = None
                self._solo.move_to_end(call, last=False)

    def take_all(self) -> list[Invocation]:
        """Empty the queue; the calls in the order in which they would have left alone."""
        taken = [*self._solo, *self._waiting]
        self._solo.clear()
        self._waiting.clear()
        return taken

    def plan(self, now_s: float, idle: int) -> Plan:
        """What ``idle`` free instances run now. Planned calls leave the queue.

        Cost: O(max_size) for each batch planned, however many calls wait.
        """
        batches: list[tuple[Invocation, ...]] = []
        while len(batches) < idle and self._solo:
            batches.append((self._solo.popitem(last=False)[0],))
        while len(batches) < idle and self._waiting:
            hold_until_s = self._hold_until_s()
            if now_s < hold_until_s:
                return Plan(tuple(batches), hold_until_s)
            batches.append(self._cut())
        return Plan(tuple(batches), None)

    def settle(self, size: int, now_s: float) -> None:
        """An instance has finished a batch of ``size`` calls, well or not."""
        self._settles.append((now_s, size))
        if size > 1:
            self._batch_settled_s = now_s

    def _hold_until_s(self) -> float:
        """Until when an idle instance is kept waiting for company for the first waiting call.

        It pays when a batch of several calls settled less than a window before that call came:
        its callers got their answers at the same moment and are likely to ask again together. A
        lone caller never waits. The answer depends on arrivals only, not on when it is asked for.
        """
        first = next(iter(self._waiting))
        window_s = self.rule.window_s
        pays = first.arrived_s < self._batch_settled_s + window_s
        if not pays or len(self._waiting) >= self.rule.max_size:
            return -math.inf
        return first.arrived_s + window_s

    def _cut(self) -> tuple[Invocation, ...]:
        """Take the oldest call and those nearest to it in body size, older ones first if equal.

        Like sizes together instead of padding: a text of 10 words in a batch of 60-word texts is
        computed as 60 words. Only the oldest HORIZON batches' worth is looked at, so that a call of
        unusual size is not passed over by the whole queue. Simulated with 1,024 waiting bodies of
        log-normal size (sigma 0.8) in batches of 32: 16 % of a batch is padding where first come
        first served has 73 %, and the 99th percentile of the wait is less than half of it (with
        the whole queue in view: 5 %, and a third longer in the tail).
        """
        anchor = next(iter(self._waiting))
        if len(self._waiting) <= self.rule.max_size:
            batch = tuple(self._waiting)
            self._waiting.clear()
            return batch
        nbytes = len(anchor.body)
        others = islice(self._waiting, 1, HORIZON * self.rule.max_size)
        nearest = heapq.nsmallest(
            self.rule.max_size - 1, others, key=lambda call: abs(len(call.body) - nbytes)
        )
        batch = (anchor, *nearest)
        for call in batch:
            del self._waiting[call]
        return batch

    def _retry_after_s(self, now_s: float) -> int:
        """Whole seconds in which what waits now will have been served at the recent rate.

        Not the time until one place is free: everybody who was refused would come back for it.
        1 when nothing has settled since the backlog began.
        """
        # The oldest entry only opens the span: its calls were served before it.
        settled = sum(size for _, size in islice(self._settles, 1, None))
        if not settled:
            return 1
        span_s = now_s - self._settles[0][0]
        return min(max(1, math.ceil(len(self) * span_s / settled)), MAX_RETRY_AFTER_S)
