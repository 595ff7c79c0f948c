"""``zerowake.runtime.gateway.invoke``: replies that come in chunks, over a real server where it matters."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from zerowake.runtime.errors import HandlerFailed, PredictTimeout
from zerowake.runtime.invocation import Invocation


async def words(call: Invocation) -> None:
    for word in ("a", "b"):
        await call.sink.item(json.dumps(word).encode())
    call.sink.finish()


async def broken(call: Invocation) -> None:
    await call.sink.item(b'"a"')
    raise PredictTimeout("too slow")


@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("*/*", "application/x-ndjson", b'"a"\n"b"\n'),
        ("text/event-stream", "text/event-stream", b'data: "a"\n\ndata: "b"\n\n'),
    ],
)
def test_a_stream_is_lines_or_events(
    edge: Any, accept: str, content_type: str, body: bytes
) -> None:
    edge.functions.serve("f", words, kind="stream")
    reply = edge.post("/invoke/f", content=b"1", headers={"Accept": accept})
    assert (reply.status_code, reply.content) == (200, body)
    assert reply.headers["content-type"] == content_type
    assert reply.headers["zerowake-depth"] == "prewarmed"
    assert edge.count("ok") == 1


def test_a_stream_of_bytes_is_only_the_bytes(edge: Any) -> None:
    edge.functions.serve("f", words, kind="stream", raw_output=True)
    reply = edge.post("/invoke/f", content=b"1", headers={"Accept": "text/event-stream"})
    assert reply.content == b'"a""b"'
    assert reply.headers["content-type"] == "application/octet-stream"


def test_a_stream_may_be_empty(edge: Any) -> None:
    async def nothing(call: Invocation) -> None:
        call.sink.finish()

    edge.functions.serve("f", nothing, kind="stream")
    reply = edge.post("/invoke/f", content=b"1")
    assert (reply.status_code, reply.content) == (200, b"")


def test_an_error_before_the_first_item_has_its_own_status(edge: Any) -> None:
    async def fail(call: Invocation) -> None:
        raise HandlerFailed("no")

    edge.functions.serve("f", fail, kind="stream")
    reply = edge.post("/invoke/f", content=b"1")
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"


def test_an_error_after_it_is_an_event(edge: Any) -> None:
    edge.functions.serve("f", broken, kind="stream")
    reply = edge.post("/invoke/f", content=b"1", headers={"Accept": "text/event-stream"})
    first, last, rest = reply.text.split("\n\n")
    assert (first, rest) == ('data: "a"', "")
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["code"] == "predict_timeout"
    assert edge.count("timeout") == 1


def test_an_error_after_the_first_line_cuts_the_connection(edge: Any) -> None:
    async def run() -> None:
        async with edge.listening() as port, httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/invoke/f"
            async with client.stream("POST", url, content=b"1") as reply:
                assert reply.status_code == 200
                with pytest.raises(httpx.RemoteProtocolError):
                    await reply.aread()

    edge.functions.serve("f", broken, kind="stream")
    asyncio.run(run())
    assert edge.count("timeout") == 1


def test_items_arrive_one_by_one(edge: Any) -> None:
    async def run() -> None:
        go_on = asyncio.Event()

        async def waits(call: Invocation) -> None:
            await call.sink.item(b"1")
            await go_on.wait()
            await call.sink.item(b"2")
            call.sink.finish()

        edge.functions.serve("f", waits, kind="stream")
        async with edge.listening() as port, httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/invoke/f"
            async with client.stream("POST", url, content=b"1") as reply:
                lines = reply.aiter_lines()
                assert await anext(lines) == "1"
                go_on.set()  # only now may the second exist
                assert [line async for line in lines] == ["2"]

    asyncio.run(run())
