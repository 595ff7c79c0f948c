"""One function being served: its queue, its instances, its zygote, and how deep it sleeps.

Every event (a call, a frame, an exit, a timer) changes the state and then asks ``_advance``, the one
place where the decisions of ``runtime.policy`` are carried out. Knows nothing of HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from functools import partial
from typing import Any, TypeVar

from zerowake.runtime.config import InstanceSpec, ServeConfig
from zerowake.runtime.errors import (
    Cancelled,
    FunctionBusy,
    FunctionFailed,
    InstanceDied,
    PredictTimeout,
    RemoteError,
    to_problem,
)
from zerowake.runtime.settings import Settings
from zerowake.runtime.gateway.links import Forked, InstanceLink, Unforkable, ZygoteLink, ZygoteLost
from zerowake.runtime.gateway.port import FunctionInfo
from zerowake.runtime.invocation import Depth, Invocation
from zerowake.runtime.metrics import FunctionGauges, Metrics
from zerowake.runtime.policy.batching import Batcher, BatchRule
from zerowake.runtime.policy.lifecycle import Health, instances_wanted
from zerowake.runtime.policy.sleep import next_depth
from zerowake.runtime.process import exit_reason, private_nbytes
from zerowake.runtime.wire import Frame
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    ForbiddenClass,
    SnapshotError,
    UntrustedCode,
    ZerowakeError,
)
from zerowake.snapshot.mapping import resident_fraction
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import check_digests, open_snapshot

log = logging.getLogger("zerowake.gateway")
T = TypeVar("T")

# What no second try mends: the snapshot itself, or its code, is not to be used.
PERMANENT = {kind.code for kind in (UntrustedCode, ForbiddenClass, DamagedSnapshot, SnapshotError)}
FORKABLE = frozenset(Depth)
UNFORKABLE = frozenset((Depth.HOT, Depth.COLD))
BUSY_LIMIT_S = 30.0  # how long a sleep command waits for running calls
STOP_LIMIT_S = 5.0  # how long a stopped instance may take before it is killed


class State(Enum):
    STARTING = auto()
    IDLE = auto()
    BUSY = auto()
    STOPPING = auto()


class Instance:
    """One process of the function, as the gateway sees it."""

    def __init__(
        self,
        forked: Forked,
        on_frame: Callable[["Instance", Frame], Coroutine[Any, Any, None]],
        hot: bool,
    ) -> None:
        self.link = InstanceLink(forked, partial(on_frame, self))
        self.state = State.STARTING
        self.hot = hot  # has been given a call, or was asked for by ``wake``
        self.retiring = False  # ends after its batch
        self.timed_out = False
        self.batch: dict[int, Invocation] = {}  # what is not answered yet, by its place
        self.batch_size = 0
        self.timer: asyncio.TimerHandle | None = None
        self.restore_ms: dict[str, float] = {}  # told to the first batch, which waited for it
        self.ready: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    @property
    def is_ready(self) -> bool:
        return self.state in (State.IDLE, State.BUSY)


class Served:
    """A function and everything that runs for it.

    Parameters
    ----------
    base: returns the base zygote, waiting for it if it is being started again.
    clock: monotonic seconds; the event loop's timers go by real time.
    """

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
            description=function.get("description", ""),
            examples=tuple(function.get("examples", ())),
        )
        self.settings = Settings.from_json(function["settings"])
        self.reason: str | None = None  # why it fails, or why it cannot sleep at every depth
        self._config = config
        self._base = base
        self._metrics = metrics
        self._clock = clock
        batch = self.settings.batch
        self._rule = BatchRule(
            max_size=batch.max_size if batch else 1,
            window_s=batch.window_ms / 1e3 if batch else 0.0,
            max_queued=config.max_queued,
        )
        self._queue = Batcher(self._rule)
        self._health = Health()
        self._instances: list[Instance] = []
        self._starting = 0
        self._zygote: ZygoteLink | None = None
        self._allowed = FORKABLE
        self._quarantined: str | None = None
        self._last_failure = ""
        self._rest = config.depth  # where the function is to be when nothing happens
        self._idle_since_s: float | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._change = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._moving = asyncio.Lock()  # one change of depth at a time
        self._closed = False
        # Before anything of it is imported or mapped; a stamp makes the second time free.
        self._checked = asyncio.create_task(asyncio.to_thread(check_digests, snapshot))
        self._checked.add_done_callback(lambda task: task.cancelled() or task.exception())

    # ---------------------------------------------------------------- what callers see

    @property
    def depth(self) -> Depth:
        ready = [instance for instance in self._instances if instance.is_ready]
        if any(instance.hot for instance in ready):
            return Depth.HOT
        if ready:
            return Depth.PREWARMED
        if self._zygote is not None and self._zygote.is_up:
            return Depth.ZYGOTE
        return Depth.COLD

    @property
    def in_use(self) -> bool:
        return bool(len(self._queue)) or any(instance.batch for instance in self._instances)

    @property
    def failed(self) -> str | None:
        return self._quarantined or self._health.failed

    def submit(self, call: Invocation) -> None:
        """Queue ``call``. Raises QueueFull, or FunctionFailed with the reason."""
        now = self._clock()
        call.depth = self.depth
        if error := self._refusal(now):
            raise error
        self._queue.submit(call, now)
        self._metrics.observe_wake(self.name, call.depth)
        self._rest = self._config.depth
        self._advance()

    def cancel(self, call: Invocation) -> None:
        if call.done:
            return
        call.fail(to_problem(Cancelled("the caller has left")))
        if not self._queue.cancel(call) and self.info.kind == "stream":
            for instance in self._instances:
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
        if depth not in self._allowed:
            raise Unforkable(f"{self.name} cannot sleep at {depth}: {self.reason}; it can at cold")
        try:
            async with asyncio.timeout(BUSY_LIMIT_S):
                await self.quiet()
        except TimeoutError:
            raise FunctionBusy(
                f"{self.name} has had calls for {BUSY_LIMIT_S:.0f} s without a pause; "
                "sleep it when its callers are done"
            ) from None
        self._rest = depth
        await self._sink(depth)

    def start(self) -> None:
        """Begin to rise to where the function rests."""
        self._advance()

    @property
    def at_rest(self) -> bool:
        """Whether nothing more is to be waited for before calls are welcome."""
        return (
            self.failed is not None
            or self._rest not in self._allowed
            or self.depth.level <= self._rest.level
        )

    def gauges(self) -> FunctionGauges:
        """How the function stands, for a scrape."""
        instances = {depth: 0 for depth in Depth}
        for instance in self._instances:
            if instance.is_ready:
                instances[Depth.HOT if instance.hot else Depth.PREWARMED] += 1
        instances[Depth.ZYGOTE] = int(self._zygote is not None and self._zygote.is_up)
        resident = [
            resident_fraction(self.snapshot.path / segment.file)
            for segment in self.snapshot.manifest.segments
        ]
        known = [fraction for fraction in resident if fraction is not None]
        ratio = sum(known) / len(known) if known else None
        return FunctionGauges(self.name, instances, len(self._queue), ratio)

    async def close(self) -> None:
        """End all processes; queued calls fail as draining ones did."""
        self._closed = True
        self._checked.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._zygote is not None:
            self._zygote.close()
        await asyncio.gather(*(self._stop(instance) for instance in list(self._instances)))

    async def quiet(self) -> None:
        """Wait until no call runs or waits."""
        while self.in_use:
            await asyncio.shield(self._change)

    def describe(self) -> dict[str, Any]:
        """The JSON of ``GET /functions``."""
        processes = [
            {
                "pid": instance.link.pid,
                "role": "instance" if instance.hot else "prewarmed",
                "state": instance.state.name.lower(),
                "private_nbytes": private_nbytes(instance.link.pid),
            }
            for instance in self._instances
        ]
        if self._zygote is not None:
            processes.append(
                {
                    "pid": self._zygote.pid,
                    "role": "zygote",
                    "state": "up" if self._zygote.is_up else "starting",
                    "private_nbytes": private_nbytes(self._zygote.pid),
                }
            )
        state = "failed" if self.failed else "busy" if self.in_use else "ready"
        if not self.failed and self._starting:
            state = "starting"
        return {
            "name": self.name,
            "depth": self.depth,
            "state": state,
            "reason": self.failed or self.reason,
            "digest": self.snapshot.digest,
            "snapshot": str(self.snapshot.path),
            "queued": len(self._queue),
            "depths": [depth for depth in Depth if depth in self._allowed],
            "instances": processes,
        }

    # ---------------------------------------------------------------- decisions carried out

    def _advance(self) -> None:
        """Give idle instances their batches, start what is missing, set the timers anew."""
        if self._closed:
            return
        now = self._clock()
        idle = [i for i in self._instances if i.state is State.IDLE and not i.retiring]
        idle.sort(key=lambda instance: not instance.hot)
        plan = self._queue.plan(now, len(idle))
        for instance, batch in zip(idle, plan.batches, strict=False):
            self._dispatch(instance, batch, now)
        self._arm("window", plan.wake_at_s, now)
        if self._quarantined is None:
            self._start_wanted(now)
            self._look_after_depth(now)
        else:
            self._drop_queue()
        self._change.set_result(None)
        self._change = asyncio.get_running_loop().create_future()

    def _dispatch(self, instance: Instance, batch: tuple[Invocation, ...], now: float) -> None:
        timeout_s = self.settings.timeout_s
        for call in batch:
            call.timings_ms["queue"] = 1e3 * (now - call.arrived_s)
            call.timings_ms |= instance.restore_ms
        instance.restore_ms = {}
        instance.hot = True
        instance.state = State.BUSY
        instance.batch = dict(enumerate(batch))
        instance.batch_size = len(batch)
        calls = [{"id": call.id, "timeout_s": timeout_s} for call in batch]
        instance.link.send({"kind": "batch", "calls": calls}, *(call.body for call in batch))
        self._watch_time(instance)
        self._metrics.observe_batch(self.name, len(batch))

    def _watch_time(self, instance: Instance) -> None:
        """Count ``timeout_s`` from now on."""
        if instance.timer is not None:
            instance.timer.cancel()
        loop = asyncio.get_running_loop()
        instance.timer = loop.call_later(self.settings.timeout_s, self._time_out, instance)

    def _time_out(self, instance: Instance) -> None:
        """A ``predict`` cannot be interrupted from outside: its process goes."""
        log.warning(
            "%s: predict has run for more than timeout_s=%g s; its instance is replaced",
            self.name, self.settings.timeout_s, extra=self._fields(instance),
        )
        instance.timed_out = True
        instance.link.kill()

    def _start_wanted(self, now: float) -> None:
        ready = [i for i in self._instances if i.is_ready and not i.retiring]
        busy = sum(i.state is State.BUSY for i in ready)
        minimum, maximum = self.settings.instances
        wanted = instances_wanted(
            queued=len(self._queue), busy=busy, idle=len(ready) - busy, starting=self._starting,
            max_size=self._rule.max_size, minimum=minimum, maximum=maximum,
        )
        if not wanted:
            return
        if not self._health.may_start(now, self._starting):
            if self._health.failed and not ready and not self._starting:
                self._drop_queue()
            self._arm("start", self._health.next_start_s, now)
            return
        for _ in range(1 if self._health.failed else wanted):
            self._begin_start(hot=True, warm=not len(self._queue))

    def _look_after_depth(self, now: float) -> None:
        """Rise to where the function rests, or sink when it has been idle for long enough."""
        if self._moving.locked() or self._starting or self.in_use:
            return
        depth = self.depth
        if depth.level > self._rest.level and self._rest in self._allowed:
            if self._health.may_start(now):
                self._spawn(self._move(self._rest))
            else:
                self._arm("start", self._health.next_start_s, now)
            return
        goal, look_again_s = next_depth(
            depth, self._idle_since_s, now, self._config.idle_s, self._config.depth,
            self._allowed, in_use=False, minimum=self.settings.instances[0],
        )
        if goal is not depth:
            self._spawn(self._move(goal))
        self._arm("idle", look_again_s, now)

    def _arm(self, name: str, when_s: float | None, now: float) -> None:
        """Ask ``_advance`` again at ``when_s``; one timer for each purpose."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if when_s is not None:
            delay_s = max(0.0, when_s - now)
            self._timers[name] = asyncio.get_running_loop().call_later(delay_s, self._advance)

    def _refusal(self, now: float) -> FunctionFailed | None:
        if self._quarantined:
            return FunctionFailed(self._quarantined)
        alive = self._starting or any(instance.is_ready for instance in self._instances)
        if self._health.failed is None or alive or self._health.may_start(now):
            return None
        return FunctionFailed(
            f"{self.name} does not run: {self._health.failed}. It is tried again after a pause, "
            f"or at once with: zerowake wake {self.name}",
            retry_after_s=max(1, round(self._health.next_start_s - now)),
        )

    def _drop_queue(self) -> None:
        """Answer everybody who waits: the function does not run."""
        if not len(self._queue):
            return
        refusal = self._refusal(self._clock())
        if refusal is not None:
            for batch in self._queue.plan(float("inf"), len(self._queue)).batches:
                for call in batch:
                    call.fail(to_problem(refusal))

    # ---------------------------------------------------------------- depth

    async def _wake(self) -> None:
        """Have a hot instance; a command, so a function that failed gets another chance."""
        self._health.reset()
        if refusal := self._refusal(self._clock()):
            raise refusal
        ready = [i for i in self._instances if i.is_ready and not i.retiring]
        if ready:
            ready[0].hot = True
        elif not self._starting:
            self._begin_start(hot=True, warm=True)
        while self.depth is not Depth.HOT:
            if not self._starting:
                raise FunctionFailed(f"{self.name} cannot be woken: {self._last_failure}")
            await asyncio.shield(self._change)
        self._idle_since_s = self._clock()
        self._advance()

    async def _move(self, depth: Depth) -> None:
        """``_sink`` on our own account: nobody waits for it, failures are counted and logged."""
        try:
            if depth is Depth.HOT:
                self._begin_start(hot=True, warm=True)
            else:
                await self._sink(depth)
        except ZerowakeError as error:
            log.warning("%s: cannot move to %s: %s", self.name, depth, error)
        self._advance()

    async def _sink(self, depth: Depth) -> None:
        async with self._moving:
            if depth is Depth.COLD:
                zygote, self._zygote = self._zygote, None
                await self._retire_all()
                if zygote is not None:
                    zygote.close()
                    await zygote.exited
            else:
                await self._ensure_zygote()
                if depth is Depth.PREWARMED:
                    await self._ensure_prewarmed()
                else:
                    await self._retire_all()
        self._advance()

    async def _ensure_zygote(self) -> None:
        if self._zygote is None:
            try:
                await asyncio.shield(self._checked)
                base = await self._base()
                forked = await base.fork("zygote", self._spec(warm=False))
                self._zygote = ZygoteLink(
                    self.name, forked.pid, forked.socket, forked.exited, self._zygote_lost
                )
            except ZerowakeError as error:
                self._start_failed(error)
                raise
        await self._zygote_up(self._zygote)

    async def _zygote_up(self, zygote: ZygoteLink) -> None:
        try:
            header = await asyncio.shield(zygote.up)
        except Unforkable as error:
            if self._allowed is FORKABLE:
                self._allowed, self.reason = UNFORKABLE, str(error)
                log.warning("%s: sleeps only at cold: %s", self.name, error)
            raise
        except ZerowakeError as error:
            if self._zygote is zygote:
                self._zygote = None
                self._start_failed(error)
            raise
        phases_ms = {f"zygote-{phase}": ms for phase, ms in header["report"].items()}
        self._metrics.observe_restore(self.name, phases_ms)

    async def _ensure_prewarmed(self) -> None:
        """A fresh fork that has done its warm-up takes over from instances that have served.

        Serving leaves caches and heap behind; giving them back costs one fork.
        """
        worn = list(self._instances)
        if any(i.is_ready and not i.hot for i in worn):
            worn = [i for i in worn if i.hot]
        elif self._starting or self.in_use:
            return  # a call has come: it has an instance of its own
        elif (fresh := await self._begin_start(hot=False, warm=True)) is None:
            raise FunctionFailed(f"{self.name} cannot be prewarmed: {self._last_failure}")
        else:
            fresh.restore_ms = {}  # over before anybody calls
        await asyncio.gather(*map(self._retire, worn))

    async def _retire_all(self) -> None:
        await asyncio.gather(*map(self._retire, list(self._instances)))

    async def _retire(self, instance: Instance) -> None:
        """End an instance after the batch that it may be running."""
        instance.retiring = True
        if instance.state is State.BUSY:
            await asyncio.shield(instance.link.exited)
        else:
            await self._stop(instance)

    async def _stop(self, instance: Instance) -> None:
        starting = instance.state is State.STARTING
        instance.state = State.STOPPING
        if starting:
            instance.link.kill()
        else:
            instance.link.send({"kind": "stop"})
        await asyncio.wait([instance.link.exited], timeout=STOP_LIMIT_S)
        instance.link.kill()
        await asyncio.shield(instance.link.exited)

    # ---------------------------------------------------------------- processes

    def _spec(self, *, warm: bool) -> InstanceSpec:
        code_dir = self._config.code_dir
        return InstanceSpec(
            name=self.name,
            snapshot=str(self.snapshot.path),
            trusted=self._config.trusted,
            code_dir=str(code_dir) if code_dir else None,
            device=self._config.device,
            warm=warm,
            log_format=self._config.log_format,
        )

    def _begin_start(self, *, hot: bool, warm: bool) -> "asyncio.Task[Instance | None]":
        self._starting += 1
        return self._spawn(self._start(hot, warm))

    async def _start(self, hot: bool, warm: bool) -> Instance | None:
        """Fork an instance and wait until it is ready; None when it does not come to that."""
        started = self._clock()
        instance: Instance | None = None
        try:
            await asyncio.shield(self._checked)
            forked = await self._fork(warm)
            instance = Instance(forked, self._on_frame, hot)
            self._instances.append(instance)
            self._spawn(self._watch(instance))
            async with asyncio.timeout(self._config.start_timeout_s):
                report_ms = await asyncio.shield(instance.ready)
        except TimeoutError:
            limit_s = self._config.start_timeout_s
            self._start_failed(FunctionFailed(f"not ready after {limit_s:g} s; its wake hangs?"))
            if instance is not None:
                instance.link.kill()
            return None
        except ZerowakeError as error:
            if instance is None or instance.state is not State.STOPPING:
                self._start_failed(error)
            return None
        finally:
            self._starting -= 1
            asyncio.get_running_loop().call_soon(self._advance)
        now = self._clock()
        instance.restore_ms = {
            "restore": 1e3 * (now - started),
            **{f"restore-{phase}": ms for phase, ms in report_ms.items() if phase != "total"},
        }
        self._health.started_well(now)
        self._idle_since_s = now
        self._metrics.observe_restore(self.name, report_ms)
        return instance

    async def _fork(self, warm: bool) -> Forked:
        """From the function's zygote if it has one, else from the base."""
        if (zygote := self._zygote) is not None:
            try:
                await self._zygote_up(zygote)
                return await zygote.fork("instance", self._spec(warm=warm))
            except (Unforkable, ZygoteLost):
                pass  # the base can always do it, only slower
        base = await self._base()
        return await base.fork("instance", self._spec(warm=warm))

    async def _watch(self, instance: Instance) -> None:
        """Wait for the end of an instance and clear up after it."""
        status = await asyncio.shield(instance.link.exited)
        await instance.link.drained(limit_s=1.0)
        self._instances.remove(instance)
        if instance.timer is not None:
            instance.timer.cancel()
        how = exit_reason(status) if status is not None else "it ended with its zygote"
        died = InstanceDied(f"the process that ran it ended: {how}")
        if not instance.ready.done():
            instance.ready.set_exception(died)
        elif instance.is_ready and not instance.timed_out:
            log.error("%s: an instance died: %s", self.name, how, extra=self._fields(instance))
            self._metrics.instance_died(self.name)
            self._health.died(self._clock(), how)
            self._check_snapshot()
        self._end_batch(instance, died)
        self._advance()

    def _end_batch(self, instance: Instance, died: InstanceDied) -> None:
        """Decide over the calls that an instance has left unanswered.

        They run again one by one, so that the one which did it is found and ends only itself.
        """
        again = []
        calls = [call for call in instance.batch.values() if not call.done]
        for call in calls:
            call.attempts += 1
            if instance.timed_out:
                last = instance.batch_size == 1
            else:
                last = call.attempts > 1
            if not last and self.settings.retry and not call.started:
                again.append(call)
            elif instance.timed_out:
                call.fail(to_problem(PredictTimeout(
                    f"predict took longer than timeout_s={self.settings.timeout_s:g} s and was ended"
                )))
            else:
                call.fail(to_problem(died))
        instance.batch.clear()
        self._queue.retry(again)

    def _zygote_lost(self, zygote: ZygoteLink) -> None:
        if zygote.is_up:
            log.error("%s: its zygote has ended; instances live on", self.name)
            self._health.start_failed(self._clock(), "the function's zygote ended")
            self._check_snapshot()
        if self._zygote is zygote:
            self._zygote = None
        self._advance()

    def _start_failed(self, error: ZerowakeError) -> None:
        self._last_failure = str(error)
        log.error("%s: cannot start: %s", self.name, error)
        permanent = isinstance(error, SnapshotError) or (
            isinstance(error, RemoteError) and error.problem["code"] in PERMANENT
        )
        if permanent:
            self._quarantine(str(error))
        else:
            self._health.start_failed(self._clock(), str(error))

    def _check_snapshot(self) -> None:
        """After a death: a snapshot that has changed under us must not be mapped again."""
        try:
            open_snapshot(self.snapshot.path)
        except SnapshotError as error:
            self._quarantine(str(error))

    def _quarantine(self, reason: str) -> None:
        self._quarantined = f"the snapshot of {self.name} is quarantined: {reason}"
        log.error("%s", self._quarantined)
        for instance in self._instances:
            if not instance.batch:
                instance.retiring = True
                self._spawn(self._stop(instance))

    # ---------------------------------------------------------------- frames

    async def _on_frame(self, instance: Instance, frame: Frame) -> None:
        header = frame.header
        match frame.kind:
            case "ready":
                instance.state = State.IDLE
                instance.ready.set_result(header["report"])
            case "failed":
                instance.ready.set_exception(RemoteError(header["problem"]))
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

    async def _deliver(self, instance: Instance, place: int, chunk: bytes) -> None:
        """Pass on one chunk of a stream; a reader who does not read loses the stream, not others."""
        call = instance.batch[place]
        if call.done:
            return
        if instance.timer is not None:
            instance.timer.cancel()
        call.started = True
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await call.sink.item(chunk)
        except TimeoutError:
            instance.link.send({"kind": "cancel", "call": place})
            call.fail(to_problem(Cancelled(
                f"the caller has read nothing for {self.settings.timeout_s:g} s"
            )))
        self._watch_time(instance)

    def _settle(self, instance: Instance) -> None:
        now = self._clock()
        if instance.timer is not None:
            instance.timer.cancel()
        self._queue.settle(instance.batch_size, now)
        self._health.settled_well(now)
        self._idle_since_s = now
        instance.state = State.IDLE
        if instance.retiring:
            self._spawn(self._stop(instance))
        self._advance()

    # ---------------------------------------------------------------- small things

    def _fields(self, instance: Instance) -> dict[str, Any]:
        invocations = [call.id for call in instance.batch.values()]
        fields = {"function": self.name, "pid": instance.link.pid, "invocations": invocations}
        return {"fields": fields}

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
