"""POST /invoke/{name}: one HTTP request in, one invocation through the pool, one reply out.

Knows no process and no queue, and uses no framework: this is the path every call takes. A reply
has not started until its first byte is known, so that an error before it has its own status.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from zerowake.runtime.errors import Cancelled, Draining, RemoteError, TooLarge
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.asgi import (
    Headers,
    Receive,
    Scope,
    Send,
    read_body,
    respond,
    respond_and_close,
    until_disconnect,
)
from zerowake.runtime.gateway.inputs import Inputs
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.gateway.reply import Reply
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.logs import invocation_fields
from zerowake.runtime.metrics import Metrics, Outcome
from zerowake.snapshot.errors import ZerowakeError

log = logging.getLogger("zerowake.gateway")

JSON = b"application/json"
RAW = b"application/octet-stream"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"

_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class StreamBroken(RemoteError):
    """A stream that had begun ended in an error: the server must cut the connection off.

    A clean end would tell the client that it has everything.
    """


class Invoke:
    """The endpoint. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        functions: Functions,
        metrics: Metrics,
        *,
        max_body_nbytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._functions = functions
        self._metrics = metrics
        self._max_body_nbytes = max_body_nbytes
        self._clock = clock
        self._inputs = Inputs()
        self._given_ids: WeakValueDictionary[str, Reply] = WeakValueDictionary()

    async def __call__(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        sink = Reply()
        call = self._new_call(name, sink, headers)
        known_as = ""  # in the metrics: names that callers make up would be labels without end
        outcome, read, submitted = Outcome.CANCELLED, False, False
        try:
            if scope["method"] != "POST":
                raise problems.MethodNotAllowed(scope["method"], scope["path"], "POST")
            if self._functions.draining:
                raise Draining("the server is shutting down; send the call to another one")
            info = self._functions.find(name)
            known_as = info.name
            coding = headers.get(b"content-encoding", b"identity")
            if coding.lower() != b"identity":
                raise problems.UnsupportedEncoding(coding)
            call.body = await read_body(
                receive, headers.get(b"content-length"), self._max_body_nbytes
            )
            read = True
            self._inputs.check(info, call.body)
            self._functions.submit(call)
            submitted = True
            watch = asyncio.create_task(_leave_on_disconnect(receive, sink))
            try:
                if info.kind == "stream":
                    outcome = await self._stream(call, sink, info, headers, send)
                else:
                    await self._unary(call, sink, info, send)
                    outcome = Outcome.OK
            finally:
                watch.cancel()
        except Cancelled:
            pass
        except StreamBroken as error:
            outcome = Outcome.of(error.problem)
            raise
        except Exception as error:
            problem = problems.describe(error, f"{name} {call.id}")
            outcome = Outcome.of(problem)
            status, extra, body = problems.reply(problem, error)
            told = self._headers(call, submitted) + extra
            if isinstance(error, Draining | TooLarge):
                await respond_and_close(None if read else receive, send, status, told, body)
            else:
                await respond(send, status, told, body)
        finally:
            if submitted and not sink.ended:
                sink.leave()
                self._functions.cancel(call)
            self._observe(known_as, call, outcome)

    async def _unary(self, call: Invocation, sink: Reply, info: FunctionInfo, send: Send) -> None:
        chunks = await sink.read()
        if not chunks:
            raise ZerowakeError(f"{info.name} ended without a result; one was wanted")
        while more := await sink.read():
            chunks += more
        content_type = RAW if info.raw_output else JSON
        headers = [(b"content-type", content_type), *self._headers(call, True)]
        await respond(send, 200, headers, b"".join(chunks))

    async def _stream(
        self,
        call: Invocation,
        sink: Reply,
        info: FunctionInfo,
        asked: dict[bytes, bytes],
        send: Send,
    ) -> Outcome:
        if info.raw_output:
            content_type, before, after = RAW, b"", b""
        elif SSE in asked.get(b"accept", b""):
            content_type, before, after = SSE, b"data: ", b"\n\n"
        else:
            content_type, before, after = NDJSON, b"", b"\n"
        chunks = await sink.read()
        headers = [(b"content-type", content_type), *self._headers(call, True)]
        if content_type == SSE:
            headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        outcome = Outcome.OK
        try:
            while chunks:
                body = b"".join([part for chunk in chunks for part in (before, chunk, after)])
                await send({"type": "http.response.body", "body": body, "more_body": True})
                chunks = await sink.read()
            last = b""
        except RemoteError as error:
            outcome = Outcome.of(error.problem)
            told = {"function": info.name, **invocation_fields([call.id])}
            log.error(
                "the stream broke off: %s", " ".join(str(error).split()), extra={"fields": told}
            )
            if content_type != SSE:
                raise StreamBroken(error.problem) from None
            last = b"event: error\ndata: " + json.dumps(error.problem).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": last})
        return outcome

    def _new_call(self, name: str, sink: Reply, headers: dict[bytes, bytes]) -> Invocation:
        """A call under the id that its caller gave, if it is one and no call still alive has it.

        Frames to instances are told apart by these ids. A client that gave up may come again with
        the same id while its first call runs: its sink lives as long as anybody can answer it.
        """
        call = Invocation(name, b"", sink, self._clock())
        given = headers.get(b"x-request-id") or headers.get(b"traceparent")
        if given and _ID.fullmatch(given) and (text := given.decode()) not in self._given_ids:
            call.id = text
            self._given_ids[text] = sink
        return call

    def _headers(self, call: Invocation, submitted: bool) -> Headers:
        total_ms = (self._clock() - call.arrived_s) * 1e3
        timings = [f"{name};dur={ms:.3f}" for name, ms in call.timings_ms.items()]
        headers = [
            (b"server-timing", ", ".join([*timings, f"total;dur={total_ms:.3f}"]).encode()),
            (b"zerowake-invocation", call.id.encode()),
        ]
        if submitted:
            headers.append((b"zerowake-depth", call.depth.encode()))
        return headers

    def _observe(self, known_as: str, call: Invocation, outcome: Outcome) -> None:
        queue_ms, predict_ms = call.timings_ms.get("queue"), call.timings_ms.get("predict")
        self._metrics.observe_call(
            known_as,
            outcome,
            total_s=self._clock() - call.arrived_s,
            queue_s=None if queue_ms is None else queue_ms / 1e3,
            predict_s=None if predict_ms is None else predict_ms / 1e3,
        )


async def _leave_on_disconnect(receive: Receive, sink: Reply) -> None:
    await until_disconnect(receive)
    sink.leave()
