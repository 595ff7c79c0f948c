"""The base of adapters that ask their platform for calls: a start, polls, and an orderly end.

A platform's class polls inside ``_unless_drained`` and answers outside of it: once the process is to
end, polls that bring nothing are given up, and what a poll has begun to bring is still answered.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

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

    def __init__(self) -> None:
        self._draining = False
        self._waits: dict[asyncio.Task[Any], Poll | None] = {}

    def open(self) -> None:
        """Nothing listens; the platform is asked when there is something to answer with."""

    def drain(self) -> None:
        self._draining = True
        for wait, poll in list(self._waits.items()):
            if poll is None or poll.idle:
                wait.cancel()

    def close(self) -> None:
        for wait in self._waits:  # one that had begun to bring something, and then broke off
            wait.cancel()

    async def _until_up(
        self, functions: Functions, name: str, limit_s: float | None = None
    ) -> None:
        """Wait for the function to be up, or ``limit_s`` to be over, or the end.

        Raises FunctionFailed when it cannot start.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self._unless_drained(functions.wake(name))
        except TimeoutError:
            log.warning("%s is not up after %g s: its first call waits for it", name, limit_s)

    async def _unless_drained(
        self, work: Coroutine[Any, Any, T], poll: Poll | None = None
    ) -> T | None:
        """What ``work`` gives; None once we are to end, unless ``poll`` has begun to bring it."""
        wait = asyncio.create_task(work)
        self._waits[wait] = poll
        if self._draining:
            wait.cancel()
        try:
            return await wait
        except asyncio.CancelledError:
            if not self._draining:
                raise
            return None
        finally:
            del self._waits[wait]


def number(name: str, text: str) -> int:
    """The number of 1 or more that the variable ``name`` holds. Raises ConfigError."""
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{name} is {text!r:.40}; it must be a number of 1 or more")
    return int(text)
