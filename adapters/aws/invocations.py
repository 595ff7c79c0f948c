"""One Lambda invocation: from its event to the answer on its line, whatever is in it."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Coroutine
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from zerowake.adapters.aws.messages import JSON, MARGIN_S, RAW, RESPONSE_NBYTES, Event
from zerowake.adapters.aws.runtime_api import (
    Answer,
    Line,
    Refused,
    RuntimeApiError,
    Stream,
)
from zerowake.adapters.calls import json_of
from zerowake.adapters.port import AnswerTooLarge
from zerowake.runtime.errors import (
    BadRequest,
    Cancelled,
    PredictTimeout,
    RemoteError,
)
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.caller import Caller, Calling
from zerowake.runtime.gateway.port import takes_requests
from zerowake.runtime.info import FunctionInfo, Kind

if TYPE_CHECKING:
    from zerowake.adapters.aws.events import HttpRequest
    from zerowake.adapters.aws.http import Cycle, Reply
    from zerowake.adapters.objects import Objects
    from zerowake.runtime.gateway.asgi import ASGIApp

log = logging.getLogger("zerowake.adapters")

END_S = 1.0  # for the trailers of a broken stream


class Invocations:
    """Answers the invocations of one function, which the first of them may have to wait for.

    name: the function's; "" until it is here. app: makes the gateway's, for HTTP. streaming: answer
    requests, and direct calls of a streaming function, in chunks; the caller must have asked for
    that, and no event tells. objects: makes what fetches the content that S3's events tell of. clock:
    unix seconds, as deadlines are told.
    """

    def __init__(
        self,
        caller: Caller,
        app: "Callable[[], ASGIApp]",
        *,
        streaming: bool,
        objects: "Callable[[], Objects]",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.caller = caller
        self.name = ""
        self._make_app = app
        self._streaming = streaming
        self._objects = cache(objects)
        self._clock = clock

    @cached_property
    def _app(self) -> "ASGIApp":
        return self._make_app()

    @cached_property
    def content_type(self) -> str:
        """Of results."""
        return RAW if self.caller.functions.find(self.name).raw_output else JSON

    @property
    def lends(self) -> bool:
        """Whether the function is one whose process can take calls itself."""
        return self.name != "" and self.caller.functions.find(self.name).kind.gives_one_result

    async def answer(self, line: Line, event: Event) -> None:
        """Have ``event`` answered exactly once. Raises RuntimeApiError when the API is gone."""
        await self._once(line, event, self._answer(line, event))

    async def complete(self, line: Line, event: Event, calling: Calling) -> None:
        """Answer a call that a process of the function has taken itself. Raises RuntimeApiError."""
        await self._once(line, event, self._complete(line, event, calling))

    async def _once(self, line: Line, event: Event, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Refused as error:  # our answer: too large, or there is one already
            log.error("invocation %s: %s", event.id, error)
            if error.http_status == 413:
                await self.fail(line, event, AnswerTooLarge(str(error)))
        except RuntimeApiError:
            raise
        except Exception as error:
            await self.fail(line, event, error)

    async def _answer(self, line: Line, event: Event) -> None:
        if not self.name:
            async with self._until(event):
                await self.caller.functions.arrived()
            (self.name,) = self.caller.functions.names()
        if event.is_direct:
            await self._direct(line, event)
            return
        from zerowake.adapters.aws import events  # with what HTTP needs 7 ms, of the first such one

        match events.read(event.body):
            case events.HttpRequest() as request if self._streaming:
                await self._stream(line, event, request)
            case events.HttpRequest() as request:
                await line.respond(event, await self._http(event, request), JSON)
            case events.Batch() as batch:
                from zerowake.adapters.aws.records import Records

                records = Records(self.caller, self.name, event, batch, self._objects)
                await line.respond(event, await records.answer(self._until(event)), JSON)
            case events.Direct():
                await self._direct(line, event)

    async def fail(self, line: Line, event: Event, error: Exception) -> None:
        """Answer with an error. Raises RuntimeApiError."""
        problem = problems.describe(error, f"{self.name} {event.id}")
        try:
            await line.fail(event, problem)
        except Refused as refused:
            log.error("invocation %s: its error: %s", event.id, refused)

    async def _direct(self, line: Line, event: Event) -> None:
        """The event is the function's input, its result the answer."""
        info = self.caller.functions.find(self.name)
        if self._streaming and info.kind is Kind.STREAM:
            from zerowake.adapters.aws.events import HttpRequest

            await self._stream(line, event, HttpRequest("", "POST", "/", "", (), event.body))
            return
        answer: Answer | None = None

        def respond(chunks: list[bytes]) -> None:
            """Not by way of the task that waits for the chunks: 40 us before the caller has them."""
            nonlocal answer
            with contextlib.suppress(Exception):  # whatever it is, it is raised again below
                answer = line.answer(event, _fitting(_whole(chunks, info)), self.content_type)

        then = None if info.kind is Kind.STREAM else respond
        try:
            async with self._until(event):
                call = self.caller.call
                chunks = await call(self.name, event.body, event.id, event.origin, then)
        except Exception:
            if answer is None:
                raise
        if answer is None:
            answer = line.answer(event, _fitting(_whole(chunks, info)), self.content_type)
        await line.taken(answer)

    async def _complete(self, line: Line, event: Event, calling: Calling) -> None:
        info = self.caller.functions.find(self.name)
        with calling:
            async with self._until(event):
                chunks = await calling.rest()
        await line.respond(event, _fitting(_whole(chunks, info)), self.content_type)

    def left_s(self, event: Event) -> float:
        """Seconds from now until it is to be answered, shortly before its deadline."""
        return max(0.0, event.deadline_s - MARGIN_S - self._clock())

    def _until(self, event: Event) -> "_Until":
        """Give up in time to say so. Raises PredictTimeout."""
        return _Until(self.left_s(event))

    # ---------------------------------------------------------------- HTTP, and chunks

    async def _http(self, event: Event, request: "HttpRequest") -> bytes:
        """The reply in one piece, as the event's source wants it."""
        from zerowake.adapters.aws.http import encode

        try:
            if request.problem:
                raise BadRequest(request.problem)
            async with self._until(event):
                reply = await self._cycle(request, event).complete()
            return _fitting(encode(reply, request.shape))
        except Exception as error:  # nothing of a reply has reached the caller
            return encode(self._told(error, event), request.shape)

    async def _stream(self, line: Line, event: Event, request: "HttpRequest") -> None:
        """The reply in chunks as they come.

        An error before the first is a reply of its own, one after it stands in the trailers.
        """
        cycle = self._cycle(request, event)
        stream: Stream | None = None
        try:
            async with contextlib.aclosing(cycle.chunks()) as chunks, self._until(event):
                if request.problem:
                    raise BadRequest(request.problem)
                async for chunk in chunks:
                    if not request.shape and cycle.reply.status >= 400:
                        rest = [chunk, *[part async for part in chunks]]
                        raise RemoteError(json.loads(b"".join(rest)))
                    stream = stream or await self._begin(line, event, request, cycle)
                    await stream.write(chunk)
            if stream is None:
                raise Cancelled("the call was given up before its reply")
            await stream.finish()
        except (Refused, RuntimeApiError):
            raise
        except OSError as error:  # how much of it has arrived? An answer too many is refused
            raise Cancelled(f"the connection broke off in mid-answer: {error}") from error
        except Exception as error:
            if stream is not None:
                problem = problems.describe(error, f"{self.name} {event.id}")
                async with asyncio.timeout(END_S):  # who reads nothing gets no trailers either
                    await stream.fail(problem)
            elif not request.shape:
                raise
            else:
                cycle.reply = self._told(error, event)
                stream = await self._begin(line, event, request, cycle)
                await stream.write(cycle.reply.body)
                await stream.finish()
        finally:
            if stream is not None:
                stream.close()

    def _cycle(self, request: "HttpRequest", event: Event) -> "Cycle":
        from zerowake.adapters.aws.http import Cycle

        whole = takes_requests(self.caller.functions, self.name)
        return Cycle(self._app, request, event.origin, whole=whole)

    async def _begin(
        self, line: Line, event: Event, request: "HttpRequest", cycle: "Cycle"
    ) -> Stream:
        if request.shape:
            from zerowake.adapters.aws.http import PRELUDE_TYPE, prelude

            stream = await line.stream(event, PRELUDE_TYPE)
            await stream.write(prelude(cycle.reply, request.shape))
        else:  # a direct caller sees chunks only
            stream = await line.stream(event, dict(cycle.reply.headers)["content-type"])
        stream.gone.add_done_callback(lambda _answer: cycle.leave())
        return stream

    def _told(self, error: Exception, event: Event) -> "Reply":
        from zerowake.adapters.aws.http import Reply

        problem = problems.describe(error, f"{self.name} {event.id}")
        status, headers, body = problems.reply(problem, error)
        return Reply(status, [(n.decode(), v.decode()) for n, v in headers], body)


class _Until:
    """``asyncio.timeout`` that raises PredictTimeout.

    left_s: seconds from now. A class and no generator, which would be one more for each invocation.
    """

    __slots__ = ("_timeout",)

    def __init__(self, left_s: float) -> None:
        self._timeout = asyncio.timeout(left_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            raise past_deadline() from None


def past_deadline() -> PredictTimeout:
    return PredictTimeout(
        "the invocation's deadline has come; give the function more time, or fewer records"
    )


def _whole(chunks: list[bytes], info: FunctionInfo) -> bytes:
    """A result in one piece, bytes as they are."""
    return b"".join(chunks) if info.raw_output else json_of(info, chunks)


def _fitting(answer: bytes) -> bytes:
    if len(answer) > RESPONSE_NBYTES:
        raise AnswerTooLarge(
            f"the answer has {len(answer)} bytes, and Lambda takes {RESPONSE_NBYTES} in one piece; "
            "stream it (InvokeMode RESPONSE_STREAM), or put it into S3 and answer with its place"
        )
    return answer
