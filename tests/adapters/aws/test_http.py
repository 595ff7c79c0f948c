"""``zerowake.adapters.aws.http``: requests into the app, replies in each source's own form."""

import asyncio
import base64
import json
from typing import Any

import pytest

from zerowake.adapters.aws.events import HttpRequest
from zerowake.adapters.aws.http import Cycle, Reply, encode, prelude, scope
from zerowake.runtime.errors import Cancelled
from zerowake.runtime.gateway.asgi import ASGIApp, Receive, Scope, Send
from zerowake.runtime.invocation import Origin

HEADERS = [("content-type", "text/plain"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
HEADERS += [("vary", "x"), ("vary", "y")]


def request(method: str = "POST", path: str = "/", body: bytes = b"1", **more: Any) -> HttpRequest:
    return HttpRequest("v2", method, path, "", (), body, **more)


def told(reply: Reply, shape: str) -> Any:
    return json.loads(encode(reply, shape))


def test_replies_in_each_form() -> None:
    reply = Reply(200, HEADERS, b"hi")
    body = {"statusCode": 200, "body": "hi", "isBase64Encoded": False}
    joined = {"content-type": "text/plain", "vary": "x, y"}
    assert told(reply, "v2") == {**body, "headers": joined, "cookies": ["a=1", "b=2"]}
    many = {"content-type": ["text/plain"], "set-cookie": ["a=1", "b=2"], "vary": ["x", "y"]}
    assert told(reply, "v1") == {**body, "multiValueHeaders": many}
    ok = {"statusDescription": "200 OK"}
    assert told(reply, "alb-multi") == {**body, **ok, "multiValueHeaders": many}
    assert told(reply, "alb") == {**body, **ok, "headers": {**joined, "set-cookie": "b=2"}}
    assert told(Reply(299), "alb")["statusDescription"] == "299 Unknown"
    assert "cookies" not in told(Reply(200, HEADERS[:1]), "v2")
    head = json.loads(prelude(reply, "v2").removesuffix(bytes(8)))
    assert head == {"statusCode": 200, "headers": joined, "cookies": ["a=1", "b=2"]}


@pytest.mark.parametrize(
    ("content_type", "body", "is_text"),
    [
        ("application/json", b"{}", True),
        ("application/problem+json", "é".encode(), True),
        ("text/html; charset=utf-8", b"", True),
        ("text/plain", b"\xff", False),
        ("application/octet-stream", b"ab", False),
        ("", b"ab", False),
    ],
)
def test_bodies_as_text_or_base64(content_type: str, body: bytes, is_text: bool) -> None:
    found = told(Reply(200, [("content-type", content_type)], body), "v2")
    assert found["isBase64Encoded"] is not is_text
    sent = found["body"].encode() if is_text else base64.b64decode(found["body"])
    assert sent == body


def test_every_post_is_for_the_function() -> None:
    for path in ("/", "/my/route", "/functions/f/sleep", "/livez"):
        assert scope(request("POST", path), Origin("id"))["path"] == "/"
    assert scope(request("POST", "/invoke/f"), Origin("id"))["path"] == "/invoke/f"
    assert scope(request("GET", "/my%20route"), Origin("id"))["path"] == "/my route"
    found = scope(request("POST", "/my%20route"), Origin("id"), whole=True)
    assert (found["path"], found["raw_path"]) == ("/my route", b"/my%20route")
    headers = (("x-request-id", "theirs"), ("accept", "é"))
    found = scope(HttpRequest("v2", "GET", "/", "a=1", headers, b"", "192.0.2.1"), Origin("id"))
    assert found["headers"] == [(b"accept", "é".encode()), (b"x-request-id", b"id")]
    assert (found["query_string"], found["client"]) == (b"a=1", ("192.0.2.1", 0))


def parts_of(*bodies: bytes, error: Exception | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"Content-Type", b"text/plain"), (b"Content-Length", b"9")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if error is not None:
            raise error
        await send({"type": "http.response.body", "body": b""})

    return app


async def chunks(cycle: Cycle) -> list[bytes]:
    return [chunk async for chunk in cycle.chunks() if chunk]


def test_replies_whole_and_in_chunks() -> None:
    app = parts_of(b"a", b"b")
    reply = asyncio.run(Cycle(app, request(), Origin("id")).complete())
    assert reply == Reply(201, [("content-type", "text/plain")], b"ab")
    assert asyncio.run(chunks(Cycle(app, request(), Origin("id")))) == [b"a", b"b"]
    reply = asyncio.run(Cycle(app, request("HEAD"), Origin("id")).complete())
    assert (reply.status, reply.body) == (201, b"")
    assert asyncio.run(chunks(Cycle(app, request("HEAD"), Origin("id")))) == []


def test_errors_come_after_what_was_before_them() -> None:
    async def until_error(cycle: Cycle) -> list[bytes]:
        found = []
        with pytest.raises(ValueError, match="over"):
            async for chunk in cycle.chunks():
                found.append(chunk)
        return found

    app = parts_of(b"a", error=ValueError("over"))
    assert asyncio.run(until_error(Cycle(app, request(), Origin("id")))) == [b"", b"a"]
    with pytest.raises(ValueError, match="over"):
        asyncio.run(Cycle(app, request(), Origin("id")).complete())


def test_an_app_that_says_nothing() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    with pytest.raises(Cancelled):
        asyncio.run(Cycle(silent, request(), Origin("id")).complete())
    assert asyncio.run(chunks(Cycle(silent, request(), Origin("id")))) == []


def test_who_stops_reading_ends_the_app() -> None:
    ended = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.set()

    async def main() -> None:
        reading = Cycle(endless, request(), Origin("id")).chunks()
        await anext(reading)
        await reading.aclose()
        await asyncio.wait_for(ended.wait(), 30)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 30)

    asyncio.run(main())


def test_the_app_learns_that_its_caller_has_left() -> None:
    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"1"
        assert (await receive())["type"] == "http.disconnect"

    async def main() -> None:
        cycle = Cycle(patient, request(), Origin("id"))
        reading = asyncio.create_task(chunks(cycle))
        cycle.leave()
        assert await asyncio.wait_for(reading, 30) == []

    asyncio.run(main())
