"""HTTP/1.1 as a client speaks it to a platform's own API: one connection, its requests in order.

Bare on purpose: a request is one write, a response one future, and a poll can be asked whether
anything of its response has arrived. Knows no platform, no retries and no time limits.
"""

import asyncio
import select
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, cast


class Response(NamedTuple):
    """An HTTP response, whole. headers: with lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    keeps_alive: bool = True


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

    def has_begun(self) -> bool:
        """Whether something of the last response is here, be it in the socket's buffer."""
        if self.closed or self._last is None:
            return False
        if self._last.done() or self._data:
            return True
        arrived = select.poll()  # not select(), which knows no descriptor above 1023
        arrived.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(arrived.poll(0))

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
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


def parse(data: bytearray, ended: bool) -> tuple[Response, int] | None:
    """The response at the beginning of ``data`` and its length, None while it is not complete.

    ended: nothing more comes. Raises ValueError for what is no HTTP.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    status_line, *lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    protocol, status, *_ = f"{status_line} ".split(" ", 2)
    if not protocol.startswith("HTTP/1.") or not (status.isdecimal() and len(status) == 3):
        raise ValueError(status_line[:80])
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    keeps_alive = protocol != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    at = end + 4
    if int(status) < 200 or status in ("204", "304"):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        # The end of the chunks looks like this: they are not cut again for each part that arrives.
        found = _parse_chunks(data, at) if data.endswith(b"\r\n\r\n") else None
        if found is None:
            return None
        body, at = found
    elif (length := headers.get("content-length")) is not None:
        if not length.isdecimal():
            raise ValueError(f"Content-Length: {length[:40]}")
        if len(data) < at + int(length):
            return None
        body = bytes(data[at : at + int(length)])
        at += len(body)
    elif ended:
        body, at, keeps_alive = bytes(data[at:]), len(data), False
    else:
        return None
    return Response(int(status), headers, body, keeps_alive), at


def _parse_chunks(data: bytearray, at: int) -> tuple[bytes, int] | None:
    chunks: list[bytes] = []
    while (line_end := data.find(b"\r\n", at)) >= 0:
        nbytes = int(data[at:line_end].partition(b";")[0], 16)
        at = line_end + 2
        if nbytes == 0:
            while (end := data.find(b"\r\n", at)) > at:  # trailers, which say nothing to us
                at = end + 2
            return None if end < 0 else (b"".join(chunks), end + 2)
        if nbytes < 0 or bytes(data[at + nbytes : at + nbytes + 2]) not in (b"", b"\r", b"\r\n"):
            raise ValueError("a chunk that does not end where it should")
        if len(data) < at + nbytes + 2:
            return None
        chunks.append(bytes(data[at : at + nbytes]))
        at += nbytes + 2
    return None


def head(method: str, path: str, host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: zerowake"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
