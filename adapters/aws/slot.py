"""One connection to the Runtime API in the hands of the instance itself.

Bare, for it is the way of every direct invocation: an answer and the poll for the next one are one
write. What it cannot do, such as an event of AWS's services, it leaves to the gateway.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from zerowake.adapters.aws.messages import (
    MARGIN_S,
    RESPONSE_NBYTES,
    Event,
    error_request,
    next_request,
    response_request,
    said,
)
from zerowake.adapters.http1 import Response, parse
from zerowake.runtime.invocation import Invocation

READ_NBYTES = 1 << 18
WAIT_NBYTES = 1 << 15  # of a call that is not complete
# What a connection takes at once, with the poll behind it. The length of an answer that may go out in
# pieces is told before: nobody could say else how much of the poll did, if this process ended meanwhile.
SEND_NBYTES = 1 << 15
SEND_S = 30.0  # for the API to take in an answer


class Slot:
    """A ``runtime.feed.Slot``. address: as ``AWS_LAMBDA_RUNTIME_API``. content_type: of results."""

    def __init__(
        self,
        number: int,
        descriptor: int,
        *,
        address: str,
        function: str,
        content_type: str,
    ) -> None:
        self.number = number
        self.polls_on = self.polled = True
        self.event = self.unacknowledged = b""
        self.sent_nbytes = self.read_nbytes = 0
        self.refused: dict[str, Any] | None = None
        self.over = False
        self.begins: Callable[[int], None] = lambda nbytes: None
        self._host = address
        self._function = function
        self._content_type = content_type
        self._poll = next_request(address)
        self._given: Event | None = None
        self._quiet_nbytes = 0  # what the API says to an answer
        self._silent_nbytes = 0  # as ``_wake_after``
        self._untold = 0  # bytes of a call that are still in the connection
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)  # as it is for the gateway, whose it is too

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Invocation | None:
        """Nothing of a call is taken out of the connection before it is told, so nobody can lose it.

        One that is too large to wait there until it is whole is the gateway's.
        """
        try:
            data = bytearray(self._socket.recv(READ_NBYTES, socket.MSG_PEEK))
        except BlockingIOError:
            return None
        except OSError:
            data = bytearray()
        if not data:  # the gateway sees it as well
            self.over = True
            return None
        nbytes = len(data)
        call = self._parse(data)
        self._untold = len(self.event)
        self._drop(nbytes - len(data) - self._untold)
        if call is None:
            self.over |= len(data) > WAIT_NBYTES  # a receive buffer may hold no more
            self._wake_after(len(data))  # its beginning is no news
        else:
            self._wake_after(self._quiet_nbytes)
        return call

    def was_told(self) -> None:
        self._drop(self._untold)
        self._untold = 0

    def _drop(self, nbytes: int) -> None:
        if nbytes:
            with contextlib.suppress(OSError):  # the next ``read`` finds it as well
                self.read_nbytes += len(self._socket.recv(nbytes))

    def _parse(self, data: bytearray) -> Invocation | None:
        """What is in ``data`` and was dealt with is taken out of it."""
        try:
            while not self.over and (found := parse(data, False)):
                response, nbytes = found
                if not self.unacknowledged:
                    return self._brought(response, data, nbytes)
                del data[:nbytes]
                if response.status < 200:
                    continue
                self.unacknowledged = b""
                if response.status == 202:
                    self._quiet_nbytes = nbytes
                self.over = not response.keeps_alive
                if response.status >= 300:
                    self.refused = {"status": response.status, "said": said(response)}
        except ValueError:  # the gateway reads it again, and says so
            self.over = True
        return None

    def _brought(self, response: Response, data: bytearray, nbytes: int) -> Invocation | None:
        """A call, if it is one for us; if not it stays where it was, for the gateway to read."""
        event = Event.of(response) if response.status == 200 else None
        if event is None or not event.is_direct or not response.keeps_alive:
            self.over = True
            return None
        self.event = bytes(data[:nbytes])
        del data[:nbytes]
        self.polled = False
        self._given = event
        return Invocation(
            self._function, event.body, self, time.monotonic(), event.id, origin=event.origin
        )

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
        self._wake_after(0)
        self._socket.close()

    def _wake_after(self, nbytes: int) -> None:
        """Be readable once there is more than ``nbytes``.

        Of what the API says to an answer, say: the next event comes after it, and being woken for both
        takes as long as what is done about it.
        """
        if nbytes != self._silent_nbytes:
            self._silent_nbytes = nbytes
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes + 1)

    def _answer(self, request: bytes) -> None:
        assert self._given is not None
        if time.time() >= self._given.deadline_s - MARGIN_S:  # the gateway answers
            self.over = True
            return
        if len(request) > SEND_NBYTES:
            self.begins(len(request))
        self.event, self.unacknowledged = b"", request
        self.polled = self.polls_on
        try:
            self._send(request + self._poll if self.polls_on else request)
            self.over = not self.polls_on
        except OSError:  # the gateway sends it again: not behind a part of it
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self.over = True

    def _send(self, data: bytes) -> None:
        """Raises OSError, also when it is not taken in for long."""
        sent = self._try(data)
        while sent < len(data):
            writable = select.poll()
            writable.register(self._socket, select.POLLOUT)
            if not writable.poll(1e3 * SEND_S):
                raise TimeoutError
            sent += self._try(memoryview(data)[sent:])

    def _try(self, data: bytes | memoryview) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        self.sent_nbytes += sent
        return sent
