"""A job server of RunPod whose every answer a test decides, for our worker and for their SDK's.

Polls are held until there is something to give, as the platform does. What a worker that has left
would have got stays in the queue.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from fake_server import FakeServer

RESET = "reset"  # break off instead of reading the request
LOST = "lost"  # break off after having taken it
SDK = "runpod==1.12.0"
WORKER, KEY = "worker-1", "key-1"
T = TypeVar("T")


@dataclass
class Asked:
    """One request. verb: take, take-batch, stop, done, stream or ping."""

    verb: str
    method: str
    id: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    at_s: float = field(default_factory=time.perf_counter)

    def json(self) -> Any:
        return json.loads(self.body)


class FakeJobs(FakeServer):
    """``faults["done"] = [500]``: the next such request gets this status, RESET or LOST.

    asked: all requests in order. answers, chunks: what was posted for a job and taken. given: jobs
    that workers have. hold_s: how long a poll is held.
    """

    def __init__(self, hold_s: float = 30.0) -> None:
        super().__init__()
        self.url = ""
        self.hold_s = hold_s
        self.asked: list[Asked] = []
        self.answers: dict[str, list[Asked]] = {}
        self.chunks: dict[str, list[Asked]] = {}
        self.given: list[str] = []
        self.faults: dict[str, list[int | str]] = {}
        self.raw: list[bytes] = []  # answers to takes as they are, before any job
        self.polling = 0
        self.too_large_nbytes = 1 << 40
        self._queue: list[dict[str, Any]] = []
        self._stopped: list[str] = []
        self._ids = (f"job-{place}" for place in itertools.count(1))

    @property
    def environ(self) -> dict[str, str]:
        """What the platform sets for a worker."""
        base = f"{self.url}/v2/endpoint"
        return {
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_POD_ID": WORKER,
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
        }

    async def submit(self, *inputs: Any, **more: Any) -> list[str]:
        """Have jobs in the queue, all at once; their ids."""
        jobs = [{"id": next(self._ids), "input": value, **more} for value in inputs]
        return await self.put(*jobs)

    async def put(self, *jobs: dict[str, Any]) -> list[str]:
        self._queue += jobs
        await self._note()
        return [job.get("id", "") for job in jobs]

    async def stop(self, *ids: str) -> None:
        """Tell the worker that nobody wants these jobs."""
        self._stopped += ids
        await self._note()

    async def answer(self, id_: str) -> Any:
        """What the job was answered, and that was all."""
        await self.until(lambda: id_ in self.answers)
        (asked,) = self.answers[id_]
        return asked.json()

    def verbs(self, *wanted: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.verb in wanted]

    @property
    def queued(self) -> list[str]:
        return [job["id"] for job in self._queue]

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["FakeJobs"]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        yield self
        server.close()
        self.cut()

    # ---------------------------------------------------------------- one connection

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split()
        parts = urlsplit(target)
        route = unquote(parts.path).split("/")[3:]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        verb, id_ = route[0].removeprefix("job-"), (route[2:] or [""])[0]
        asked = Asked(verb, method, id_, query, headers)
        assert route[1] == WORKER, target
        faults = self.faults.get(verb, [])
        fault = faults.pop(0) if faults else None
        self.asked.append(asked)
        await self._note()
        if fault == RESET:
            raise EOFError
        asked.body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked.at_s = time.perf_counter()
        if isinstance(fault, int):
            status, body = fault, b'{"error": "as scripted"}'
        else:
            status, body = await self._do(asked, reader)
        await self._note()
        if fault == LOST:
            raise EOFError
        told = f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\n"
        if status != 204:
            told += f"Content-Length: {len(body)}\r\n"
        writer.write(f"{told}\r\n".encode() + body)
        await writer.drain()

    async def _do(self, asked: Asked, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        match asked.verb:
            case "take" | "take-batch":
                count = int(asked.query.get("batch_size", "1"))
                if self.raw:
                    return 200, self.raw.pop(0)
                if not (jobs := await self._held(self._queue, count, reader)):
                    return 204, b""
                self.given += [job.get("id", "") for job in jobs]
                return 200, json.dumps(jobs if asked.verb == "take-batch" else jobs[0]).encode()
            case "stop":
                ids = await self._held(self._stopped, 100, reader)
                return (200, json.dumps({"jobsToStop": ids}).encode()) if ids else (204, b"")
            case "done" if len(asked.body) > self.too_large_nbytes:
                return 413, b'{"error": "too large"}'
            case "done":
                self.answers.setdefault(asked.id, []).append(asked)
            case "stream":
                self.chunks.setdefault(asked.id, []).append(asked)
        return 200, b"{}"

    async def _held(self, queue: list[T], count: int, reader: asyncio.StreamReader) -> list[T]:
        """What there is, once there is something; [] after ``hold_s``."""
        waiting = asyncio.create_task(self.until(lambda: queue))
        left = asyncio.create_task(reader.read(1))
        self.polling += 1
        await self._note()
        try:
            await asyncio.wait(
                [waiting, left], return_when=asyncio.FIRST_COMPLETED, timeout=self.hold_s
            )
            if left.done():
                raise EOFError
        finally:
            self.polling -= 1
            waiting.cancel()
            left.cancel()
            await asyncio.wait([waiting, left])
        found = queue[:count]
        del queue[:count]
        return found


def sdk_worker(
    python: Path, name: str, slots: int, jobs: FakeJobs, stdout: int = subprocess.PIPE
) -> "subprocess.Popen[bytes]":
    """A worker of their SDK (``runpod_worker.py``). python: of an environment that has it."""
    script = Path(__file__).with_name("runpod_worker.py")
    checks = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
    environ = {**checks, **jobs.environ, "RUNPOD_PING_INTERVAL": "1000"}
    return subprocess.Popen(
        [str(python), str(script), name, str(slots)],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ, "PYTHONPATH": ""},  # its own packages
        start_new_session=True,
    )


def kill(worker: "subprocess.Popen[bytes]") -> None:
    """End a worker of theirs, and the process of its heartbeats, which would outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
