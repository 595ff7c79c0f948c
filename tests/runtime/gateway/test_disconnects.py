"""Clients that leave, send too much or send too early, against a real server on loopback."""

import asyncio
from typing import Any

import httpx

from zerowake.runtime.invocation import Invocation

HEAD = b"POST /invoke/f HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


async def forever(call: Invocation) -> None:
    while True:
        await call.sink.item(b'"on and on"')
        await asyncio.sleep(0)


def test_a_client_that_leaves_takes_its_call_with_it(edge: Any) -> None:
    async def run() -> None:
        arrived = asyncio.Event()

        async def never(call: Invocation) -> None:
            arrived.set()
            await asyncio.Event().wait()

        edge.functions.serve("f", never)
        async with edge.listening() as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD % 1 + b"1")
            await arrived.wait()
            writer.close()
            assert await edge.functions.cancelled.get() is edge.functions.calls[0]

    asyncio.run(run())
    assert edge.count("cancelled") == 1


def test_a_client_that_leaves_a_stream_stops_it(edge: Any) -> None:
    async def run() -> None:
        async with edge.listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD % 1 + b"1")
            await reader.readuntil(b"on and on")
            writer.close()
            assert await edge.functions.cancelled.get() is edge.functions.calls[0]

    edge.functions.serve("f", forever, kind="stream")
    asyncio.run(run())
    assert edge.count("cancelled") == 1


def test_a_client_that_leaves_in_its_request_never_becomes_a_call(edge: Any) -> None:
    async def run() -> None:
        async with edge.listening() as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD % 100 + b"half of")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            async with httpx.AsyncClient() as client:  # answered after what came before it
                await client.get(f"http://127.0.0.1:{port}/livez")

    edge.functions.serve("f", raw_input=True)
    asyncio.run(run())
    assert not edge.functions.calls
    assert edge.count("cancelled") == 1


def test_a_body_far_over_the_limit_still_gets_its_answer(edge: Any) -> None:
    """Without reading on, the kernel would reset the connection and eat the 413."""

    async def run() -> None:
        async with edge.listening() as port, httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/invoke/f"
            reply = await client.post(url, content=b"x" * (4 << 20))
            assert reply.status_code == 413
            assert reply.headers["connection"] == "close"

    edge.functions.serve("f")
    edge.options["max_body_nbytes"] = 1000
    asyncio.run(run())


def test_requests_sent_ahead_are_answered_in_order(edge: Any) -> None:
    async def run() -> None:
        async with edge.listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD % 5 + b'"one"' + HEAD % 5 + b'"two"')
            for wanted in (b'"one"', b'"two"'):
                assert (await reader.readuntil(wanted)).count(b"200 OK") == 1
            writer.close()

    edge.functions.serve("f")
    asyncio.run(run())
    assert edge.functions.cancelled.empty()
    assert edge.count("ok") == 2
