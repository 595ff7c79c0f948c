"""A ``Functions`` in process, whose functions are coroutines that answer a sink; and a real server.

Tests that are coroutines run in the loop of their ``world``, where time stands still.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from scripted import StillLoop, World
from support import function_info

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import UnknownFunction, to_problem
from zerowake.runtime.gateway.app import create_app
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics

Answer = Callable[[Invocation], Awaitable[None]]


async def echo(call: Invocation) -> None:
    call.timings_ms.update(queue=2.0, predict=40.0)
    await call.sink.item(call.body)
    call.sink.finish()


class FakeFunctions:
    """What a test says it is; ``calls``, ``cancelled`` and ``orders`` tell what was asked of it."""

    def __init__(self) -> None:
        self.ready = True
        self.draining = False
        self.reason: str | None = None
        self.refusal: Exception | None = None
        self.calls: list[Invocation] = []
        self.cancelled: asyncio.Queue[Invocation] = asyncio.Queue()
        self.orders: list[tuple[str, Depth]] = []
        self.infos: dict[str, FunctionInfo] = {}
        self._answers: dict[str, Answer] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def serve(self, name: str, answer: Answer = echo, **known: Any) -> None:
        self.infos[name] = function_info(name, **known)
        self._answers[name] = answer

    async def arrived(self) -> None:
        """They are."""

    def names(self) -> list[str]:
        return list(self.infos)

    def find(self, name: str) -> FunctionInfo:
        if name not in self.infos:
            raise UnknownFunction(f"there is no function {name!r}; known: {', '.join(self.infos)}")
        return self.infos[name]

    def submit(self, call: Invocation) -> None:
        if self.refusal is not None:
            raise self.refusal
        call.depth = Depth.PREWARMED
        self.calls.append(call)
        task = asyncio.ensure_future(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Invocation) -> None:
        try:
            await self._answers[call.function](call)
        except Exception as error:
            call.sink.fail(to_problem(error))

    def cancel(self, call: Invocation) -> None:
        self.cancelled.put_nowait(call)

    async def sleep(self, name: str, depth: Depth) -> None:
        self.find(name)
        if self.refusal is not None:
            raise self.refusal
        self.orders.append((name, depth))

    async def wake(self, name: str) -> None:
        await self.sleep(name, Depth.HOT)

    def describe(self) -> list[dict[str, Any]]:
        state = {"state": "failed" if self.reason else "ready", "reason": self.reason}
        return [{"name": name, "depth": "hot", "processes": [], **state} for name in self.infos]


class Edge:
    """The app under test, and clients of it."""

    def __init__(self) -> None:
        self.functions = FakeFunctions()
        self.metrics = Metrics()
        self.options: dict[str, Any] = {
            "version": "1.2.3",
            "max_body_nbytes": 16 << 20,
            "with_orders": True,
        }

    @property
    def app(self) -> Any:
        return create_app(self.functions, self.metrics, **self.options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request in process, in a loop of its own."""

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    @contextlib.asynccontextmanager
    async def listening(self, app: Any = None) -> AsyncIterator[int]:
        """The app, or another around it, on a real server; gives the port of 127.0.0.1."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(
                uvicorn.Config(app or self.app, http="httptools", ws="none", log_config=None)
            )
            # Clients need not wait until it accepts: the kernel queues them from here on.
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                await serving

    def count(self, outcome: str, function: str = "f") -> float:
        wanted = f'zerowake_invocations_total{{function="{function}",outcome="{outcome}"}} '
        lines = self.metrics.render()[0].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


@pytest.fixture
def edge() -> Edge:
    return Edge()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asyncio.Runner(loop_factory=StillLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, StillLoop)
        world = World(loop, tmp_path)
        runner.run(world.open())
        yield world
        runner.run(world.close())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in the loop of its ``world``."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    arguments["world"].loop.run_until_complete(pyfuncitem.obj(**arguments))
    return True
