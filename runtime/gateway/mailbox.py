"""The caller's end of an invocation: a bounded buffer between the pool and one reader.

The pool puts chunks in, whoever has made the call takes them out. Knows no HTTP.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from zerowake.runtime.errors import Cancelled, RemoteError

UNREAD_CHUNKS = 16
"""How many chunks may lie unread before ``item`` waits for the reader."""


class Mailbox:
    """A ``Sink``. One task writes (item, finish, fail), one reads; ``leave`` may come from anywhere.

    then: called with the unread chunks when all is there, before the reader runs again.
    """

    __slots__ = (
        "__weakref__", "_chunks", "_problem", "_reader", "_then", "_writer", "ended", "left",
    )  # fmt: skip

    def __init__(self, then: Callable[[list[bytes]], None] | None = None) -> None:
        self._then = then
        self.ended = False
        self.left = False
        self._chunks: list[bytes] = []
        self._problem: dict[str, Any] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def item(self, chunk: bytes) -> None:
        while len(self._chunks) >= UNREAD_CHUNKS and not self.left:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if not self.left:
            self._chunks.append(chunk)
            _wake(self._reader)

    def finish(self, result: bytes | None = None) -> None:
        if result is not None and not self.left:
            self._chunks.append(result)
        self.ended = True
        if self._then is not None and self._problem is None and not self.left:
            self._then(self._chunks)
        _wake(self._reader)

    def fail(self, problem: dict[str, object]) -> None:
        self._problem = problem
        self.finish()

    def leave(self) -> None:
        """The client is gone: what comes from now on is thrown away."""
        self.left = True
        self._chunks.clear()
        _wake(self._reader)
        _wake(self._writer)

    async def read(self) -> list[bytes]:
        """The unread chunks, waiting for at least one; [] when the call has ended well.

        Raises RemoteError when it has not, after the chunks that came before; Cancelled when the
        client has left.
        """
        while not (self._chunks or self.ended or self.left):
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self.left:
            raise Cancelled("the client left before its reply")
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            _wake(self._writer)
            return chunks
        if self._problem is not None:
            raise RemoteError(self._problem)
        return []


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
