"""The gateway's end of an instance's socket.

Frames in, callbacks out. What to do about any of it is decided by ``processes`` and ``served``.
"""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

from zerowake.runtime.gateway.zygote_link import Forked, kill
from zerowake.runtime.wire import READ_NBYTES, Decoder, Frame, encode

log = logging.getLogger("zerowake.gateway")

REST_S = 0.01


class InstanceLink(asyncio.Protocol):
    """The socket of one instance. What ``on_frame`` returns for a frame is awaited before the next
    frame is looked at, which holds back a sender; None for one that is dealt with.

    A protocol and no stream: most frames are dealt with where they arrive, and a task that is woken
    for each of them cost a call 50 us.
    """

    def __init__(self, forked: Forked, on_frame: Callable[[Frame], Awaitable[None] | None]) -> None:
        self.pid = forked.pid
        self.exited = forked.exited
        self._socket = forked.socket
        self._on_frame = on_frame
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._handling: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._rest: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening = asyncio.create_task(self._open(forked.socket))

    def send(self, header: dict[str, Any], *parts: bytes) -> None:
        """Queue a frame; an instance that is gone is noticed by its exit, not here."""
        self._attend()
        data = encode(header, *parts)
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def send_with(self, descriptor: int, header: dict[str, Any]) -> bool:
        """Send a frame and a descriptor; False when that does not go at once."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        data = encode(header)
        try:
            sent = socket.send_fds(self._socket, [data], [descriptor])
        except OSError:
            return False
        if sent < len(data):
            transport.write(data[sent:])
        return True

    def kill(self) -> None:
        """End the process now."""
        kill(self.pid, self.exited)

    def rest(self) -> None:
        """Look at nothing that comes for a moment, unless something is sent.

        A write that wakes somebody costs its writer as much as the rest of an empty call. What comes
        meanwhile is read in one go; when nothing has, the next frame wakes us as always.
        """
        if self._rest is None and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._rest = asyncio.get_running_loop().call_later(REST_S, self._attend)

    def _attend(self) -> None:
        if self._rest is None:
            return
        self._rest.cancel()
        self._rest = None
        if self._handling is None and self._transport is not None:
            self._transport.resume_reading()

    async def drained(self, limit_s: float) -> None:
        """Wait until what the instance has sent is handled: until its socket's end, or the limit."""
        self._attend()
        await asyncio.wait([self._over], timeout=limit_s)

    async def _open(self, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
        except OSError:
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        for data in self._early:
            self._transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except ValueError:
            self._distrust()
            return
        self._frames += frames
        if self._handling is None:
            self._handle()

    def connection_lost(self, exc: Exception | None) -> None:
        if (
            exc is not None
        ):  # a write has found it gone: what it had said before is still to be read
            with contextlib.suppress(OSError):
                while data := self._socket.recv(READ_NBYTES):
                    self.data_received(data)
        self._lost = True
        if self._handling is None:
            self._end()

    def _handle(self) -> None:
        """Deal with the frames that are here."""
        try:
            while self._frames:
                if (waits := self._on_frame(self._frames.popleft())) is not None:
                    if self._transport is not None and not self._transport.is_closing():
                        self._transport.pause_reading()
                    self._handling = asyncio.create_task(self._await(waits))
                    return
        except Exception:
            self._distrust()

    async def _await(self, waits: Awaitable[None]) -> None:
        try:
            await waits
        except Exception:
            self._distrust()
        self._handling = None
        self._handle()
        if self._handling is not None:
            return
        if self._lost:
            self._end()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _distrust(self) -> None:
        """A frame makes no sense: this process is not to be trusted further."""
        log.exception("instance %d: cannot read its frames; it is ended", self.pid)
        self._frames.clear()
        if self._transport is not None:
            self._transport.close()
        self.kill()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
        self.kill()  # who does not listen any more is of no use
