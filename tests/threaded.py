"""An asyncio server of a test on a loop of its own, for tests that do not run in one."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar

from support import PATIENCE_S

T = TypeVar("T")


class Server(Protocol):
    def running(self) -> contextlib.AbstractAsyncContextManager[Any]: ...


S = TypeVar("S", bound=Server)


class Threaded(Generic[S]):
    """``server``, running until ``close``. Only ``do`` may change it."""

    server: S

    def __init__(self, make: type[S]) -> None:
        started = threading.Event()

        async def main() -> None:
            self._end, self._loop = asyncio.Event(), asyncio.get_running_loop()
            self.server = make()
            async with self.server.running():
                started.set()
                await self._end.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self._thread.start()
        assert started.wait(PATIENCE_S)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine of the server gives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE_S)
