"""All functions of one gateway, and the base zygote that they share.

The pool is what the HTTP edge (and every platform adapter) talks to; it implements ``port.Functions``.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import Draining, FunctionFailed, UnknownFunction
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.opening import Opened, open_target
from zerowake.runtime.gateway.port import Lease
from zerowake.runtime.gateway.served import Served
from zerowake.runtime.gateway.zygote_link import ZygoteLink, adopt, mark_seen
from zerowake.runtime.hooks import Moment
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics
from zerowake.runtime.policy.lifecycle import start_delay_s
from zerowake.snapshot.errors import ZerowakeError

log = logging.getLogger("zerowake.gateway")


class Base:
    """The link to the base zygote, and its restart when it is lost."""

    def __init__(self, base: BaseProcess) -> None:
        self._process = base
        self._link: ZygoteLink | None = None
        self._losses = 0
        self._restarting = asyncio.Lock()

    async def link(self) -> ZygoteLink:
        """The base zygote, once it is up. Raises ZygoteLost when it ends before."""
        async with self._restarting:
            if self._link is None or self._link.lost:
                if self._link is not None and not self._link.became:
                    self._losses += 1
                    await asyncio.sleep(start_delay_s(self._losses))
                if self._link is not None or not self._process.started:
                    self._process.start()
                exited: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
                adopt(self._process.pid, exited)
                self._link = ZygoteLink(
                    "base", self._process.pid, self._process.socket, exited, self._lost
                )
        link = self._link
        await asyncio.shield(link.up)
        self._losses = 0
        return link

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
        self._process.close()

    def _lost(self, link: ZygoteLink) -> None:
        if not link.became:
            log.error("the base zygote has ended; it is started again when it is needed")


class Pool:
    """The functions being served, by name."""

    def __init__(
        self, config: ServeConfig, bases: Mapping[Flavour, BaseProcess], metrics: Metrics
    ) -> None:
        self._config = config
        self._bases = {flavour: Base(base) for flavour, base in bases.items()}
        self._metrics = metrics
        self._served: dict[str, Served] = {}
        self._retired: dict[asyncio.Task[None], Served] = {}
        self._arrival: asyncio.Task[None] | None = None
        self.draining = False
        metrics.watch(lambda: [served.gauges() for served in self._served.values()])

    def serve(self, opened: Opened) -> None:
        """Serve a snapshot, in place of the function that had its name, if one had.

        The old function finishes what it has been given and is then closed.
        """
        if opened.form.reason:
            level = logging.WARNING if opened.form.damaged else logging.INFO
            log.log(level, "%s runs eagerly: %s", opened.info.name, opened.form.reason)
        self._metrics.observe_form(opened.info.name, opened.form.name, opened.form.reason)
        base = self._bases[opened.flavour]
        served = Served(opened, self._config, base.link, self._metrics)
        old = self._served.get(served.name)
        self._served[served.name] = served
        served.changed()
        if old is not None:
            self._retire(old)

    def expect(self, arrival: "asyncio.Task[None]") -> None:
        """Functions are on their way until it is done."""
        self._arrival = arrival
        arrival.add_done_callback(mark_seen)

    async def arrived(self) -> None:
        if self._arrival is None:
            return
        try:
            await asyncio.shield(self._arrival)
        except ZerowakeError as error:  # of whoever serves it, not of who calls it
            if isinstance(error, Draining):
                raise
            raise FunctionFailed(f"the function cannot be served: {error}") from error

    async def over(self) -> FunctionFailed:
        """Wait until the one function that is served can never run again; why."""
        await self.arrived()
        (served,) = self._served.values()
        return await served.over()

    async def load(self, target: str, name: str) -> None:
        opened = await asyncio.to_thread(open_target, target, self._config)
        self.serve(opened.named(name))
        try:
            await self.wake(name)
        except BaseException:  # also when whoever wanted it has left
            self._retire(self._served.pop(name))
            raise

    async def remove(self, name: str) -> None:
        self._find(name)
        await asyncio.shield(self._retire(self._served.pop(name)))

    @property
    def ready(self) -> bool:
        served = self._served.values()
        if self.draining or (served and all(each.failed for each in served)):
            return False
        if self._arrival is not None and not self._arrival.done():
            return False
        return all(each.at_rest for each in served)

    def names(self) -> list[str]:
        return list(self._served)

    def find(self, name: str) -> FunctionInfo:
        return self._find(name).info

    def submit(self, call: Invocation) -> None:
        if self.draining:
            raise Draining("the gateway is shutting down; send the call to another one")
        self._find(call.function).submit(call)

    def cancel(self, call: Invocation) -> None:
        for served in (*self._retired.values(), *self._served.values()):
            if served.name == call.function:  # whichever of them has it
                served.cancel(call)

    async def sleep(self, name: str, depth: Depth) -> None:
        await self._find(name).bring_to(depth)

    async def wake(self, name: str) -> None:
        await self._find(name).bring_to(Depth.HOT)

    async def hook(self, name: str, moment: Moment) -> None:
        await self._find(name).hook(moment)

    def lend(self, name: str, lease: Lease) -> bool:
        return not self.draining and self._find(name).lend(lease)

    def recall(self, name: str) -> None:
        self._find(name).recall()

    def digest(self, name: str) -> str:
        """The snapshot that is served under ``name``."""
        return self._find(name).digest

    def describe(self) -> list[dict[str, Any]]:
        return [served.describe() for served in self._served.values()]

    async def drain(self, limit_s: float) -> None:
        """Refuse new calls and wait until those under way have ended, at most ``limit_s``."""
        self.draining = True
        everyone = [served.quiet() for served in self._served.values()]
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*everyone, *map(asyncio.shield, self._retired))
        except TimeoutError:
            log.warning("drain: calls still run after %g s; they are ended", limit_s)

    async def close(self) -> None:
        everyone = (*self._retired.values(), *self._served.values())
        await asyncio.gather(*(served.close() for served in everyone))
        for base in self._bases.values():
            base.close()

    def _retire(self, old: Served) -> "asyncio.Task[None]":
        """Close it when it has done what it was given."""
        task = asyncio.create_task(_retire(old))
        self._retired[task] = old
        task.add_done_callback(self._retired.pop)
        return task

    def _find(self, name: str) -> Served:
        if served := self._served.get(name):
            return served
        from zerowake.runtime.nodes import nearest  # only a mistake needs it

        known = sorted(self._served)
        raise UnknownFunction(
            f"there is no function {name!r}{nearest(name, known)}; served are: "
            f"{', '.join(known) or 'none'}"
        )


async def _retire(old: Served) -> None:
    await old.quiet()
    await old.close()
