"""The load: keep-alive clients in a process of their own, on raw asyncio streams.

Reads one JSON job on stdin, writes one JSON result on stdout. It shares the cores with the server,
so it only stamps and keeps replies while the clock runs, and checks every one of them afterwards.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import DEFAULT_VENVS, MIN_COSINE, cosine, percentile
from peers.registry import EMULATED, PEERS, VARIANTS, Peer
from texts import load_texts, reference

HOST = "127.0.0.1"
BUSY_S = 0.002


@dataclass(frozen=True, slots=True)
class Job:
    """`warmup` requests that do not count, then `requests` that do."""

    name: str
    port: int
    clients: int
    warmup: int
    requests: int
    venvs: str = str(DEFAULT_VENVS)


@dataclass(frozen=True, slots=True)
class Done:
    index: int
    status: int
    body: bytes
    took_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """`wrong` counts answers that are no 200 or not the text's vector; `client_cpu` is the share of
    one core that this process itself used."""

    rps: float
    p50_ms: float
    p99_ms: float
    requests: int
    wrong: int
    worst_cosine: float
    first_wrong: str
    client_cpu: float


def encode(peer: Peer, port: int, text: str) -> bytes:
    body = json.dumps(peer.request(text)).encode()
    head = f"POST {peer.path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the server closes afterwards (HTTP/1.1, length or chunks)."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    closes = b"\r\nconnection: close\r\n" in head
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 : head.index(b"\r\n", at + 2)])
        return status, await reader.readexactly(length), closes
    if b"\r\ntransfer-encoding: chunked\r\n" not in head:
        return status, await reader.read(), True
    parts: list[bytes] = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return status, b"".join(parts), closes


async def load(
    port: int, requests: Sequence[bytes], clients: int, first: int, count: int
) -> list[Done]:
    """Sends `count` requests, each client its next one as soon as it has its answer."""
    order = iter(range(first, first + count))
    done: list[Done] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for index in order:
            started = time.perf_counter()
            while True:
                writer.write(requests[index % len(requests)])
                status, body, closes = await read_reply(reader)
                if status != 400 or b"Runtime.Unavailable" not in body:
                    break
                await asyncio.sleep(BUSY_S)  # Lambda's emulator refuses what the platform queues
            done.append(Done(index, status, body, time.perf_counter() - started))
            if closes:
                writer.close()
                reader, writer = await asyncio.open_connection(HOST, port)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


def check(
    done: Sequence[Done],
    texts: Sequence[str],
    wanted: dict[str, list[float]],
    response: Callable[[Any], Sequence[float]],
) -> tuple[int, float, str]:
    """How many answers are wrong, the lowest cosine seen, and what the first wrong one was."""
    wrong, worst, first = 0, 1.0, ""
    for one in done:
        value = -1.0
        try:
            if one.status == 200:
                value = cosine(
                    response(json.loads(one.body)), wanted[texts[one.index % len(texts)]]
                )
        except (ValueError, KeyError, TypeError, IndexError):
            pass
        worst = min(worst, value)
        if value < MIN_COSINE:
            wrong += 1
            first = first or f"status {one.status}, cosine {value:.4f}: {one.body[:200]!r}"
    return wrong, worst, first


async def run(job: Job) -> Result:
    peer = next(peer for peer in (*PEERS, *VARIANTS, *EMULATED) if peer.name == job.name)
    texts, wanted = load_texts(), reference(Path(job.venvs))
    requests = [encode(peer, job.port, text) for text in texts]
    await load(job.port, requests, job.clients, 0, job.warmup)
    cpu, started = time.process_time(), time.perf_counter()
    done = await load(job.port, requests, job.clients, job.warmup, job.requests)
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    wrong, worst, first = check(done, texts, wanted, peer.response)
    took_ms = [1e3 * one.took_s for one in done]
    return Result(
        rps=len(done) / wall,
        p50_ms=percentile(took_ms, 0.50),
        p99_ms=percentile(took_ms, 0.99),
        requests=len(done),
        wrong=wrong,
        worst_cosine=worst,
        first_wrong=first,
        client_cpu=used / wall,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Job(**json.load(sys.stdin)))))))
