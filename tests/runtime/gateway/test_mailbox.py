"""``zerowake.runtime.gateway.mailbox``: a bounded buffer that either side can leave."""

import asyncio

import pytest

from zerowake.runtime.errors import Cancelled, RemoteError
from zerowake.runtime.gateway.mailbox import UNREAD_CHUNKS, Mailbox


async def write(sink: Mailbox, count: int) -> None:
    for number in range(count):
        await sink.item(b"%d" % number)
    sink.finish()


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_writer_waits_for_a_slow_reader_and_nothing_is_lost() -> None:
    async def run() -> None:
        sink = Mailbox()
        writer = asyncio.ensure_future(write(sink, 3 * UNREAD_CHUNKS))
        await settle()
        assert not sink.ended
        read: list[bytes] = []
        while chunks := await sink.read():
            assert len(chunks) <= UNREAD_CHUNKS
            read += chunks
        await writer
        assert read == [b"%d" % number for number in range(3 * UNREAD_CHUNKS)]

    asyncio.run(run())


def test_a_result_of_one_item_needs_no_reader() -> None:
    async def run() -> None:
        sink = Mailbox()
        await write(sink, 1)
        assert await sink.read() == [b"0"]
        assert await sink.read() == []

    asyncio.run(run())


def test_an_error_comes_after_the_chunks_before_it() -> None:
    async def run() -> None:
        sink = Mailbox()
        await sink.item(b"0")
        sink.fail({"status": 500, "code": "handler_failed", "detail": "no"})
        assert await sink.read() == [b"0"]
        with pytest.raises(RemoteError, match="no"):
            await sink.read()

    asyncio.run(run())


def test_leaving_frees_both_sides() -> None:
    async def run() -> None:
        sink = Mailbox()
        writer = asyncio.ensure_future(write(sink, 2 * UNREAD_CHUNKS))
        await settle()
        sink.leave()
        with pytest.raises(Cancelled):
            await sink.read()
        await writer

        waiting = Mailbox()
        reader = asyncio.ensure_future(waiting.read())
        await settle()
        waiting.leave()
        with pytest.raises(Cancelled):
            await reader

    asyncio.run(run())
