"""The base of adapters that ask their platform for calls: a start, polls, and an orderly end.

A platform's class polls inside ``_unless_drained`` and answers outside of it: once the process is to
end, polls that bring nothing are given up, and what a poll has begun to bring is still answered.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, ClassVar, Protocol, TypeVar

from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.port import Functions

log = logging.getLogger("zerowake.adapters")
T = TypeVar("T")


class Poll(Protocol):
    """The connection that a poll waits on."""

    @property
    def idle(self) -> bool:
        """Whether the poll may be cancelled: nothing of its answer has arrived yet."""
        ...


class Pull:
    """What an ``Adapter`` that polls has beside its protocol."""

    many_connections: ClassVar[bool] = False

    def __init__(self) -> None:
        self._draining = False
        self._waits: dict[asyncio.Task[Any], Poll | None] = {}
        self._given_up: set[asyncio.Task[Any]] = set()

    def open(self) -> None:
        """Nothing listens; the platform is asked when there is something to answer with."""

    def drain(self) -> None:
        self._draining = True
        for wait, poll in list(self._waits.items()):
            if poll is None or poll.idle:
                self._give_up(wait)

    def close(self) -> None:
        for wait in self._waits:  # one that had begun to bring something, and then broke off
            self._give_up(wait)

    def _give_up(self, wait: asyncio.Task[Any]) -> None:
        if wait not in self._given_up:
            self._given_up.add(wait)
            wait.cancel()

    async def _until_up(self, functions: Functions, limit_s: float | None = None) -> None:
        """Wait for the functions to be here and up, or ``limit_s`` to be over, or the end.

        Raises FunctionFailed when one cannot be fetched, or start.
        """

        async def up() -> None:
            await functions.arrived()
            for name in functions.names():
                await functions.wake(name)

        try:
            async with asyncio.timeout(limit_s):
                await self._unless_drained(up())
        except TimeoutError:
            log.warning("not up after %g s: the first call waits for it", limit_s)

    async def _unless_drained(
        self, work: Coroutine[Any, Any, T], poll: Poll | None = None, *, begun: bool = False
    ) -> T | None:
        """What ``work`` gives; None once we are to end, unless ``poll`` has begun to bring it.

        begun: it had when this was called. It runs in the task that asks: one of its own cost each
        invocation of Lambda 30 us.
        """
        if self._draining and not begun:
            work.close()
            return None
        task = asyncio.current_task()
        assert task is not None
        self._waits[task] = poll
        try:
            return await work
        except asyncio.CancelledError:
            if not self._draining or task not in self._given_up or task.cancelling() > 1:
                raise  # it is all of the task that is to end
            return None
        finally:
            del self._waits[task]
            if task in self._given_up:
                self._given_up.remove(task)
                task.uncancel()


def number(name: str, text: str) -> int:
    """The number of 1 or more that the variable ``name`` holds. Raises ConfigError."""
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{name} is {text!r:.40}; it must be a number of 1 or more")
    return int(text)
