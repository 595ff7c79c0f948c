"""The processes of one function: its zygote and its instances, from fork to exit.

Starts, stops and watches them. Whether they can be started at all, and why not, is kept by
``Standing``; what an instance says about calls, and when to start or stop one, is its listener's
business.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from zerowake.runtime.config import InstanceSpec, ServeConfig
from zerowake.runtime.errors import (
    FunctionFailed,
    InstanceDied,
    RemoteError,
    Unforkable,
    ZygoteLost,
    to_problem,
)
from zerowake.runtime.forms import FormName
from zerowake.runtime.gateway.instances import Instance, State
from zerowake.runtime.gateway.standing import Standing
from zerowake.runtime.gateway.zygote_link import Forked, ZygoteLink
from zerowake.runtime.hooks import Moment
from zerowake.runtime.metrics import Metrics
from zerowake.runtime.process import exit_reason, reap_orphans
from zerowake.runtime.wire import Frame
from zerowake.snapshot.errors import SnapshotError, ZerowakeError
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import check_digests, open_snapshot

log = logging.getLogger("zerowake.gateway")
T = TypeVar("T")

STOP_LIMIT_S = 5.0  # how long a stopped instance may take before it is killed


class Listener(Protocol):
    """Who is told what happens to the processes."""

    def on_frame(self, instance: Instance, frame: Frame) -> Awaitable[None] | None:
        """A frame about calls; what this returns is awaited before the next one is looked at."""

    def runs_as(self, form: FormName, reason: str) -> None:
        """An instance is ready, in this form; ``reason`` as in ``Chosen``."""

    def on_exit(self, instance: Instance, died: InstanceDied) -> None:
        """A process has ended, whether it was to or not; ``died`` says how."""

    def changed(self) -> None:
        """Something else has changed: ready, failed, lost."""


class Processes:
    """What runs for one function.

    Parameters
    ----------
    base: returns the base zygote, waiting for it if it is being started again.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        config: ServeConfig,
        base: Callable[[], Coroutine[Any, Any, ZygoteLink]],
        metrics: Metrics,
        listener: Listener,
        clock: Callable[[], float],
    ) -> None:
        self.name = snapshot.manifest.name
        self.instances: list[Instance] = []
        self.starting = 0
        self.standing = Standing(self.name, clock, self._end_all, orders=not config.alone)
        self._path, self._digest = snapshot.path, snapshot.digest
        self._config = config
        self._base = base
        self._metrics = metrics
        self._listener = listener
        self._clock = clock
        self._zygote: ZygoteLink | None = None
        self._rehearse = True  # let the zygote make a warm-up call, which its forks share
        self._tasks: set[asyncio.Task[Any]] = set()
        # Weights are hashed beside the first restore, which checks all else that it reads; nothing
        # is answered before that is done. A stamp makes the second time free.
        self._checked = asyncio.create_task(asyncio.to_thread(check_digests, snapshot))
        self._checked.add_done_callback(self._on_checked)
        self.base_is_up = False
        self._spawn(self._await_base())

    @property
    def ready(self) -> list[Instance]:
        """Instances that take calls."""
        return [i for i in self.instances if i.is_ready and not i.retiring]

    @property
    def zygote_is_up(self) -> bool:
        return self._zygote is not None and self._zygote.is_up

    def refusal(self) -> FunctionFailed | None:
        """Why a call cannot be taken now."""
        return self.standing.refusal(lives=bool(self.starting or self.ready))

    # ---------------------------------------------------------------- zygote

    async def ensure_zygote(self) -> None:
        """Have the function's zygote. Raises Unforkable, or why it does not start."""
        limit_s = self._config.start_timeout_s
        await self._hashed()
        try:
            async with asyncio.timeout(limit_s):
                if self._zygote is None:
                    self._zygote = await self._fork_zygote()
                with self.standing.slow_told("an import", limit_s):
                    await self._zygote_up(self._zygote)
        except TimeoutError:
            late = FunctionFailed(f"its zygote is not up after {limit_s:g} s; does an import hang?")
            self.standing.start_failed(late)
            if self._zygote is not None:
                self._zygote.kill()
            raise late from None
        except Unforkable as error:
            if not error.rehearsed:
                raise
            log.info("%s: its zygote makes no warm-up call: %s", self.name, error)
            self._zygote, self._rehearse = None, False
            await self.ensure_zygote()

    async def _fork_zygote(self) -> ZygoteLink:
        try:
            self._checked.result()
            base = await self._base()
            forked = await base.fork("zygote", self._spec(warm=self._rehearse))
        except (ZerowakeError, OSError) as error:
            failure = self.standing.start_failed(error)
            raise failure from error
        return ZygoteLink(self.name, forked.pid, forked.socket, forked.exited, self._zygote_lost)

    async def drop_zygote(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()
            await asyncio.shield(zygote.exited)

    async def _zygote_up(self, zygote: ZygoteLink) -> None:
        try:
            header = await asyncio.shield(zygote.up)
        except Unforkable as error:
            if not error.rehearsed:
                self.standing.cannot_fork(str(error))
            raise
        except ZerowakeError as error:
            self.standing.start_failed(error)
            if self._zygote is zygote:
                self._zygote = None
            raise
        phases_ms = {f"zygote-{phase}": ms for phase, ms in header["report"].items()}
        self._metrics.observe_restore(self.name, phases_ms)

    def _zygote_lost(self, zygote: ZygoteLink) -> None:
        if zygote.is_up:
            log.error("%s: its zygote has ended; instances live on", self.name)
            self.standing.health.start_failed(self._clock(), "the function's zygote ended")
            self._spawn(self._check_snapshot())
        if self._zygote is zygote:
            self._zygote = None
        self._listener.changed()

    # ---------------------------------------------------------------- instances

    def start(self, *, hot: bool, warm: bool) -> "asyncio.Task[Instance | None]":
        """Begin to start an instance, counted in ``starting`` from now on.

        The task ends with the instance once it is ready, with None when it does not come to that;
        ``standing`` then says why.
        """
        self.starting += 1
        return self._spawn(self._start(hot, warm))

    async def retire(self, instance: Instance) -> None:
        """End an instance after the batch that it may be running."""
        instance.retiring = True
        if instance.state is State.BUSY:
            await asyncio.shield(instance.link.exited)
        else:
            await self._stop(instance)

    def retire_later(self, instance: Instance) -> None:
        self._spawn(self.retire(instance))

    async def hook(self, moment: Moment) -> None:
        """Have all instances run the author's hooks. Raises RemoteError with what went wrong.

        A restored file system may be another one: the snapshot is looked at again first.
        """
        if moment is Moment.AFTER_RESTORE:
            await self._check_snapshot()
        if self.standing.quarantined is None:
            await asyncio.gather(*(instance.hook(moment) for instance in self.ready))

    async def close(self) -> None:
        """End all of them."""
        self._checked.cancel()
        for task in self._tasks:
            task.cancel()
        if self._zygote is not None:
            self._zygote.close()
        for instance in self.instances:
            if instance.state is State.BUSY:  # it has had its time
                instance.link.kill()
        await asyncio.gather(*(self._stop(instance) for instance in list(self.instances)))

    def describe(self) -> list[dict[str, Any]]:
        """pid, role and state of each."""
        rows = [
            (i.link.pid, "instance" if i.hot else "prewarmed", i.state.value)
            for i in self.instances
        ]
        if (zygote := self._zygote) is not None:
            rows.append((zygote.pid, "zygote", "up" if zygote.is_up else "starting"))
        return [{"pid": pid, "role": role, "state": state} for pid, role, state in rows]

    async def _start(self, hot: bool, warm: bool) -> Instance | None:
        started, limit_s = self._clock(), self._config.start_timeout_s
        instance: Instance | None = None
        try:
            if self._checked.done():
                self._checked.result()
            async with asyncio.timeout(limit_s):
                instance = Instance(await self._fork(warm), self._on_frame, hot)
                self.instances.append(instance)
                self._spawn(self._watch(instance))
                with self.standing.slow_told("wake() or an import", limit_s):
                    await instance.restored.wait()
            report_ms = await asyncio.shield(instance.ready)
        except TimeoutError:
            late = f"not ready after {limit_s:g} s; does wake() or an import hang?"
            self.standing.start_failed(FunctionFailed(late))
            if instance is not None:
                instance.state = State.STOPPING  # a late ``ready`` does not make it one
                instance.link.kill()
            return None
        except (ZerowakeError, OSError) as error:
            if instance is None or instance.state is not State.STOPPING:
                self.standing.start_failed(error)
            return None
        finally:
            self.starting -= 1
            asyncio.get_running_loop().call_soon(self._listener.changed)
        now = self._clock()
        phases_ms = {f"restore-{phase}": ms for phase, ms in report_ms.items() if phase != "total"}
        instance.ready_s = now
        instance.restore_ms = {"restore": 1e3 * (now - started), **phases_ms}
        self.standing.health.started_well()
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

    def _on_frame(self, instance: Instance, frame: Frame) -> Awaitable[None] | None:
        match frame.kind:
            case "ready":
                return self._on_ready(instance, frame)
            case "failed":
                instance.ready.set_exception(RemoteError(frame.header["problem"]))
            case "hooked":
                instance.hooked(frame.header.get("problem"))
            case _:
                return self._listener.on_frame(instance, frame)
        return None

    async def _on_ready(self, instance: Instance, frame: Frame) -> None:
        instance.restored.set()
        await self._hashed()
        if instance.ready.done() or self._checked.cancelled():  # nobody waits for it any more
            return
        if (error := self._checked.exception()) is not None:
            instance.ready.set_exception(error)
            return
        if instance.state is State.STARTING:  # and not stopped meanwhile
            instance.state = State.IDLE
        self._listener.runs_as(FormName(frame.header["form"]), frame.header["reason"])
        instance.ready.set_result(frame.header["report"])

    async def _watch(self, instance: Instance) -> None:
        """Wait for the end of an instance and clear up after it."""
        status = await asyncio.shield(instance.link.exited)
        await instance.link.drained(limit_s=1.0)
        if was_ready := instance.is_ready:
            instance.state = State.STOPPING  # it takes no more calls
        instance.stop_timer()
        instance.hooked(to_problem(InstanceDied("the process that ran its hooks has ended")))
        how = exit_reason(status) if status is not None else "it ended with its zygote"
        died = InstanceDied(f"the process that ran it ended: {how}")
        if not instance.ready.done():
            instance.ready.set_exception(died)
        elif was_ready and not instance.timed_out:
            log.error(
                "%s: an instance died: %s", self.name, how, extra=instance.log_fields(self.name)
            )
            self._metrics.instance_died(self.name)
            if not instance.poisoned:
                self.standing.health.died(self._clock(), how)
            await self._check_snapshot()
        self.instances.remove(instance)  # not before: until now its calls are in use
        self._listener.on_exit(instance, died)
        reap_orphans()

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

    # ---------------------------------------------------------------- what goes wrong

    async def _hashed(self) -> None:
        """Until the snapshot is, well or not; without a limit: a slow disk takes as long as it takes."""
        if not self._checked.done():
            await asyncio.wait([self._checked])

    async def _await_base(self) -> None:
        """Until the base is up nothing can start; calls that come before then are served first."""
        with contextlib.suppress(ZygoteLost):
            await self._base()
        self.base_is_up = True
        self._listener.changed()

    def _on_checked(self, checked: "asyncio.Task[None]") -> None:
        """A damaged snapshot is refused at once, not when somebody calls."""
        if not checked.cancelled() and (error := checked.exception()) is not None:
            self.standing.quarantine(str(error))
            self._listener.changed()

    async def _check_snapshot(self) -> None:
        """After a death: a snapshot that has changed under us must not be mapped again."""
        try:
            found = (await asyncio.to_thread(open_snapshot, self._path)).digest
        except (SnapshotError, OSError) as error:
            self.standing.quarantine(str(error))
        else:
            if found != self._digest:
                self.standing.quarantine(f"another one lies at {self._path} now: {found}")

    def _end_all(self) -> None:
        """The snapshot is not to be used any more."""
        for instance in self.instances:
            self.retire_later(instance)
        self._spawn(self.drop_zygote())

    # ---------------------------------------------------------------- small things

    def _spec(self, *, warm: bool) -> InstanceSpec:
        code_dir = self._config.code_dir
        return InstanceSpec(
            name=self.name,
            digest=self._digest,
            snapshot=str(self._path),
            trusted=self._config.trusted,
            code_dir=str(code_dir) if code_dir else None,
            device=self._config.device,
            warm=warm,
            log_format=self._config.log_format,
        )

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
