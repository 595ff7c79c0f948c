"""A Runtime API whose every answer a test decides: what the emulator cannot show.

Restores, chunks as they come, readers that leave, answers with 403, 413, 500, and connections that
are reset. Counts the answers to each invocation: the second one is refused, as by the real one.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fake_server import FakeServer

RESET = "reset"  # break off instead of reading the request
LOST = "lost"  # break off after having taken it


@dataclass
class Answer:
    """What an invocation was answered. kind: "response" or "error"; complete: to its last byte."""

    kind: str
    headers: dict[str, str]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    leave: Callable[[], None] = lambda: None

    def json(self) -> Any:
        return json.loads(self.body)


class FakeApi(FakeServer):
    """``faults["next"] = [500]``: the next such request gets this status, RESET or LOST.

    Verbs: next, response, error, init_error, restore_next, restore_error, register, event_next.
    answers: those that were taken, by invocation. requests: all of them, in order; came_on: the
    connection of each. waiting: invocations that nobody has been given; given: those that have arrived.
    restored, registers: what such requests wait for.
    """

    patience_s = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        self.answers: dict[str, Answer] = {}
        self.refused: list[str] = []
        self.requests: list[str] = []
        self.came_on: list[asyncio.StreamWriter] = []
        self.told: list[tuple[str, dict[str, str], Any]] = []  # init and restore errors
        self.faults: dict[str, list[int | str]] = {}
        self.connections = 0
        self.polling = 0
        self.restored = asyncio.Event()
        self.registers = asyncio.Event()
        self.registers.set()
        self.waiting: list[str] = []
        self.given: set[str] = set()
        self._events: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
        self._ids = (f"id-{place}" for place in itertools.count(1))

    def invoke(self, body: object, *, left_s: float = 60.0, **headers: str) -> str:
        """Have an invocation ready for who asks next; its id. body: JSON, or bytes as they are."""
        id_ = next(self._ids)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Deadline-Ms": str(int((time.time() + left_s) * 1e3)), "Aws-Request-Id": id_}
        self.waiting.append(id_)
        self._events.put_nowait((id_, {**told, **headers}, sent))
        return id_

    async def answer(self, id_: str) -> Answer:
        """What the invocation was answered, once that is complete."""
        await self.until(lambda: id_ in self.answers and self.answers[id_].complete)
        return self.answers[id_]

    async def chunks(self, id_: str, count: int) -> list[bytes]:
        """The chunks of an answer that goes on, once there are so many."""
        await self.until(lambda: id_ in self.answers and len(self.answers[id_].chunks) >= count)
        return self.answers[id_].chunks

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FakeApi"]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        yield self
        server.close()
        self.cut()

    # ---------------------------------------------------------------- one connection

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super()._connection(reader, writer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split()[1].split("/")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
        verb = {"init": "init_error", "restore": f"restore_{path[-1]}", "event": "event_next"}.get(
            path[-2], path[-1]
        )
        answer = Answer(verb, headers, leave=writer.transport.abort)
        self.requests.append(verb)
        self.came_on.append(writer)
        faults = self.faults.get(verb, [])
        fault = faults.pop(0) if faults else None
        await self._note()
        if fault == RESET:
            raise EOFError
        id_ = path[-2] if verb in ("response", "error") else ""
        status, told, reply = 202, {}, b'{"status": "OK"}'
        if isinstance(fault, int):
            status, reply = fault, b'{"errorType": "Scripted", "errorMessage": "as scripted"}'
        elif id_ in self.answers:
            self.refused.append(id_)
            status = 403
            id_ = ""
        if id_ and status == 202:
            self.answers[id_] = answer
        try:
            await self._body(reader, answer)
        except EOFError:
            if id_ and not answer.chunks:  # a part of an answer is none
                self.answers.pop(id_, None)
            raise
        finally:
            if fault == LOST:
                writer.transport.abort()
        if verb in ("init_error", "restore_error"):
            self.told.append((verb, headers, answer.json()))
        elif isinstance(fault, int):
            pass
        elif verb == "next":
            self.polling += 1
            await self._note()
            try:
                id_, told, reply = await self._event_for(reader)
            finally:
                self.polling -= 1
                await self._note()
            status, told = 200, {f"Lambda-Runtime-{name}": value for name, value in told.items()}
        elif verb == "register":
            await self.registers.wait()
            status, told = 200, {"Lambda-Extension-Identifier": "ext-1"}
        elif verb == "event_next":
            await reader.read()
            raise EOFError  # it is never told anything, and leaves
        elif verb == "restore_next":
            await self.restored.wait()
            status = 200
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(reply)}"]
        lines += [f"{name}: {value}" for name, value in told.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + reply)
        await writer.drain()
        self.given.add(id_)
        await self._note()

    async def _event_for(self, reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
        """The next event, unless who asked for it leaves before."""
        event = asyncio.create_task(self._events.get())
        left = asyncio.create_task(reader.read(1))
        await asyncio.wait([event, left], return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            event.cancel()
            raise EOFError
        left.cancel()
        await asyncio.wait([left])
        self.waiting.remove(event.result()[0])
        return event.result()

    async def _body(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        if answer.headers.get("transfer-encoding") != "chunked":
            answer.body = await reader.readexactly(int(answer.headers.get("content-length", 0)))
        else:
            while nbytes := int(await reader.readuntil(b"\r\n"), 16):
                answer.chunks.append((await reader.readexactly(nbytes + 2))[:-2])
                answer.body += answer.chunks[-1]
                await self._note()
            while line := (await reader.readuntil(b"\r\n")).strip().decode():
                name, _, value = line.partition(": ")
                answer.trailers[name.lower()] = value
        answer.complete = True
        await self._note()
