"""The HTTP edge of the gateway: which request goes where.

Knows no process and no queue: what runs the functions stands behind ``Functions``. Invocations, probes
and metrics are plain ASGI; everything else goes to the FastAPI app in ``control``, imported when the
first such request comes.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from zerowake.runtime.errors import Draining, UnknownFunction
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.asgi import ASGIApp, Headers, Receive, Scope, Send, lifespan, respond
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.gateway.invoke import Invoke
from zerowake.runtime.gateway.port import Functions, takes_requests
from zerowake.runtime.metrics import Metrics

# /invoke/NAME/ as a URL may spell it, with %2F for "/"; what follows is the function's.
_ABOVE = re.compile(r"(?:(?:/|%2F)(?:(?!%2F)[^/])*){2}(?:/|%2F)?", re.IGNORECASE)


def create_app(
    functions: Functions,
    metrics: Metrics,
    *,
    max_body_nbytes: int,
    version: str,
    with_orders: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """The gateway as an ASGI app.

    with_orders: offer what only operators should do (/functions, sleep, wake); not where callers are
    the public. ``clock`` gives monotonic seconds, as in ``Invocation.arrived_s``.
    """
    invoke = Invoke(Caller(functions, metrics, clock), max_body_nbytes=max_body_nbytes)
    return Edge(functions, metrics, invoke, version, with_orders)


class Edge:
    """The ASGI app."""

    def __init__(
        self,
        functions: Functions,
        metrics: Metrics,
        invoke: Invoke,
        version: str,
        with_orders: bool,
    ) -> None:
        self._functions = functions
        self._metrics = metrics
        self._invoke = invoke
        self._version = version
        self._with_orders = with_orders
        self._control: ASGIApp | None = None
        self._control_lock = asyncio.Lock()
        self._probes = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._scrape}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # before accept: 403
            return
        try:
            target = await self._route(scope)
        except Exception as error:
            target = _fixed(*problems.reply(problems.describe(error, scope["path"]), error))
        await target(scope, receive, send)

    async def _route(self, scope: Scope) -> ASGIApp:
        path: str = scope["path"]
        if path.startswith("/invoke/"):
            await self._functions.arrived()
            called = path.removeprefix("/invoke/")
            name = called.partition("/")[0]
            if not takes_requests(self._functions, name):
                return partial(self._invoke, called)
            return partial(self._invoke, name, path="/" + _ABOVE.sub("", _raw_path(scope), count=1))
        if (probe := self._probes.get(path)) is not None:
            if scope["method"] not in ("GET", "HEAD"):
                raise problems.MethodNotAllowed(scope["method"], path, "GET, HEAD")
            return _fixed(200, *await probe(scope))
        if not self._is_order(path):
            await self._functions.arrived()
        names = self._functions.names()
        if (
            len(names) == 1
            and takes_requests(self._functions, names[0])
            and not self._is_order(path)
        ):
            return partial(self._invoke, names[0], path=_raw_path(scope))
        if path == "/":
            return partial(self._invoke, self._only_function(scope["method"]))
        return await self._load_control()

    def _is_order(self, path: str) -> bool:
        return self._with_orders and (path == "/functions" or path.startswith("/functions/"))

    def _only_function(self, method: str) -> str:
        names = self._functions.names()
        if len(names) == 1:
            return names[0]
        if method != "POST":
            raise problems.MethodNotAllowed(method, "/", "POST")
        known = ", ".join(f"/invoke/{name}" for name in names) or "none yet"
        raise UnknownFunction(
            f"{len(names)} functions are served and / stands for the only one; POST to {known}"
        )

    async def _livez(self, scope: Scope) -> tuple[Headers, bytes]:
        return _json({"status": "alive"})

    async def _readyz(self, scope: Scope) -> tuple[Headers, bytes]:
        if self._functions.draining:
            raise Draining("the server is shutting down; calls under way finish")
        if not self._functions.ready:
            functions = self._functions.describe()
            if functions and all(each["state"] == "failed" for each in functions):
                reasons = "; ".join(f"{each['name']}: {each['reason']}" for each in functions)
                raise problems.NotReady(f"no function can serve: {reasons}", retry_after_s=1.0)
            raise problems.NotReady("no function can serve yet; ask again", retry_after_s=1.0)
        return _json({"status": "ready"})

    async def _scrape(self, scope: Scope) -> tuple[Headers, bytes]:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        text, content_type = await self._metrics.scrape(accept)
        return [(b"content-type", content_type.encode())], text

    async def _load_control(self) -> ASGIApp:
        async with self._control_lock:
            if self._control is None:
                # In a thread: calls under way shall not wait for an import.
                self._control = await asyncio.to_thread(self._import_control)
            return self._control

    def _import_control(self) -> ASGIApp:
        from zerowake.runtime.gateway.control import create_control

        app: ASGIApp = create_control(self._functions, self._version, with_orders=self._with_orders)
        return app


def _raw_path(scope: Scope) -> str:
    """The path as the URL spells it."""
    raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw_path.decode("latin-1")


def _json(value: object) -> tuple[Headers, bytes]:
    return [(b"content-type", b"application/json")], json.dumps(value).encode()


def _fixed(status: int, headers: Headers, body: bytes) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, status, headers, body)

    return answer
