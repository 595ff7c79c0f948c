"""One function being served: its queue, its batches, and how deep it sleeps.

Every event (a call, a frame, an exit, a timer) changes the state and then asks ``_advance``, the one
place where the decisions of ``runtime.policy`` are carried out. Knows nothing of HTTP, and of
processes only that they start, answer and end.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import (
    Cancelled,
    Draining,
    FunctionBusy,
    FunctionFailed,
    InstanceDied,
    PredictTimeout,
    to_problem,
)
from zerowake.runtime.gateway.links import Unforkable, ZygoteLink
from zerowake.runtime.gateway.port import FunctionInfo
from zerowake.runtime.gateway.processes import Instance, Processes, State, fields
from zerowake.runtime.invocation import Depth, Invocation
from zerowake.runtime.metrics import FunctionGauges, Metrics
from zerowake.runtime.policy.batching import Batcher, BatchRule
from zerowake.runtime.policy.lifecycle import instances_wanted
from zerowake.runtime.policy.sleep import next_depth
from zerowake.runtime.settings import Settings
from zerowake.runtime.wire import Frame
from zerowake.snapshot.errors import ZerowakeError
from zerowake.snapshot.mapping import resident_fraction
from zerowake.snapshot.opened import Snapshot

log = logging.getLogger("zerowake.gateway")

BUSY_LIMIT_S = 30.0  # how long a sleep command waits for running calls


class Served:
    """A function and its calls. ``base`` and ``clock`` as in ``Processes``."""

    def __init__(
        self,
        snapshot: Snapshot,
        config: ServeConfig,
        base: Callable[[], Coroutine[Any, Any, ZygoteLink]],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        function = snapshot.manifest.function
        self.snapshot = snapshot
        self.name = snapshot.manifest.name
        self.info = FunctionInfo(
            name=self.name,
            kind=function["kind"],
            input_schema=function["input_schema"],
            output_schema=function["output_schema"],
            raw_input=function["raw_input"],
            raw_output=function["raw_output"],
            description=function["description"],
            examples=tuple(function["examples"]),
        )
        self._settings = Settings.from_json(function["settings"])
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._processes = Processes(snapshot, config, base, metrics, self, clock)
        batch = self._settings.batch
        self._rule = BatchRule(
            max_size=batch.max_size if batch else 1,
            window_s=batch.window_ms / 1e3 if batch else 0.0,
            max_queued=config.max_queued,
        )
        self._queue = Batcher(self._rule)
        self._rest = config.depth  # where the function is to be when nothing happens
        self._idle_since_s: float | None = None
        self._moving = asyncio.Lock()  # one change of depth at a time
        self._mover: asyncio.Task[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._change = asyncio.get_running_loop().create_future()
        self._closed = False

    # ---------------------------------------------------------------- what callers see

    @property
    def depth(self) -> Depth:
        ready = [instance for instance in self._processes.instances if instance.is_ready]
        if ready:
            return Depth.HOT if any(instance.hot for instance in ready) else Depth.PREWARMED
        return Depth.ZYGOTE if self._processes.zygote_is_up else Depth.COLD

    @property
    def in_use(self) -> bool:
        return bool(len(self._queue)) or any(i.batch for i in self._processes.instances)

    @property
    def failed(self) -> str | None:
        return self._processes.quarantined or self._processes.health.failed

    @property
    def at_rest(self) -> bool:
        """Whether nothing more is to be waited for before calls are welcome."""
        return (
            self.failed is not None
            or self._rest not in self._processes.allowed
            or self.depth.level <= self._rest.level
        )

    def submit(self, call: Invocation) -> None:
        """Queue ``call``. Raises QueueFull, or FunctionFailed with the reason."""
        call.depth = self.depth
        if refusal := self._refusal():
            raise refusal
        self._queue.submit(call, self._clock())
        self._metrics.observe_wake(self.name, call.depth)
        self._rest = self._config.depth
        self._advance()

    def cancel(self, call: Invocation) -> None:
        """The caller has left: drop the call if it waits, stop it if it streams."""
        call.fail(to_problem(Cancelled("the caller has left")))
        if not self._queue.cancel(call) and self.info.kind == "stream":
            for instance in self._processes.instances:
                for place, running in instance.batch.items():
                    if running is call:
                        instance.link.send({"kind": "cancel", "call": place})
        self._advance()

    async def bring_to(self, depth: Depth) -> None:
        """Sink or rise to ``depth``; returns when the function is there.

        Raises FunctionFailed, FunctionBusy (calls keep coming) or Unforkable.
        """
        if depth is Depth.HOT:
            await self._wake()
            return
        if depth not in self._processes.allowed:
            reason = self._processes.reason
            raise Unforkable(f"{self.name} cannot sleep at {depth}: {reason}; it can at cold")
        if minimum := self._settings.instances[0]:
            raise FunctionBusy(
                f"{self.name} keeps {minimum} instance(s) awake (instances={self._settings.instances})"
            )
        try:
            async with asyncio.timeout(BUSY_LIMIT_S):
                await self.quiet()
        except TimeoutError:
            raise FunctionBusy(
                f"{self.name} has had calls for {BUSY_LIMIT_S:.0f} s without a pause; "
                "sleep it when its callers are done"
            ) from None
        self._rest = depth
        await self._move(depth)

    async def quiet(self) -> None:
        """Wait until no call runs or waits."""
        while self.in_use:
            await asyncio.shield(self._change)

    async def close(self) -> None:
        """End all processes; what still waits or runs is answered with that."""
        self._closed = True
        ended = to_problem(Draining("the gateway has shut down before the call was done"))
        waiting = self._queue.plan(float("inf"), len(self._queue)).batches
        running = (instance.batch.values() for instance in self._processes.instances)
        for call in [*itertools.chain(*waiting), *itertools.chain(*running)]:
            call.fail(ended)
        for timer in self._timers.values():
            timer.cancel()
        if self._mover is not None:
            self._mover.cancel()
        await self._processes.close()

    def describe(self) -> dict[str, Any]:
        """The JSON of ``GET /functions``."""
        state = "busy" if self.in_use else "ready"
        if self.failed:
            state = "failed"
        elif self._processes.starting:
            state = "starting"
        return {
            "name": self.name,
            "depth": self.depth,
            "state": state,
            "reason": self.failed or self._processes.reason,
            "digest": self.snapshot.digest,
            "snapshot": str(self.snapshot.path),
            "queued": len(self._queue),
            "depths": [depth for depth in Depth if depth in self._processes.allowed],
            "instances": self._processes.describe(),
        }

    def gauges(self) -> FunctionGauges:
        """How the function stands, for a scrape."""
        instances = dict.fromkeys(Depth, 0)
        for instance in self._processes.instances:
            if instance.is_ready:
                instances[Depth.HOT if instance.hot else Depth.PREWARMED] += 1
        instances[Depth.ZYGOTE] = int(self._processes.zygote_is_up)
        segments = self.snapshot.manifest.segments
        resident = [resident_fraction(self.snapshot.path / segment.file) for segment in segments]
        known = [fraction for fraction in resident if fraction is not None]
        ratio = sum(known) / len(known) if known else None
        return FunctionGauges(self.name, instances, len(self._queue), ratio)

    # ---------------------------------------------------------------- decisions carried out

    def changed(self) -> None:
        self._advance()

    def _advance(self) -> None:
        """Give idle instances their batches, start what is missing, set the timers anew."""
        if self._closed:
            return
        now = self._clock()
        idle = [i for i in self._processes.ready if i.state is State.IDLE]
        idle.sort(key=lambda instance: not instance.hot)
        plan = self._queue.plan(now, len(idle))
        for instance, batch in zip(idle, plan.batches, strict=False):
            self._dispatch(instance, batch, now)
        self._arm("window", plan.wake_at_s, now)
        if self._processes.quarantined is None:
            self._start_wanted(now)
            self._look_after_depth(now)
        else:
            self._drop_queue()
        self._change.set_result(None)
        self._change = asyncio.get_running_loop().create_future()

    def _dispatch(self, instance: Instance, batch: tuple[Invocation, ...], now: float) -> None:
        for call in batch:
            call.timings_ms["queue"] = 1e3 * (now - call.arrived_s)
            call.timings_ms |= instance.restore_ms
        instance.restore_ms = {}
        instance.hot = True
        instance.state = State.BUSY
        instance.batch = dict(enumerate(batch))
        instance.batch_size = len(batch)
        instance.poisoned = len(batch) == 1 and batch[0].attempts > 0
        calls = [{"id": call.id, "timeout_s": self._settings.timeout_s} for call in batch]
        busy = sum(i.state is State.BUSY for i in self._processes.instances)
        header = {"kind": "batch", "calls": calls, "busy": busy}
        instance.link.send(header, *(call.body for call in batch))
        self._watch_time(instance)
        self._metrics.observe_batch(self.name, len(batch))

    def _start_wanted(self, now: float) -> None:
        health, ready = self._processes.health, self._processes.ready
        busy = sum(instance.state is State.BUSY for instance in ready)
        minimum, maximum = self._settings.instances
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
        self._arm("start", health.next_start_s, now)

    def _look_after_depth(self, now: float) -> None:
        """Rise to where the function rests, or sink when it has been idle for long enough."""
        moving = self._moving.locked() or self._processes.starting
        if moving or self.in_use or not self._processes.base_is_up:
            return
        depth, allowed = self.depth, self._processes.allowed
        if depth.level > self._rest.level and self._rest in allowed:
            if self._processes.health.may_start(now):
                self._move_later(self._rest)
            else:
                self._arm("start", self._processes.health.next_start_s, now)
            return
        goal, look_again_s = next_depth(
            depth,
            self._idle_since_s,
            now,
            self._config.idle_s,
            floor=self._config.depth,
            allowed=allowed,
            in_use=False,
            minimum=self._settings.instances[0],
        )
        if goal is not depth:
            self._move_later(goal)
        self._arm("idle", look_again_s, now)

    def _arm(self, name: str, when_s: float | None, now: float) -> None:
        """Ask ``_advance`` again at ``when_s``; one timer for each purpose."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if when_s is not None:
            delay_s = max(0.0, when_s - now)
            self._timers[name] = asyncio.get_running_loop().call_later(delay_s, self._advance)

    def _refusal(self) -> FunctionFailed | None:
        """Why a call cannot be taken now."""
        processes, now = self._processes, self._clock()
        if processes.quarantined:
            return FunctionFailed(processes.quarantined)
        health = processes.health
        if not health.failed or processes.ready or processes.starting or health.may_start(now):
            return None
        return FunctionFailed(
            f"{self.name} does not run: {health.failed}. It is tried again after a pause, "
            f"or at once with: zerowake wake {self.name}",
            retry_after_s=max(1, round(health.next_start_s - now)),
        )

    def _drop_queue(self) -> None:
        """Answer everybody who waits: the function does not run."""
        if refusal := self._refusal():
            for batch in self._queue.plan(float("inf"), len(self._queue)).batches:
                for call in batch:
                    call.fail(to_problem(refusal))

    # ---------------------------------------------------------------- depth

    async def _wake(self) -> None:
        """Have a hot instance; a command, so a function that failed gets another chance."""
        self._processes.health.reset()
        if refusal := self._refusal():
            raise refusal
        if not self._processes.ready and not self._processes.starting:
            self._processes.start(hot=True, warm=True)
        while self.depth is not Depth.HOT:
            if ready := self._processes.ready:  # perhaps one that was being prewarmed
                ready[0].hot = True
                break
            if not self._processes.starting:
                raise FunctionFailed(f"{self.name} cannot be woken: {self._processes.last_failure}")
            await asyncio.shield(self._change)
        self._idle_since_s = self._clock()
        self._advance()

    def _move_later(self, depth: Depth) -> None:
        """``_move`` on our own account: nobody waits for it, failures are counted and logged."""

        async def move() -> None:
            try:
                await self._move(depth)
            except ZerowakeError as error:
                log.warning("%s: cannot move to %s: %s", self.name, depth, error)
                self._advance()

        self._mover = asyncio.create_task(move())

    async def _move(self, depth: Depth) -> None:
        async with self._moving:
            match depth:
                case Depth.HOT:
                    await self._processes.start(hot=True, warm=True)
                case Depth.PREWARMED:
                    await self._processes.ensure_zygote()
                    await self._ensure_prewarmed()
                case Depth.ZYGOTE:
                    await self._processes.ensure_zygote()
                    await self._retire(self._processes.instances)
                case Depth.COLD:
                    await self._retire(self._processes.instances)
                    await self._processes.drop_zygote()
        self._idle_since_s = self._idle_since_s or self._clock()
        self._advance()

    async def _ensure_prewarmed(self) -> None:
        """A fresh fork that has done its warm-up takes over from instances that have served.

        Serving leaves caches and heap behind; giving them back costs one fork.
        """
        instances = list(self._processes.instances)
        if not any(i.is_ready and not i.hot for i in instances):
            if self._processes.starting or self.in_use:
                return  # a call has come: it has an instance of its own
            fresh = await self._processes.start(hot=False, warm=True)
            if fresh is None:
                failure = self._processes.last_failure
                raise FunctionFailed(f"{self.name} cannot be prewarmed: {failure}")
            fresh.restore_ms = {}  # over before anybody calls
        await self._retire([i for i in instances if i.hot])

    async def _retire(self, instances: list[Instance]) -> None:
        await asyncio.gather(*map(self._processes.retire, list(instances)))

    # ---------------------------------------------------------------- what instances say

    async def on_frame(self, instance: Instance, frame: Frame) -> None:
        header = frame.header
        match frame.kind:
            case "again":
                self._watch_time(instance)
            case "item":
                await self._deliver(instance, header["call"], frame.body)
            case "result":
                call = instance.batch.pop(header["call"])
                call.timings_ms["predict"] = header["predict_ms"]
                if problem := header.get("problem"):
                    call.fail(problem)
                elif not call.done:
                    if "sizes" in header:
                        await call.sink.item(frame.body)
                    call.finish()
            case "settled":
                self._settle(instance)

    def on_exit(self, instance: Instance, died: InstanceDied) -> None:
        """Decide over the calls that an instance has left unanswered.

        They run again one by one, so that the one which did it is found and ends only itself.
        """
        again = []
        for call in [call for call in instance.batch.values() if not call.done]:
            call.attempts += 1
            last = instance.batch_size == 1 if instance.timed_out else call.attempts > 1
            if not last and self._settings.retry and not call.started:
                again.append(call)
            elif instance.timed_out:
                limit_s = self._settings.timeout_s
                call.fail(
                    to_problem(
                        PredictTimeout(
                            f"predict took longer than timeout_s={limit_s:g} s and was ended"
                        )
                    )
                )
            else:
                call.fail(to_problem(died))
        instance.batch.clear()
        self._queue.retry(again)
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
        self._watch_time(instance)

    def _settle(self, instance: Instance) -> None:
        now = self._clock()
        instance.stop_timer()
        if instance.timed_out:  # its answer has crossed our kill: it is not idle, it is gone
            instance.state = State.STOPPING
            return
        self._queue.settle(instance.batch_size, now)
        self._processes.health.settled_well(now)
        self._idle_since_s = now
        instance.state = State.IDLE
        if instance.retiring:
            self._processes.retire_later(instance)
        if len(self._queue):
            self._advance()
        else:  # nobody waits for the instance: the callers' replies, due in this turn, go first
            asyncio.get_running_loop().call_soon(self._advance)

    def _watch_time(self, instance: Instance) -> None:
        """Count ``timeout_s`` from now on."""
        instance.stop_timer()
        loop = asyncio.get_running_loop()
        instance.timer = loop.call_later(self._settings.timeout_s, self._time_out, instance)

    def _time_out(self, instance: Instance) -> None:
        """A ``predict`` cannot be interrupted from outside: its process goes."""
        log.warning(
            "%s: predict has run for more than timeout_s=%g s; its instance is replaced",
            self.name,
            self._settings.timeout_s,
            extra=fields(self.name, instance),
        )
        instance.timed_out = True
        instance.link.kill()
