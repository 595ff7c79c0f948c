"""One connection to the Runtime API in the hands of the instance itself.

Blocking and bare, for it is the way of every direct invocation: an answer and the poll for the next one
are one write. What it cannot do, such as an event of AWS's services, it leaves to the gateway.
"""

import socket
import struct
import time
from typing import Any

from zerowake.adapters.aws.messages import (
    MARGIN_S,
    RESPONSE_NBYTES,
    Event,
    address_of,
    error_request,
    next_request,
    response_request,
    said,
)
from zerowake.adapters.http1 import Response, parse
from zerowake.runtime.invocation import Invocation

READ_NBYTES = 1 << 18
SEND_S = 30  # for the API to take in an answer


class Slot:
    """A ``runtime.feed.Slot``. Raises OSError where there is no connection to be had.

    address: as ``AWS_LAMBDA_RUNTIME_API``. content_type: of results.
    """

    def __init__(self, number: int, *, address: str, function: str, content_type: str) -> None:
        self.number = number
        self.polls_on = True
        self.event = self.unacknowledged = b""
        self.refused: dict[str, Any] | None = None
        self.over = False
        self._host = address
        self._function = function
        self._content_type = content_type
        self._poll = next_request(address)
        self._given: Event | None = None
        self._data = bytearray()
        self._socket = socket.create_connection(address_of(address), timeout=SEND_S)
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = struct.pack("@ll", SEND_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket.sendall(self._poll)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def idle(self) -> bool:
        if self.event or self.unacknowledged or self._data:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def read(self) -> Invocation | None:
        try:
            data = self._socket.recv(READ_NBYTES)
            self._data += data
            while not self.over and (found := parse(self._data, not data)):
                response, nbytes = found
                raw = bytes(self._data[:nbytes])
                del self._data[:nbytes]
                if response.status < 200:
                    continue
                if not self.unacknowledged:
                    self.polls_on &= response.keeps_alive
                    return self._brought(response, raw)
                self.unacknowledged = b""
                self.over = not (self.polls_on and response.keeps_alive)
                if response.status >= 300:
                    self.refused = {"status": response.status, "said": said(response)}
            self.over |= not data
        except (OSError, ValueError):
            self.over = True
        return None

    def _brought(self, response: Response, raw: bytes) -> Invocation | None:
        self.event = raw
        if response.status == 200:
            event = Event.of(response)
            if event.is_direct:
                self._given = event
                arrived_s = time.monotonic()
                return Invocation(
                    self._function, event.body, self, arrived_s, event.id, origin=event.origin
                )
        self.over = True
        return None

    async def item(self, chunk: bytes) -> None:
        raise NotImplementedError("a function that yields is not lent slots")

    def finish(self, result: bytes | None = None) -> None:
        """Answer, unless it is too large: what has an event still is answered by the gateway."""
        assert self._given is not None and result is not None
        if len(result) > RESPONSE_NBYTES:
            self.over = True
            return
        self._answer(response_request(self._host, self._given, result, self._content_type))

    def fail(self, problem: dict[str, object]) -> None:
        assert self._given is not None
        self._answer(error_request(self._host, self._given, problem))

    def close(self) -> None:
        self._socket.close()

    def _answer(self, request: bytes) -> None:
        assert self._given is not None
        if time.time() >= self._given.deadline_s - MARGIN_S:  # the gateway answers
            self.over = True
            return
        self.event, self.unacknowledged = b"", request
        try:
            self._socket.sendall(request + self._poll if self.polls_on else request)
        except OSError:
            self.over = True
