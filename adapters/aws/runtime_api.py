"""AWS Lambda's Runtime API, spoken over asyncio.

Each ``Line`` is one connection that is kept open: a slot polls on its own and answers on it. Many
lines in one process are what Lambda wants of a multi-concurrent runtime, and what lets their calls
share a batch. Knows no function and no event.

An answer goes out together with the next poll. The platform gives the caller its answer when it has
both, so a poll that waited until the answer was acknowledged cost each invocation 0.1 ms.
"""

import asyncio
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zerowake.adapters.aws.messages import (
    ERROR_BODY,
    ERROR_TYPE,
    Event,
    address_of,
    echo,
    error_body,
    error_headers,
    error_request,
    error_type,
    get,
    next_request,
    post,
    response_request,
    said,
    versioned,
)
from zerowake.adapters.http1 import Response, head
from zerowake.adapters.wire_http import Counts, Wire
from zerowake.snapshot.errors import ZerowakeError

RETRIES_S = (0.0, 0.05, 0.2, 1.0)  # pauses before a request is sent again on a new connection


class RuntimeApiError(ZerowakeError):
    """The Runtime API is gone or says that this environment is broken: the process has to end."""

    status, code = 500, "runtime_api"


class Refused(ZerowakeError):
    """The Runtime API does not take an answer: it is too large, it came twice, or too late.

    An answer in chunks also when nobody wants the rest of it.
    """

    status, code = 500, "runtime_api_refused"

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class Answer(NamedTuple):
    """An answer on its way. sent: None while there is no connection to send it on."""

    request: bytes
    sent: "asyncio.Future[Response] | None"


class Line:
    """One connection to the Runtime API.

    host: as ``AWS_LAMBDA_RUNTIME_API``. polls_on: send the next poll with each answer.
    """

    def __init__(self, address: str) -> None:
        self.host = address
        self._address = address_of(address)
        self._wire: Wire | None = None
        self._poll: asyncio.Future[Response] | None = None  # that was sent with an answer
        self._poll_request = next_request(address)
        self._lent = False
        self._counts = Counts(0, 0)  # when it was lent
        self.polls_on = False

    @property
    def idle(self) -> bool:
        """Whether a ``next`` that waits may be cancelled: nothing of an event has arrived yet."""
        return self._wire is None or not self._wire.has_begun()

    @property
    def brings(self) -> bool:
        """Whether a poll that went with an answer has begun to bring an event."""
        return self._poll is not None and not self.idle

    async def next(self) -> Event:
        """Wait for an invocation, for as long as it takes. Raises RuntimeApiError."""
        poll, self._poll = self._poll, None
        return event_of(await self._request(self._poll_request, poll))

    def lend(self) -> int | None:
        """As ``Wire.lend``, with a poll on its way; None when there is none, or it brings something.

        What is read here already of an event would go lost with the process that is lent the rest.
        """
        if self._poll is None or self._poll.done() or self._wire is None or self._wire.closed:
            return None
        if self._wire.has_read or (counts := self._wire.counts()) is None:
            return None
        self._poll, self._lent, self._counts = None, True, counts
        return self._wire.lend()

    def was_written(self, nbytes: int) -> bool:
        """Whether something was written to it since ``lend`` beyond ``nbytes``, as far as is known."""
        since = self._since_lent()
        return since is None or since.written != nbytes

    def was_read(self, nbytes: int) -> bool:
        """Whether more than ``nbytes`` were taken out of it since ``lend``."""
        since = self._since_lent()
        return since is not None and since.read > nbytes + 1  # the connection's end counts as one

    def regain(self, *, polled: bool, unacknowledged: bytes = b"") -> Answer | None:
        """After ``lend``, as ``Lease.handed`` tells it: the answer that is to be ``taken``, if any."""
        assert self._wire is not None
        self._lent = False
        expected = self._wire.regain(bool(unacknowledged) + polled)
        if polled:
            self._poll = expected.pop()
        return Answer(unacknowledged, expected[0]) if unacknowledged else None

    def complete_poll(self, nbytes: int) -> None:
        """Write what lacks of the poll behind an answer that was written to the end.

        nbytes: all that was written since ``lend``, with the answer, but without the poll.
        """
        if self._wire is not None and (since := self._since_lent()) is not None:
            begun = since.written - nbytes
            if 0 <= begun < len(self._poll_request):
                self._wire.write(self._poll_request[begun:])

    def _since_lent(self) -> Counts | None:
        """What was written to it and read from it since ``lend``; None where that is not known."""
        counts = self._wire.counts() if self._wire is not None else None
        if counts is None:
            return None
        before = self._counts
        return Counts(counts.written - before.written, counts.read - before.read)

    async def regain_answer(self, limit_s: float, *, polled: bool) -> bool:
        """After ``lend``, of a process that has ended in its answer: whether the API has taken that.

        It has, if it says so within ``limit_s``; else there may be a part of one, which is broken off
        here. polled: it went with a poll. Raises as ``taken``.
        """
        assert self._wire is not None
        self._lent = False
        sent, *polls = self._wire.regain(1 + polled)
        await asyncio.wait([sent], timeout=limit_s)
        if not sent.done() or sent.exception():
            self.close()
            return False
        self._poll = polls[0] if polls else None
        if sent.result().status >= 300:
            raise _refusal(sent.result())
        return True

    def answer(self, event: Event, body: bytes, content_type: str) -> Answer:
        """Answer, here and now if there is a connection; ``taken`` sees to the rest."""
        return self._answer(response_request(self.host, event, body, content_type))

    async def respond(self, event: Event, body: bytes, content_type: str) -> None:
        """Answer. Raises Refused (413: too large) or RuntimeApiError."""
        await self.taken(self.answer(event, body, content_type))

    async def fail(self, event: Event, problem: Mapping[str, Any]) -> None:
        """Answer with an error (RFC 9457 members). Raises as ``respond``."""
        if self._lent or self._poll is not None:  # as after an answer that was refused
            line = Line(self.host)
            try:
                return await line.fail(event, problem)
            finally:
                line.close()
        await self.taken(self._answer(error_request(self.host, event, problem)))

    async def taken(self, answer: Answer) -> None:
        """Wait until the API has taken it. Raises as ``respond``."""
        response = await self._request(answer.request, answer.sent)
        if response.status >= 300:
            raise _refusal(response)

    async def stream(self, event: Event, content_type: str) -> "Stream":
        """Begin to answer in chunks. Raises RuntimeApiError.

        On a new connection, which is closed at the end: that of the poll may have died unnoticed,
        and what was sent in chunks cannot be sent again.
        """
        self.close()
        wire = await self._connected(iter(RETRIES_S))
        headers = {
            "Content-Type": content_type,
            "Lambda-Runtime-Function-Response-Mode": "streaming",
            "Transfer-Encoding": "chunked",
            "Trailer": f"{ERROR_TYPE}, {ERROR_BODY}",
            **echo(event),
        }
        path = versioned(f"/runtime/invocation/{event.id}/response")
        response = wire.send(head("POST", path, self.host, headers))
        return Stream(self, event, wire, response)

    async def restore_next(self) -> None:
        """Returns when this process goes on after having been snapshotted and restored."""
        response = await self._request(get(self.host, "/runtime/restore/next"))
        if response.status != 200:
            raise RuntimeApiError(f"/restore/next answers {response.status}: {said(response)}")

    async def post_error(self, path: str, problem: Mapping[str, Any], type_: str = "") -> None:
        """``/runtime/init/error`` or ``/runtime/restore/error``; raises RuntimeApiError.

        type_: ``Category.Reason`` where the platform has one of its own for this. What it answers
        makes no difference: 403 says that somebody else of this environment has told it already.
        """
        headers = error_headers(problem) | ({ERROR_TYPE: type_} if type_ else {})
        await self._request(post(self.host, path, headers, error_body(problem, type_)))

    async def register_extension(self, name: str) -> str:
        """Register an internal extension, which is why SIGTERM reaches us; returns its id."""
        headers = {"Lambda-Extension-Name": name, "Content-Type": "application/json"}
        path = "/2020-01-01/extension/register"
        response = await self._request(post(self.host, path, headers, b'{"events":[]}'))
        if response.status != 200:
            raise RuntimeApiError(f"/extension/register answers {response.status}")
        return response.headers.get("lambda-extension-identifier", "")

    async def extension_next(self, identifier: str) -> None:
        """Say that the extension is ready; it has asked for no events, so this never returns."""
        headers = {"Lambda-Extension-Identifier": identifier}
        await self._request(get(self.host, "/2020-01-01/extension/event/next", headers))

    def close(self) -> None:
        self._poll, self._lent = None, False
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _answer(self, request: bytes) -> Answer:
        sent = None
        if self._wire is not None and not self._wire.closed:
            if self.polls_on:
                sent, self._poll = self._wire.send_both(request, self._poll_request)
            else:
                sent = self._wire.send(request)
        return Answer(request, sent)

    async def _request(
        self, request: bytes, sent: "asyncio.Future[Response] | None" = None
    ) -> Response:
        """Send, unless it is ``sent``, and send again where the connection breaks off.

        An answer that had arrived all the same is refused as the second one, which does no harm.
        """
        pauses_s = iter(RETRIES_S)
        while True:
            try:
                return await (sent or (await self._connected(pauses_s)).send(request))
            except OSError as error:
                await self._pause(error, pauses_s)
                sent = None
            except asyncio.CancelledError:
                self.close()  # its answer must not be taken for the next one's
                raise

    async def _connected(self, pauses_s: Iterator[float]) -> Wire:
        while self._wire is None or self._wire.closed:
            loop = asyncio.get_running_loop()
            try:
                _, self._wire = await loop.create_connection(Wire, *self._address)
            except OSError as error:
                await self._pause(error, pauses_s)
        return self._wire

    async def _pause(self, error: OSError, pauses_s: Iterator[float]) -> None:
        """Before the next try. Raises RuntimeApiError when there has been enough of them."""
        self.close()
        if (pause_s := next(pauses_s, None)) is None:
            raise RuntimeApiError(f"the Runtime API at {self.host}: {error}") from error
        await asyncio.sleep(pause_s)


class Stream:
    """An answer in chunks; ended by ``finish`` or ``fail``. response: what the API says to it."""

    def __init__(
        self, line: Line, event: Event, wire: Wire, response: "asyncio.Future[Response]"
    ) -> None:
        self._line = line
        self._event = event
        self._wire = wire
        self._response = response

    @property
    def gone(self) -> "asyncio.Future[Response]":
        """Done when nobody takes chunks any more: the connection has broken off, or was answered."""
        return self._response

    async def write(self, chunk: bytes) -> None:
        """One chunk; waits while the reader is slow. Raises Refused or OSError when it has left."""
        if chunk:
            await self._send(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    async def finish(self) -> None:
        """The end, which was a good one."""
        await self._end(b"0\r\n\r\n")

    async def fail(self, problem: Mapping[str, Any]) -> None:
        """The end, with an error (RFC 9457 members) in the trailers."""
        body = b64encode(error_body(problem, request_id=self._event.id)).decode()
        trailers = f"{ERROR_TYPE}: {error_type(problem)}\r\n{ERROR_BODY}: {body}\r\n"
        await self._end(b"0\r\n" + trailers.encode() + b"\r\n")

    def close(self) -> None:
        """Close the connection; before the end this breaks the answer off."""
        self._line.close()

    async def _send(self, data: bytes) -> None:
        if self._response.done():
            raise _refusal(self._response.result())  # or why the connection broke off
        self._wire.write(data)
        await self._wire.drained()

    async def _end(self, data: bytes) -> None:
        await self._send(data)
        response = await self._response
        if response.status >= 300:
            raise _refusal(response)


def event_of(response: Response) -> Event:
    """What ``/next`` gives. Raises RuntimeApiError when that is no invocation."""
    if response.status != 200:
        raise RuntimeApiError(f"/next answers {response.status}: {said(response)}")
    try:
        return Event.of(response)
    except ValueError as error:
        raise RuntimeApiError(f"/next gives {error}") from None


def _refusal(response: Response) -> Refused | RuntimeApiError:
    """What an answer that was not taken means: 500 and above is the end of this environment."""
    message = f"the Runtime API answers {response.status}: {said(response)}"
    if response.status >= 500:
        return RuntimeApiError(message)
    return Refused(message, response.status)
