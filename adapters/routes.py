"""A platform's HTTP routes: a table in front of the gateway's own app.

A route's handler reads the request and answers it, or passes it on to the app as it is but for its
path and headers: whatever the app can do (checks, streams, errors) is not done twice. Knows no
function and no platform.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from zerowake.runtime.errors import Cancelled, Draining, TooLarge
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.asgi import (
    ASGIApp,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
    respond,
    respond_and_close,
    until_disconnect,
)
from zerowake.runtime.invocation import Origin

JSON = "application/json"


class Request:
    """One request. parts: what stands in the path where the template has names.

    headers: with lower-case names; of several of one name the last.
    """

    def __init__(
        self, scope: Scope, receive: Receive, parts: Mapping[str, str], limit_nbytes: int
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.parts = parts
        self._raw_headers: dict[bytes, bytes] = dict(scope["headers"])
        self.headers = {
            n.decode("latin-1"): v.decode("latin-1") for n, v in self._raw_headers.items()
        }
        self.was_read = asyncio.Event()
        self._receive = receive
        self._limit_nbytes = limit_nbytes
        self._body = b""

    @property
    def id(self) -> str:
        """What the caller calls this request; "" when it does not."""
        return self.origin.id

    @property
    def origin(self) -> Origin:
        """As the gateway's own routes read it."""
        return Origin(self.headers.get("x-request-id", ""), self.headers.get("traceparent", ""))

    @property
    def content_type(self) -> str:
        """In lower case and without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self) -> bytes:
        """Raises TooLarge, BadRequest, UnsupportedEncoding, or Cancelled when it is cut off."""
        if not self.was_read.is_set():
            self._body = await read_body(self._receive, self._raw_headers, self._limit_nbytes)
            self.was_read.set()
        return self._body


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. headers: beside Content-Type and Content-Length."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passed:
    """The app is to answer. headers: set in the request; reply_headers: added to the reply."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    reply_headers: Mapping[str, str] = field(default_factory=dict)


# One that needs neither body nor time answers at once: most requests are passed on by such a one.
Handler = Callable[[Request], Response | Passed | Coroutine[Any, Any, Response | Passed]]


class Route(NamedTuple):
    """method: "" for every one; GET is HEAD as well. template: ``/models/{name}``, "" for every path.

    early: answered before the functions are here, as what asks whether they are.
    """

    method: str
    template: str
    handler: Handler
    early: bool = False


def answer_json(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode())


def problem_response(problem: Mapping[str, Any], error: Exception) -> Response:
    """The error as the gateway itself tells it."""
    status, headers, body = problems.reply(problem, error)
    told = {name.decode(): value.decode() for name, value in headers}
    return Response(status, body, told.pop("content-type"), told)


class Table:
    """An ASGI app: the first route that fits answers, ``app`` answers everything else.

    arrived: waits until the functions are here. tell: how an error that a handler has raised is answered. Another method of a known path is the
    app's as well.
    """

    def __init__(
        self,
        routes: list[Route],
        app: ASGIApp,
        limit_nbytes: int,
        arrived: Callable[[], Coroutine[Any, Any, None]],
        tell: Callable[[Mapping[str, Any], Exception], Response] = problem_response,
    ) -> None:
        self._routes = [(route, _pattern(route.template)) for route in routes]
        self._app = app
        self._arrived = arrived
        self._limit_nbytes = limit_nbytes
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, parts = found
        request = Request(scope, receive, parts, self._limit_nbytes)
        try:
            if not route.early:
                await self._arrived()
            answer = route.handler(request)
            if isinstance(answer, Coroutine):
                answer = await _unless_left(request, receive, answer)
        except Cancelled:
            return
        except Exception as error:
            await self._fail(request, receive, send, error)
            return
        if isinstance(answer, Passed):
            await self._pass(answer, request, scope, receive, send)
        else:
            await respond(send, answer.status, _headers(answer), answer.body)

    def _find(self, scope: Scope) -> tuple[Route, dict[str, str]] | None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        for route, pattern in self._routes:
            if route.method in ("", method) and (match := pattern.fullmatch(scope["path"])):
                return route, match.groupdict()
        return None

    async def _fail(self, request: Request, receive: Receive, send: Send, error: Exception) -> None:
        told = self._tell(problems.describe(error, request.path), error)
        headers = _headers(told)
        if isinstance(error, Draining | TooLarge):
            unread = None if request.was_read.is_set() else receive
            await respond_and_close(unread, send, told.status, headers, told.body)
        else:
            await respond(send, told.status, headers, told.body)

    async def _pass(
        self, passed: Passed, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = [pair for pair in scope["headers"] if pair[0].decode() not in passed.headers]
        headers += _encoded(passed.headers)
        raw_path = scope.get("raw_path")
        if passed.path != scope["path"]:
            raw_path = quote(passed.path).encode()
        scope = {**scope, "path": passed.path, "raw_path": raw_path, "headers": headers}
        body = await request.body() if request.was_read.is_set() else None

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            given, body = body, None
            return {"type": "http.request", "body": given, "more_body": False}

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_encoded(passed.reply_headers)]
            await send(message)

        await self._app(scope, replay, add if passed.reply_headers else send)


async def _unless_left(
    request: Request,
    receive: Receive,
    answering: Coroutine[Any, Any, Response | Passed],
) -> Response | Passed:
    """The answer. Raises Cancelled, and cancels the work on it, when the client leaves before."""

    async def leave() -> None:
        await request.was_read.wait()  # until then the body's reader finds out
        await until_disconnect(receive)

    answer, left = asyncio.ensure_future(answering), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise Cancelled("the client left before its reply")
    finally:
        for task in (answer, left):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _pattern(template: str) -> re.Pattern[str]:
    if not template:
        return re.compile(".*", re.DOTALL)
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template)))


def _headers(response: Response) -> Headers:
    return [(b"content-type", response.content_type.encode()), *_encoded(response.headers)]


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
