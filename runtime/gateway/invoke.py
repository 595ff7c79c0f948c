"""/invoke/{name}: one HTTP request in, one invocation through the pool, one reply out.

A POST whose body is the input, or whatever the request is where the function takes requests whole.

Knows no process and no queue, and uses no framework: this is the path every call takes. A reply
has not started until its first byte is known, so that an error before it has its own status.
"""

import asyncio
import json
import logging

from zerowake.runtime.errors import Cancelled, Draining, RemoteError, TooLarge
from zerowake.runtime.exchange import HOPS, ReplyHead, RequestHead
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
from zerowake.runtime.gateway.caller import Caller, Calling
from zerowake.runtime.gateway.mailbox import Mailbox
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.invocation import NOWHERE, Origin
from zerowake.runtime.logs import invocation_fields
from zerowake.snapshot.errors import ZerowakeError

log = logging.getLogger("zerowake.gateway")

JSON = b"application/json"
RAW = b"application/octet-stream"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"


ORIGIN = "zerowake.origin"  # in the scope, from a platform that tells it beside the request


class StreamBroken(RemoteError):
    """A stream that had begun ended in an error: the server must cut the connection off.

    A clean end would tell the client that it has everything.
    """


class Invoke:
    """The endpoint."""

    def __init__(self, caller: Caller, *, max_body_nbytes: int) -> None:
        self._caller = caller
        self._functions = caller.functions
        self._max_body_nbytes = max_body_nbytes

    async def __call__(
        self, name: str, scope: Scope, receive: Receive, send: Send, *, path: str | None = None
    ) -> None:
        """path: of a request that is for the function as a whole, as it is to see it."""
        headers = dict(scope["headers"])
        origin = scope.get(ORIGIN) or _origin(headers)
        calling, read = self._caller.calling(name, origin.id, origin), False
        try:
            with calling:
                if path is None and scope["method"] != "POST":
                    raise problems.MethodNotAllowed(scope["method"], scope["path"], "POST")
                if self._functions.draining:
                    raise Draining("the server is shutting down; send the call to another one")
                info = calling.find()
                if path is not None:
                    calling.call.head = _head(scope, path)
                    headers.pop(b"content-encoding", None)  # its own to decode
                body = await read_body(receive, headers, self._max_body_nbytes)
                read = True
                calling.submit(body)
                watch = asyncio.create_task(_leave_on_disconnect(receive, calling.sink))
                try:
                    if info.kind is Kind.STREAM:
                        await self._stream(calling, info, headers, send)
                    else:
                        await self._unary(calling, info, send)
                finally:
                    watch.cancel()
        except Cancelled:
            pass
        except StreamBroken:
            raise
        except Exception as error:
            assert calling.problem is not None
            status, extra, body = problems.reply(calling.problem, error)
            told = self._headers(calling) + extra
            if isinstance(error, Draining | TooLarge):
                await respond_and_close(None if read else receive, send, status, told, body)
            else:
                await respond(send, status, told, body)

    async def _unary(self, calling: Calling, info: FunctionInfo, send: Send) -> None:
        call, sink = calling.call, calling.sink
        chunks = await sink.read()
        if not chunks:
            raise ZerowakeError(f"{info.name} ended without a result; one was wanted")
        while more := await sink.read():
            chunks += more
        body = b"".join(chunks)
        if call.head is not None and call.reply is not None:
            await self._pass_on(calling, call.head.method, call.reply, body, send)
            return
        content_type = RAW if info.raw_output else JSON
        headers = [(b"content-type", content_type), *self._headers(calling)]
        await respond(send, 200, headers, body)

    async def _pass_on(
        self, calling: Calling, method: str, reply: ReplyHead, body: bytes, send: Send
    ) -> None:
        """The function's own reply. What has no body (RFC 9110, section 6.4.1) is sent none."""
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in reply.headers
            if name not in HOPS and name not in ("content-length", "date")  # the server's
        ]
        if method == "HEAD" and (length := reply.header("content-length")):
            headers.append((b"content-length", length.encode("latin-1")))
        headers += self._headers(calling)
        if method == "HEAD" or reply.status in (204, 304):
            body = b""
        else:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, calling: Calling, info: FunctionInfo, asked: dict[bytes, bytes], send: Send
    ) -> None:
        if info.raw_output:
            content_type, before, after = RAW, b"", b""
        elif SSE in asked.get(b"accept", b""):
            content_type, before, after = SSE, b"data: ", b"\n\n"
        else:
            content_type, before, after = NDJSON, b"", b"\n"
        sink = calling.sink
        chunks = await sink.read()
        headers = [(b"content-type", content_type), *self._headers(calling)]
        if content_type == SSE:
            headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while chunks:
                body = b"".join([part for chunk in chunks for part in (before, chunk, after)])
                await send({"type": "http.response.body", "body": body, "more_body": True})
                chunks = await sink.read()
            last = b""
        except RemoteError as error:
            calling.problem = error.problem
            told = {"function": info.name, **invocation_fields([calling.call.id])}
            log.error(
                "the stream broke off: %s", " ".join(str(error).split()), extra={"fields": told}
            )
            if content_type != SSE:
                raise StreamBroken(error.problem) from None
            last = b"event: error\ndata: " + json.dumps(error.problem).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": last})

    def _headers(self, calling: Calling) -> Headers:
        call = calling.call
        total_ms = (self._caller.clock() - call.arrived_s) * 1e3
        timings = [f"{name};dur={ms:.3f}" for name, ms in call.timings_ms.items()]
        headers = [
            (b"server-timing", ", ".join([*timings, f"total;dur={total_ms:.3f}"]).encode()),
            (b"zerowake-invocation", call.id.encode()),
        ]
        if calling.submitted:
            headers.append((b"zerowake-depth", call.depth.encode()))
        return headers


def _origin(headers: dict[bytes, bytes]) -> Origin:
    request_id, trace = headers.get(b"x-request-id"), headers.get(b"traceparent")
    if request_id is None and trace is None:
        return NOWHERE
    return Origin((request_id or b"").decode("latin-1"), (trace or b"").decode("latin-1"))


def _head(scope: Scope, path: str) -> RequestHead:
    client = scope.get("client")
    return RequestHead(
        method=scope["method"],
        path=path,
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]),
        client=client[0] if client else "",
        scheme=scope["scheme"],
    )


async def _leave_on_disconnect(receive: Receive, sink: Mailbox) -> None:
    await until_disconnect(receive)
    sink.leave()
