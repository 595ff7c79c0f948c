"""One function in process, a coroutine that answers a sink: ``Functions`` for an adapter's tests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from support import function_info

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import to_problem
from zerowake.runtime.gateway.port import Lease
from zerowake.runtime.hooks import Moment
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation

Predict = Callable[[Invocation], Awaitable[None]]


async def echo(call: Invocation) -> None:
    await call.sink.item(call.body)


class FakeFunctions:
    """The function ``f``. moments: the hooks that were asked for; broken: what each of them raises."""

    def __init__(self, predict: Predict = echo, **known: Any) -> None:
        self.ready, self.draining = True, False
        self.predict = predict
        self.calls: list[Invocation] = []
        self.cancelled: list[Invocation] = []
        self.moments: list[Moment] = []
        self.broken: dict[Moment, Exception] = {}
        self.refusals: list[Exception] = []
        self.arriving: Callable[[], Awaitable[None]] | None = None
        self.waking: Callable[[], Awaitable[None]] | None = None
        self._info = function_info("f", **known)
        self._tasks: set[asyncio.Task[None]] = set()

    async def arrived(self) -> None:
        if self.arriving is not None:
            await self.arriving()

    def names(self) -> list[str]:
        return ["f"]

    def find(self, name: str) -> FunctionInfo:
        return self._info

    def submit(self, call: Invocation) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.calls.append(call)
        task = asyncio.create_task(self._run(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, call: Invocation) -> None:
        self.cancelled.append(call)

    async def sleep(self, name: str, depth: Depth) -> None:
        raise AssertionError("nothing sleeps here")

    async def wake(self, name: str) -> None:
        if self.waking is not None:
            await self.waking()

    async def hook(self, name: str, moment: Moment) -> None:
        self.moments.append(moment)
        if moment in self.broken:
            raise self.broken[moment]

    def lend(self, name: str, lease: Lease) -> bool:
        return False

    def recall(self, name: str) -> None:
        pass

    def describe(self) -> list[dict[str, Any]]:
        return []

    async def _run(self, call: Invocation) -> None:
        try:
            await self.predict(call)
        except Exception as error:
            call.fail(to_problem(error))
        else:
            call.finish()
