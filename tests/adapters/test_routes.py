"""The table in front of the app: what is answered, what is passed on, and who leaves."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest

from zerowake.adapters.routes import Passed, Request, Response, Route, Table, answer_json
from zerowake.runtime.errors import QueueFull
from zerowake.runtime.gateway.asgi import Receive, Scope, Send, read_body, respond


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what it has been given."""
    body = await read_body(receive, {}, 1 << 20)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    told: dict[str, Any] = {"path": scope["path"], "raw_path": scope["raw_path"].decode()}
    told |= {"body": body.decode(), "id": headers.get("x-request-id")}
    await respond(send, 200, [], json.dumps(told).encode())


async def read(request: Request) -> Response:
    return Response(201, await request.body(), "text/plain", {"x-parts": json.dumps(request.parts)})


async def read_and_pass(request: Request) -> Passed:
    await request.body()
    return Passed("/there")


async def fail(request: Request) -> Response:
    raise QueueFull("too many", retry_after_s=2.0)


ROUTES = [
    Route("POST", "/a/{name}:do", read),
    Route("GET", "/a/{name}", lambda request: answer_json(request.parts)),
    Route("", "/pass", lambda request: Passed("/there", {"x-request-id": "7"}, {"x-added": "1"})),
    Route("POST", "/read", read_and_pass),
    Route("POST", "/fail", fail),
    Route("PUT", "", lambda request: Passed(request.path.removeprefix("/off"))),
]


async def arrived() -> None: ...


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Table(ROUTES, app, 100, arrived))
        async with httpx.AsyncClient(transport=transport, base_url="http://table") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def test_the_first_route_that_fits_answers_and_the_app_the_rest() -> None:
    reply = ask("POST", "/a/x:do", content=b"body")
    assert (reply.status_code, reply.text) == (201, "body")
    assert json.loads(reply.headers["x-parts"]) == {"name": "x"}
    assert ask("GET", "/a/x").json() == {"name": "x"}
    assert ask("HEAD", "/a/x").status_code == 200
    for method, path in [("POST", "/a/x"), ("GET", "/a/x/y"), ("GET", "/a/"), ("POST", "/a/x:don")]:
        assert ask(method, path).json()["path"] == path


def test_what_is_passed_on_has_its_body_read_or_not() -> None:
    reply = ask("POST", "/pass", content=b"body", headers={"x-request-id": "old"})
    there = {"path": "/there", "raw_path": "/there"}
    assert reply.json() == {**there, "body": "body", "id": "7"}
    assert reply.headers["x-added"] == "1"
    assert ask("POST", "/read", content=b"body").json()["body"] == "body"


def test_what_is_passed_on_keeps_its_path_as_it_was_written() -> None:
    told = ask("PUT", "/a%2Fb/%2520").json()
    assert (told["path"], told["raw_path"]) == ("/a/b/%20", "/a%2Fb/%2520")
    told = ask("PUT", "/off/%2520/%C3%A9").json()
    assert (told["path"], told["raw_path"]) == ("/%20/é", "/%2520/%C3%A9")


@pytest.mark.parametrize(
    "options, status",
    [
        ({"content": b"x" * 101}, 413),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 415),
    ],
)
def test_bodies_are_read_as_the_gateway_reads_them(options: Any, status: int) -> None:
    assert ask("POST", "/read", **options).status_code == status


def test_errors_are_problems_with_their_headers() -> None:
    reply = ask("POST", "/fail")
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
    assert reply.json()["code"] == "queue_full"


def test_who_leaves_has_the_work_cancelled_and_gets_nothing() -> None:
    async def run() -> list[str]:
        seen: list[str] = []
        gone = asyncio.Event()

        async def work(request: Request) -> Response:
            await request.body()
            gone.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            raise AssertionError

        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": b""}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            seen.append("sent")

        scope = {"type": "http", "method": "POST", "path": "/w", "headers": []}
        handler: Any = work
        calling: Coroutine[Any, Any, None] = Table([Route("POST", "/w", handler)], app, 9, arrived)(
            scope, receive, send
        )
        await calling
        return seen

    assert asyncio.run(run()) == ["cancelled"]
