"""One function being served: its calls, from the queue through batches to their answers.

Every event (a call, a frame, an exit, a timer) changes the state and then asks ``_advance``, the one
place where batches go out and instances are started, as ``runtime.policy`` decides; when to sleep it
asks ``Depths``, which carries that out. Knows nothing of HTTP; of processes only that they start,
answer and end (``Processes``).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import (
    Cancelled,
    Draining,
    FunctionFailed,
    InstanceDied,
    InvocationError,
    PredictTimeout,
    to_problem,
)
from zerowake.runtime.exchange import ReplyHead
from zerowake.runtime.forms import FormName
from zerowake.runtime.gateway.depths import Depths
from zerowake.runtime.gateway.instances import Instance, State
from zerowake.runtime.gateway.opening import Opened
from zerowake.runtime.gateway.port import Lease
from zerowake.runtime.gateway.processes import Processes
from zerowake.runtime.gateway.zygote_link import ZygoteLink
from zerowake.runtime.hooks import Moment
from zerowake.runtime.info import Kind
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import FunctionGauges, Metrics
from zerowake.runtime.policy.batching import Batcher
from zerowake.runtime.policy.lifecycle import instances_wanted
from zerowake.runtime.wire import Frame

log = logging.getLogger("zerowake.gateway")

THAW_S = 0.02  # for what has come while a platform had frozen us
HEARD_S = 1.0  # for what an instance that has ended had said


class Served:
    """A function and its calls. ``base`` and ``clock`` as in ``Processes``."""

    def __init__(
        self,
        opened: Opened,
        config: ServeConfig,
        base: Callable[[], Coroutine[Any, Any, ZygoteLink]],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Not the snapshot itself: its tables are megabytes, and most functions sleep.
        snapshot = opened.snapshot
        self.digest, self.path = snapshot.digest, snapshot.path
        self._weights = tuple(snapshot.path / s.file for s in snapshot.manifest.segments)
        self.form, self._eager_because = opened.form.name, opened.form.reason
        self.info = opened.info
        self.name = self.info.name
        self._settings = self.info.settings
        self._metrics = metrics
        self._clock = clock
        self._processes = Processes(snapshot, config, base, metrics, self, clock)
        self._depths = Depths(self.info, config, self._processes, self, clock)
        self._rule = self._settings.batch_rule(config.max_queued)
        self._queue = Batcher(self._rule)
        self._numbers = itertools.count(1)  # of what is lent
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._change: asyncio.Future[None] | None = None  # where somebody waits for one
        self._soon: asyncio.Handle | None = None  # when ``_advance`` runs anyway
        self._closed = False

    # ---------------------------------------------------------------- what callers see

    @property
    def depth(self) -> Depth:
        return self._depths.now

    @property
    def in_use(self) -> bool:
        instances = self._processes.instances
        return bool(len(self._queue)) or any(i.batch or i.waiting for i in instances)

    @property
    def failed(self) -> str | None:
        return self._processes.standing.failed

    @property
    def at_rest(self) -> bool:
        """Whether nothing more is to be waited for before calls are welcome."""
        return self.failed is not None or self._depths.at_rest

    def submit(self, call: Invocation) -> None:
        """Queue ``call``. Raises QueueFull, or FunctionFailed with the reason."""
        call.depth = self.depth
        if refusal := self._processes.refusal():
            raise refusal
        self._queue.submit(call, self._clock())
        self._metrics.observe_wake(self.name, call.depth)
        self._depths.call_came()
        self._advance()

    def cancel(self, call: Invocation) -> None:
        """The caller has left: drop the call if it waits, stop it if it streams."""
        call.fail(to_problem(Cancelled("the caller has left")))
        if not self._queue.cancel(call):
            for instance in self._processes.instances:
                for place, running in instance.batch.items():
                    if running is not call:
                        continue
                    if self.info.kind is Kind.STREAM:
                        instance.link.send({"kind": "cancel", "call": place})
                    elif place < 0 and all(each.done for each in instance.batch.values()):
                        # Nobody but it itself could take the next call from the platform.
                        self._end(instance, "predict runs past the end of its invocation")
        self._advance()

    def lend(self, lease: Lease) -> bool:
        """As ``Functions.lend``."""
        ready = self._processes.ready
        if len(ready) != 1 or not self.info.kind.gives_one_result:
            return False
        return ready[0].lend(next(self._numbers), lease)

    def recall(self) -> None:
        """As ``Functions.recall``."""
        for instance in self._processes.instances:
            instance.recall()

    async def bring_to(self, depth: Depth) -> None:
        """Sink or rise to ``depth``; returns when the function is there.

        Raises FunctionFailed, FunctionBusy (calls keep coming) or Unforkable.
        """
        await self._depths.bring_to(depth)

    async def hook(self, moment: Moment) -> None:
        """As ``Functions.hook``; no call is under way."""
        await self._processes.hook(moment)
        if refusal := self._processes.refusal():
            raise refusal

    async def quiet(self) -> None:
        """Wait until no call runs or waits, and nothing is lent that could bring one."""
        self.recall()
        while self.in_use or any(instance.lent for instance in self._processes.instances):
            await self.next_change()

    async def over(self) -> FunctionFailed:
        """Wait until the function can never run again; why."""
        standing = self._processes.standing
        await standing.over.wait()
        return FunctionFailed(str(standing.quarantined))

    async def next_change(self) -> None:
        """Wait until something has happened to calls or processes."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._change)

    async def close(self) -> None:
        """End all processes; what still waits or runs is answered with that."""
        self._closed = True
        ended = Draining("the gateway has shut down before the call was done")
        for instance in self._processes.instances:
            _fail([*instance.batch.values(), *instance.waiting.values()], ended)
        self._fail_waiting(ended)
        for timer in self._timers.values():
            timer.cancel()
        self._depths.close()
        instances = list(self._processes.instances)
        await self._processes.close()
        for instance in instances:  # what they have taken since, with which they were killed
            await instance.link.drained(HEARD_S)
            _fail([*instance.batch.values(), *instance.waiting.values()], ended)
            instance.lose()

    def describe(self) -> dict[str, Any]:
        """The JSON of ``GET /functions``."""
        standing = self._processes.standing
        state = "busy" if self.in_use else "ready"
        if self.failed:
            state = "failed"
        elif self._processes.starting:
            state = "starting"
        return {
            "name": self.name,
            "depth": self.depth,
            "state": state,
            "reason": standing.failed
            or standing.slow
            or standing.unforkable
            or self._eager_because
            or None,
            "form": self.form,
            "digest": self.digest,
            "snapshot": str(self.path),
            "queued": len(self._queue),
            "depths": [depth for depth in Depth if depth in standing.allowed],
            "processes": self._processes.describe(),
        }

    def gauges(self) -> FunctionGauges:
        """How the function stands, for a scrape."""
        instances = dict.fromkeys(Depth, 0)
        for instance in self._processes.instances:
            if instance.is_ready:
                instances[Depth.HOT if instance.hot else Depth.PREWARMED] += 1
        instances[Depth.ZYGOTE] = int(self._processes.zygote_is_up)
        return FunctionGauges(self.name, instances, len(self._queue), self._weights)

    # ---------------------------------------------------------------- decisions carried out

    def changed(self) -> None:
        self._advance()

    def _advance(self) -> None:
        """Give idle instances their batches, start what is missing, set the timers anew."""
        self._soon = None
        if self._change is not None:
            self._change.set_result(None)
            self._change = None
        if self._closed:
            return
        now = self._clock()
        idle = [i for i in self._processes.ready if i.state is State.IDLE]
        if len(idle) > 1:
            idle.sort(key=lambda instance: not instance.hot)
        plan = self._queue.plan(now, len(idle))
        for instance, batch in zip(idle, plan.batches, strict=False):
            self._dispatch(instance, batch, now)
        self._arm("window", plan.wake_at_s, now)
        if self._processes.standing.quarantined is None:
            self._start_wanted(now)
            self._arm("depth", self._depths.look_after(now), now)
        else:
            self._drop_queue()

    def _dispatch(self, instance: Instance, batch: tuple[Invocation, ...], now: float) -> None:
        for call in batch:
            call.timings_ms["queue"] = 1e3 * (now - call.arrived_s)
            if call.arrived_s < instance.ready_s:
                call.timings_ms |= instance.restore_ms
        # Where predict may not run twice, the instance tells when it begins.
        instance.take(batch, begun=self._settings.retry)
        busy = sum(i.state is State.BUSY for i in self._processes.instances)
        header = {"kind": "batch", "calls": [self._told(call) for call in batch], "busy": busy}
        instance.link.send(header, *(call.body for call in batch))
        self._watch_time(instance)
        self._metrics.observe_batch(self.name, len(batch))

    def _told(self, call: Invocation) -> dict[str, Any]:
        """What an instance is told of a call, beside its body."""
        told: dict[str, Any] = {"id": call.id, "timeout_s": self._settings.timeout_s}
        if self.info.kind is Kind.HANDLER:  # no other sees a Context
            told["origin"] = call.origin.told()
        elif self.info.kind is Kind.HTTP and call.head is not None:
            told["head"] = call.head.to_json()
        return told

    def _start_wanted(self, now: float) -> None:
        health, ready = self._processes.standing.health, self._processes.ready
        minimum, maximum = self._settings.instances
        if not len(self._queue) and len(ready) >= minimum:
            return
        busy = sum(instance.state is State.BUSY for instance in ready)
        wanted = instances_wanted(
            queued=len(self._queue),
            busy=busy,
            idle=len(ready) - busy,
            starting=self._processes.starting,
            max_size=self._rule.max_size,
            minimum=minimum,
            maximum=maximum,
        )
        if not wanted:
            return
        if health.may_start(now, self._processes.starting):
            for _ in range(1 if health.failed else wanted):
                self._processes.start(hot=True, warm=not len(self._queue))
            return
        if health.failed and not ready and not self._processes.starting:
            self._drop_queue()
        # Not when it is time already: then a trial is on its way, and its end is told.
        later_s = health.next_start_s if health.next_start_s > now else None
        self._arm("start", later_s, now)

    def _arm(self, name: str, when_s: float | None, now: float) -> None:
        """Ask ``_advance`` again at ``when_s``; one timer for each purpose."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if when_s is not None:
            delay_s = max(0.0, when_s - now)
            self._timers[name] = asyncio.get_running_loop().call_later(delay_s, self._advance)

    def _drop_queue(self) -> None:
        """Answer everybody who waits: the function does not run."""
        if refusal := self._processes.refusal():
            self._fail_waiting(refusal)

    def _fail_waiting(self, error: InvocationError) -> None:
        _fail(self._queue.take_all(), error)

    # ---------------------------------------------------------------- what instances say

    def on_frame(self, instance: Instance, frame: Frame) -> Awaitable[None] | None:
        header = frame.header
        match frame.kind:
            case "result":
                call = instance.batch.pop(header["call"])
                call.timings_ms["predict"] = header["predict_ms"]
                if "queue_ms" in header:  # of one that it has taken itself
                    call.timings_ms["queue"] = header["queue_ms"]
                problem = header.get("problem")
                if "answered" in header:
                    call.done = True
                    lease = instance.lent[-header["call"]]
                    lease.answered(call, problem, header["answered"], header["read"])
                elif problem:
                    call.fail(problem)
                else:  # without a body where its items came before
                    if "head" in header:
                        call.reply = ReplyHead.from_json(header["head"])
                    call.finish(frame.body if "sizes" in header else None)
            case "settled":
                self._metrics.observe_eager_calls(self.name, header.get("eager_calls", 0))
                self._settle(instance)
            case "item":
                return self._deliver(instance, header["call"], frame.body)
            case "fed":
                for call in instance.fed(frame, retry=self._settings.retry):
                    call.depth = self.depth
                    self._metrics.observe_wake(self.name, call.depth)
                self._depths.call_came()
                if runs := header["runs"]:
                    self._watch_time(instance)
                    self._metrics.observe_batch(self.name, len(runs))
            case "handed" | "refused" | "recalled" | "begins":
                instance.slot_told(frame)
                self._advance()
            case "began":
                instance.begun = True
                # It is not tried again: if its process ends now, that is put down to the call.
                instance.poisoned = instance.batch_size == 1
            case "again":
                self._watch_time(instance)
        return None

    def runs_as(self, form: FormName, reason: str) -> None:
        """What the gateway has chosen when it opened the snapshot may have changed on disk since."""
        if form is self.form or self._closed:
            return
        log.warning("%s runs as %s now%s", self.name, form, f": {reason}" if reason else "")
        self.form, self._eager_because = form, reason
        self._metrics.observe_form(self.name, form, reason)

    def on_exit(self, instance: Instance, died: InstanceDied) -> None:
        """Decide over the calls that an instance has left unanswered.

        They run again one by one, so that the one which did it is found and ends only itself.
        """
        error: InvocationError = died
        if instance.timed_out:
            limit_s = self._settings.timeout_s
            error = PredictTimeout(
                f"predict took longer than timeout_s={limit_s:g} s and was ended"
            )
        may_repeat = self._settings.retry or not instance.begun
        again = []
        # What it was given while it ran calls that it had taken itself has not been begun with.
        takes_itself = any(place < 0 for place in instance.batch)
        for place, call in instance.batch.items():
            if call.done:
                continue
            if takes_itself and place >= 0:
                again.append(call)
                continue
            call.attempts += 1
            last = instance.batch_size == 1 if instance.timed_out else call.attempts > 1
            if may_repeat and not last and not call.started:
                again.append(call)
            else:
                call.fail(to_problem(error))
        again += instance.waiting.values()
        instance.batch.clear()
        instance.waiting.clear()
        self._queue.retry(again)
        instance.lose()
        self._advance()

    async def _deliver(self, instance: Instance, place: int, chunk: bytes) -> None:
        """Pass on one chunk of a stream; who does not read loses the stream, not others'."""
        call = instance.batch[place]
        if call.done:
            return
        instance.stop_timer()
        call.started = True
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await call.sink.item(chunk)
        except TimeoutError:
            instance.link.send({"kind": "cancel", "call": place})
            limit_s = self._settings.timeout_s
            call.fail(to_problem(Cancelled(f"the caller has read nothing for {limit_s:g} s")))
        if not instance.link.exited.done():
            self._watch_time(instance)

    def _settle(self, instance: Instance) -> None:
        now = self._clock()
        instance.stop_timer()
        if instance.timed_out:  # its answer has crossed our kill: it is not idle, it is gone
            instance.state = State.STOPPING
            return
        self._queue.settle(instance.batch_size, now)
        self._processes.standing.health.settled_well()
        self._depths.calls_ended(now)
        if instance.batch:  # what it was given while it was busy with what it has taken itself
            instance.begun, instance.batch_size = self._settings.retry, len(instance.batch)
            self._watch_time(instance)
            return
        if instance.state is State.BUSY:
            instance.state = State.IDLE
        if instance.retiring:
            self._processes.retire_later(instance)
        if len(self._queue):
            self._advance()
        elif (
            self._soon is None
        ):  # nobody waits for it: the callers' replies, due in this turn, go first
            self._soon = asyncio.get_running_loop().call_soon(self._advance)

    def _watch_time(self, instance: Instance) -> None:
        """Count ``timeout_s`` from now on."""
        instance.stop_timer()
        loop = asyncio.get_running_loop()

        def over() -> None:
            if instance.lent:  # we may all have been frozen since: what it has said is read first
                instance.timer = loop.call_later(THAW_S, self._time_out, instance)
            else:
                self._time_out(instance)

        instance.timer = loop.call_later(self._settings.timeout_s, over)

    def _time_out(self, instance: Instance) -> None:
        limit_s = self._settings.timeout_s
        self._end(instance, f"predict has run for more than timeout_s={limit_s:g} s")

    def _end(self, instance: Instance, why: str) -> None:
        """A ``predict`` cannot be interrupted from outside: its process goes."""
        fields = instance.log_fields(self.name)
        log.warning("%s: %s; its instance is replaced", self.name, why, extra=fields)
        instance.timed_out = True
        instance.link.kill()


def _fail(calls: Iterable[Invocation], error: InvocationError) -> None:
    for call in list(calls):
        call.fail(to_problem(error))
