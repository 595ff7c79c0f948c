"""HTTP/1.1 as a client speaks it to a platform's own API: one connection, its requests in order.

Bare on purpose: a request is one write, a response one future, and a poll can be asked whether
anything of its response has arrived. Knows no platform, no retries and no time limits.
"""

import asyncio
import contextlib
import fcntl
import select
import socket
import struct
import termios
from collections import deque
from typing import NamedTuple, cast

from zerowake.adapters.http1 import Response, parse

# Of Linux's struct tcp_info: tcpi_bytes_received, tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans
TCP_INFO = struct.Struct("<128xQ8xI52xQQ")
UNREAD = struct.Struct("i")  # as FIONREAD tells it


class Counts(NamedTuple):
    """How many bytes have ever been written to a connection and read from it, by whoever has it."""

    written: int
    read: int


class Wire(asyncio.Protocol):
    """HTTP/1.1 of one connection: requests out, their responses in, in the same order."""

    def __init__(self) -> None:
        self.closed = False
        self._data = bytearray()
        self._expected: deque[asyncio.Future[Response]] = deque()
        self._last: asyncio.Future[Response] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def send(self, data: bytes) -> "asyncio.Future[Response]":
        """Send a request, or its beginning; the future is its response."""
        response = self._expect()
        self.write(data)
        return response

    def send_both(
        self, first: bytes, second: bytes
    ) -> "tuple[asyncio.Future[Response], asyncio.Future[Response]]":
        """Send a request, and another one that need not wait for its response (RFC 9112, 9.3.2)."""
        responses = self._expect(), self._expect()
        self.write(first + second)
        return responses

    @property
    def has_read(self) -> bool:
        """Whether a part of a response has been read."""
        return bool(self._data)

    def has_begun(self) -> bool:
        """Whether something of the last response is here, be it in the socket's buffer."""
        if self.closed or self._last is None:
            return False
        if self._last.done() or self._data:
            return True
        arrived = select.poll()  # not select(), which knows no descriptor above 1023
        arrived.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(arrived.poll(0))

    def counts(self) -> Counts | None:
        """None where the kernel does not tell, or nothing is left to ask."""
        if self.closed:
            return None
        sock = self._transport.get_extra_info("socket")

        def told() -> tuple[int, int, int, int]:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
            received, waiting, sent, again = TCP_INFO.unpack(info)
            return received, waiting, sent, again

        try:
            found = told()
            while True:
                unread = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(UNREAD.size))
                before, found = found, told()
                if found == before:  # else something has arrived between the two questions
                    break
        except (OSError, struct.error):
            return None
        received, waiting, sent, again = found
        if not sent:  # some sandboxes tell zeros
            return None
        return Counts(sent - again + waiting, received - UNREAD.unpack(unread)[0])

    def lend(self) -> int:
        """Let another process read on: the descriptor. ``regain`` ends it."""
        self._transport.pause_reading()
        self._expected.clear()
        return int(self._transport.get_extra_info("socket").fileno())

    def regain(self, responses: int) -> "list[asyncio.Future[Response]]":
        """Read on: the responses that are still to come."""
        expected = [self._expect() for _ in range(responses)]
        if self.closed:
            self._fail(ConnectionResetError("it was closed meanwhile"))
        else:
            borrowed = self._transport.get_extra_info("socket")
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # whatever was made of it
            self._transport.resume_reading()
        return expected

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):  # another process may hold it too
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.closed = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._read()

    def eof_received(self) -> None:
        self._read(ended=True)  # the end of a body that tells no length; closes on our side too

    def _read(self, *, ended: bool = False) -> None:
        try:
            while found := parse(self._data, ended):
                response, nbytes = found
                del self._data[:nbytes]
                if response.status < 200:  # 100 Continue, say: the response is still to come
                    continue
                if not self._expected or (self._data and len(self._expected) == 1):
                    raise ValueError("it says more than it was asked for")
                future = self._expected.popleft()
                if not future.done():
                    future.set_result(response)
                if not response.keeps_alive:
                    self.close()
                    return
                if not self._data:
                    return
        except ValueError as error:
            self._fail(ConnectionError(f"no HTTP response: {error}"))

    def _expect(self) -> "asyncio.Future[Response]":
        self._last = future = asyncio.get_running_loop().create_future()
        self._expected.append(future)
        return future

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("it has closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _fail(self, error: Exception) -> None:
        self.closed = True
        self._writable.set()
        self._transport.close()
        if not isinstance(error, OSError):
            error = ConnectionError(str(error))
        while self._expected:
            if not (future := self._expected.popleft()).done():
                future.set_exception(error)
                future.exception()  # who does not ask for it any more need not be told
