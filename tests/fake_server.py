"""What scripted HTTP servers on one event loop share: connections, and waiting for what they have seen."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any


class FakeServer:
    """``_request`` answers one request; ``_note`` tells who waits in ``until``.

    open: the connections that are.
    """

    patience_s = 60.0  # nothing here should take so long; it ends a test that hangs

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self.open: set[asyncio.StreamWriter] = set()

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(self.patience_s), self._changed:
            await self._changed.wait_for(what)

    def cut(self) -> None:
        """Break all connections off."""
        for writer in self.open:
            writer.transport.abort()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            while True:
                await self._request(reader, writer)
        self.open.discard(writer)
        writer.transport.abort()
        await self._note()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError
