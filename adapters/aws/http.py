"""HTTP requests that come as Lambda events: through the gateway's own ASGI app and back as replies.

So a function URL has the routes, checks, errors and streams that ``zerowake serve`` has. Knows no
Runtime API.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from zerowake.adapters.aws.events import HttpRequest
from zerowake.runtime.gateway.asgi import ASGIApp, Message, Scope

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
_OWN = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/functions", "/invoke/")


def scope(request: HttpRequest, call_id: str) -> Scope:
    """The ASGI scope of a request; its id is that of the Lambda invocation.

    An API gateway's routes are its owner's: a POST to a path that is none of ours is for the only
    function.
    """
    path = unquote(request.path)
    if request.method == "POST" and not path.startswith(_OWN):
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
        "headers": [*headers, (b"x-request-id", call_id.encode())],
        "client": (request.client, 0),
        "server": None,
    }


@dataclass(slots=True)
class Reply:
    """What the app has sent. headers: in its order."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class Exchange:
    """One request through the app."""

    def __init__(self, app: ASGIApp, request: HttpRequest, call_id: str) -> None:
        self._app = app
        self._request = request
        self._scope = scope(request, call_id)
        self._given = False
        self._left = asyncio.Event()
        self.reply = Reply()

    def leave(self) -> None:
        """The caller has left: the app gives its call up."""
        self._left.set()

    async def whole(self) -> Reply:
        """The reply, once it is complete. Raises what the app raises in mid-stream."""

        async def send(message: Message) -> None:
            self._take(message)
            self.reply.body += message.get("body", b"")

        await self._app(self._scope, self._receive, send)
        return self.reply

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The reply's body as it comes; ``reply`` has status and headers when the first is there.

        Raises what the app raises in mid-stream, after the chunks before it.
        """
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)  # a slow reader holds the app back

        async def send(message: Message) -> None:
            self._take(message)
            await queue.put(message.get("body", b""))

        async def run() -> None:
            try:
                await self._app(self._scope, self._receive, send)
            finally:
                await queue.put(None)

        running = asyncio.create_task(run())
        try:
            while (chunk := await queue.get()) is not None:
                yield chunk
            await running
        finally:
            running.cancel()

    def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            pairs = message["headers"]
            self.reply.headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in pairs]

    async def _receive(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._request.body}
        await self._left.wait()
        return {"type": "http.disconnect"}


def encode(reply: Reply, shape: str) -> bytes:
    """A whole reply as the event's source wants it: text as it is, all else in base64."""
    headers = dict(reply.headers)
    content_type = headers.get("content-type", "")
    is_text = content_type.startswith("text/") or "json" in content_type
    body = (
        reply.body.decode("utf-8", "replace") if is_text else base64.b64encode(reply.body).decode()
    )
    told: dict[str, Any] = {
        "statusCode": reply.status,
        "body": body,
        "isBase64Encoded": not is_text,
    }
    if shape in ("v1", "alb-multi"):
        many: dict[str, list[str]] = {}
        for name, value in reply.headers:
            many.setdefault(name, []).append(value)
        told["multiValueHeaders"] = many
    else:
        told["headers"] = headers
    if shape.startswith("alb"):
        told["statusDescription"] = f"{reply.status} {HTTPStatus(reply.status).phrase}"
    return json.dumps(told, ensure_ascii=False).encode()


def prelude(reply: Reply) -> bytes:
    """What stands before a streamed body: status and headers as JSON, and eight zero bytes.

    https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming
    """
    headers = {name: value for name, value in reply.headers if name != "content-length"}
    return json.dumps({"statusCode": reply.status, "headers": headers}).encode() + bytes(8)
