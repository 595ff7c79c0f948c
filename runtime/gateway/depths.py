"""How deep one function sleeps, and how it gets from one depth to another.

Knows what a depth is made of (an instance, its warm-up, a zygote). When to sink is decided by
``policy.sleep``; what starts and ends is ``Processes``' business.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import FunctionBusy, FunctionFailed, Unforkable
from zerowake.runtime.gateway.instances import Instance
from zerowake.runtime.gateway.processes import Processes
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.policy.sleep import next_depth
from zerowake.snapshot.errors import ZerowakeError

log = logging.getLogger("zerowake.gateway")

BUSY_LIMIT_S = 30.0  # how long a sleep command waits for running calls


class Traffic(Protocol):
    """The function's calls, as far as its sleep depends on them."""

    @property
    def in_use(self) -> bool:
        """Whether a call runs or waits."""
        ...

    async def quiet(self) -> None:
        """Wait until no call runs or waits."""

    async def next_change(self) -> None:
        """Wait until something has happened to calls or processes."""

    def changed(self) -> None:
        """Something has happened: decide anew."""


class Depths:
    """Where one function is, and where it is to be. ``clock``: monotonic seconds."""

    def __init__(
        self,
        info: FunctionInfo,
        config: ServeConfig,
        processes: Processes,
        traffic: Traffic,
        clock: Callable[[], float],
    ) -> None:
        self._info = info
        self._config = config
        self._processes = processes
        self._standing = processes.standing
        self._traffic = traffic
        self._clock = clock
        self._rest = config.depth  # where the function is to be when nothing happens
        self._idle_since_s: float | None = None
        self._moving = asyncio.Lock()  # one change of depth at a time
        self._mover: asyncio.Task[None] | None = None

    @property
    def now(self) -> Depth:
        """Where the function is."""
        ready = False
        for instance in self._processes.instances:
            if instance.is_ready:
                if instance.hot:
                    return Depth.HOT
                ready = True
        if ready:
            return Depth.PREWARMED
        return Depth.ZYGOTE if self._processes.zygote_is_up else Depth.COLD

    @property
    def at_rest(self) -> bool:
        """Whether it is where it is to be without calls, or as near as it can come."""
        return self._rest not in self._standing.allowed or self.now.level <= self._rest.level

    def call_came(self) -> None:
        """A call undoes what a command has said about where to rest."""
        self._rest = self._config.depth

    def calls_ended(self, now_s: float) -> None:
        """An instance has answered its batch: idle time is counted anew."""
        self._idle_since_s = now_s

    def look_after(self, now_s: float) -> float | None:
        """Rise to where the function rests, or sink when it has been idle for long enough.

        Returns when to look again, in monotonic seconds; None: not before something happens.
        """
        moving = self._moving.locked() or self._processes.starting
        if moving or self._traffic.in_use or not self._processes.base_is_up:
            return None
        depth, standing = self.now, self._standing
        if depth.level > self._rest.level and self._rest in standing.allowed:
            if not standing.health.may_start(now_s):
                return standing.health.next_start_s
            self._move_later(self._rest)
            return None
        goal, look_again_s = next_depth(
            depth,
            self._idle_since_s,
            now_s,
            self._config.idle_s,
            floor=self._config.depth,
            allowed=standing.allowed,
            minimum=self._info.settings.instances[0],
        )
        if goal is not depth:
            self._move_later(goal)
        return look_again_s

    async def bring_to(self, depth: Depth) -> None:
        """Sink or rise to ``depth`` on command; returns when the function is there.

        Raises FunctionFailed, FunctionBusy (calls keep coming) or Unforkable.
        """
        name = self._info.name
        if depth is Depth.HOT:
            await self._wake()
            return
        if depth not in self._standing.allowed:
            reason = self._standing.unforkable
            raise Unforkable(f"{name} cannot sleep at {depth}: {reason}; it can at cold")
        if (instances := self._info.settings.instances)[0]:
            raise FunctionBusy(f"{name} keeps {instances[0]} instance(s) awake ({instances=})")
        try:
            async with asyncio.timeout(BUSY_LIMIT_S):
                await self._traffic.quiet()
        except TimeoutError:
            raise FunctionBusy(
                f"{name} has had calls for {BUSY_LIMIT_S:.0f} s without a pause; "
                "sleep it when its callers are done"
            ) from None
        self._rest = depth
        await self._move(depth)

    def close(self) -> None:
        if self._mover is not None:
            self._mover.cancel()

    async def _wake(self) -> None:
        """Have a hot instance; a command, so a function that failed gets another chance."""
        processes = self._processes
        self._standing.health.reset()
        if refusal := processes.refusal():
            raise refusal
        if not processes.ready and not processes.starting:
            processes.start(hot=True, warm=True)
        while self.now is not Depth.HOT:
            if ready := processes.ready:  # perhaps one that was being prewarmed
                ready[0].hot = True
                break
            if not processes.starting:
                failure = self._standing.last_failure
                raise FunctionFailed(f"{self._info.name} cannot be woken: {failure}")
            await self._traffic.next_change()
        self._idle_since_s = self._clock()
        self._traffic.changed()

    def _move_later(self, depth: Depth) -> None:
        """``_move`` on our own account: nobody waits for it, failures are counted and logged."""

        async def move() -> None:
            try:
                await self._move(depth)
            except ZerowakeError as error:
                log.warning("%s: cannot move to %s: %s", self._info.name, depth, error)
                self._traffic.changed()

        self._mover = asyncio.create_task(move())

    async def _move(self, depth: Depth) -> None:
        processes = self._processes
        async with self._moving:
            match depth:
                case Depth.HOT:
                    await processes.start(hot=True, warm=True)
                case Depth.PREWARMED:
                    await processes.ensure_zygote()
                    await self._ensure_prewarmed()
                case Depth.ZYGOTE:
                    await processes.ensure_zygote()
                    await self._retire(processes.instances)
                case Depth.COLD:
                    await self._retire(processes.instances)
                    await processes.drop_zygote()
        self._idle_since_s = self._idle_since_s or self._clock()
        self._traffic.changed()

    async def _ensure_prewarmed(self) -> None:
        """A fresh fork that has done its warm-up takes over from instances that have served.

        Serving leaves caches and heap behind; giving them back costs one fork.
        """
        processes = self._processes
        instances = list(processes.instances)
        if not any(i.is_ready and not i.hot for i in instances):
            if processes.starting or self._traffic.in_use:
                return  # a call has come: it has an instance of its own
            fresh = await processes.start(hot=False, warm=True)
            if fresh is None:
                failure = self._standing.last_failure
                raise FunctionFailed(f"{self._info.name} cannot be prewarmed: {failure}")
        await self._retire(i for i in instances if i.hot)

    async def _retire(self, instances: Iterable[Instance]) -> None:
        await asyncio.gather(*map(self._processes.retire, list(instances)))
