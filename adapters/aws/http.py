"""HTTP requests that come as Lambda events: through the gateway's own ASGI app and back as replies.

So a function URL has the routes, checks, errors and streams that ``zerowake serve`` has. Knows no
Runtime API.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from zerowake.adapters.aws.events import HttpRequest
from zerowake.runtime.errors import Cancelled
from zerowake.runtime.exchange import HOPS
from zerowake.runtime.gateway.asgi import ASGIApp, Message, Scope
from zerowake.runtime.gateway.invoke import ORIGIN
from zerowake.runtime.invocation import Origin

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
_ITS_OWN = HOPS | {"content-length"}  # the platform sets them


def scope(request: HttpRequest, origin: Origin, *, whole: bool = False) -> Scope:
    """The ASGI scope of a request; its id is that of the Lambda invocation, ``origin.request_id``.

    An API gateway's routes are its owner's: every POST is for the only function. Nobody is to have
    it sleep (POST /functions/...) through a public URL. whole: the function takes requests whole, so
    that path and method mean something to it.
    """
    path = unquote(request.path)
    if not whole and request.method == "POST" and not path.startswith("/invoke/"):
        path = "/"
    headers = [(n.encode(), v.encode("utf-8")) for n, v in request.headers if n != "x-request-id"]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "https",
        "path": path,
        "raw_path": request.path.encode(),
        "query_string": request.query.encode(),
        "root_path": "",
        "headers": [*headers, (b"x-request-id", origin.request_id.encode())],
        "client": (request.client, 0),
        "server": None,
        ORIGIN: origin,
    }


@dataclass(slots=True)
class Reply:
    """What the app has sent. headers: in its order."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class Cycle:
    """One request through the app, and its reply."""

    def __init__(
        self, app: ASGIApp, request: HttpRequest, origin: Origin, *, whole: bool = False
    ) -> None:
        self._app = app
        self._request = request
        self._scope = scope(request, origin, whole=whole)
        self._given = False
        self._left = asyncio.Event()
        self.reply = Reply()

    def leave(self) -> None:
        """The caller has left: the app gives its call up."""
        self._left.set()

    async def complete(self) -> Reply:
        """The reply, once it is complete. Raises what the app raises in mid-stream."""

        async def send(message: Message) -> None:
            chunks.append(self._take(message))

        chunks: list[bytes] = []
        await self._app(self._scope, self._receive, send)
        if not self.reply.status:
            raise Cancelled("the call was given up before its reply")
        self.reply.body = b"".join(chunks)
        return self.reply

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The reply's body as it comes; ``reply`` has status and headers when the first is there.

        Raises what the app raises in mid-stream, after the chunks before it.
        """
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)  # a slow reader holds the app back

        async def send(message: Message) -> None:
            await queue.put(self._take(message))

        async def run() -> Exception | None:
            failure = None
            try:
                await self._app(self._scope, self._receive, send)
            except Exception as error:
                failure = error
            await queue.put(None)
            return failure

        running = asyncio.create_task(run())
        try:
            while (chunk := await queue.get()) is not None:
                yield chunk
            if (failure := await running) is not None:
                raise failure
        finally:
            running.cancel()

    def _take(self, message: Message) -> bytes:
        """What of the body is in a message."""
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            pairs = message["headers"]
            told = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in pairs]
            self.reply.headers = [pair for pair in told if pair[0] not in _ITS_OWN]
        return b"" if self._request.method == "HEAD" else message.get("body", b"")

    async def _receive(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._request.body}
        await self._left.wait()
        return {"type": "http.disconnect"}


def encode(reply: Reply, shape: str) -> bytes:
    """A whole reply as the event's source wants it: text as it is, all else in base64."""
    content_type = dict(reply.headers).get("content-type", "")
    told = head(reply, shape)
    try:
        if not (content_type.startswith("text/") or "json" in content_type):
            raise ValueError(content_type)
        told |= {"body": reply.body.decode(), "isBase64Encoded": False}
    except ValueError:
        told |= {"body": base64.b64encode(reply.body).decode(), "isBase64Encoded": True}
    if shape.startswith("alb"):
        told["statusDescription"] = f"{reply.status} {_phrase(reply.status)}"
    return json.dumps(told, ensure_ascii=False).encode()


def prelude(reply: Reply, shape: str) -> bytes:
    """What stands before a streamed body: status and headers as JSON, and eight zero bytes.

    https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming
    """
    return json.dumps(head(reply, shape)).encode() + bytes(8)


def head(reply: Reply, shape: str) -> dict[str, Any]:
    """Status and headers. Only with several values a name can cookies stand among the others."""
    many: dict[str, list[str]] = {}
    for name, value in reply.headers:
        many.setdefault(name, []).append(value)
    if shape in ("v1", "alb-multi"):
        return {"statusCode": reply.status, "multiValueHeaders": many}
    cookies = many.pop("set-cookie", [])
    headers = {name: ", ".join(values) for name, values in many.items()}
    if shape == "alb" and cookies:
        headers["set-cookie"] = cookies[-1]
    told: dict[str, Any] = {"statusCode": reply.status, "headers": headers}
    return {**told, "cookies": cookies} if shape == "v2" and cookies else told


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
