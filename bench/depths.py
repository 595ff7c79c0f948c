"""Ours asleep: the call that wakes from each depth, and what sleeping processes keep.

One server, one function; what the figures mean is in README.md.
"""

import time
from pathlib import Path
from typing import Any

import memory
import ours
from client import Connection, Reply, Right, first_answer
from common import free_port
from peers.registry import OURS
from process import command, running, tree
from texts import SHORT

DEPTHS = ("prewarmed", "zygote", "cold")
WARM_CALLS = 30
SETTLE_S = 0.5


class Sleeper:
    """One served function of ours that is put to sleep and called again."""

    def __init__(self, right: Right, runs: int, port: int) -> None:
        self.right, self.runs = right, runs
        self.control, self.calls = Connection(port), Connection(port)

    def call(self) -> tuple[float, Reply]:
        """Milliseconds of one call on the open connection, its answer checked."""
        started = time.perf_counter()
        reply = self.calls.send("POST", OURS.path, OURS.request(SHORT))
        took_ms = 1e3 * (time.perf_counter() - started)
        if not self.right(reply):
            raise SystemExit(f"zerowake: wrong answer, {reply.status}: {reply.body[:300]!r}")
        return took_ms, reply

    def warm(self) -> list[float]:
        self.calls.ensure_open()
        for _ in range(5):
            self.call()
        return [self.call()[0] for _ in range(WARM_CALLS)]

    def from_depth(self, depth: str) -> dict[str, Any]:
        """Sink, settle, call; warm calls after each, so that both see the same weather."""
        ms: list[float] = []
        warm_ms: list[float] = []
        found: list[str] = []
        timing: list[str] = []
        for _ in range(self.runs + 1):
            self.sink(depth)
            took_ms, reply = self.call()
            ms.append(took_ms)
            found.append(reply.headers.get("zerowake-depth", "?"))
            timing.append(reply.headers.get("server-timing", ""))
            warm_ms += self.warm()
        print(f"  zerowake from {depth}: {', '.join(f'{one:.1f}' for one in ms)} ms", flush=True)
        self.sink(depth)  # once more for the memory, which nothing timed shall wait for
        mine = [process for process in ours.processes(self.control) if process.function]
        return {
            "ms": ms[1:],
            "discarded_ms": ms[0],
            "warm_ms": warm_ms[WARM_CALLS:],
            "found": found[1:],
            "server_timing": timing[1:],
            "asleep": [account(process.pid, process.role) for process in mine],
        }

    def sink(self, depth: str) -> None:
        ours.sink(self.control, depth)
        self.calls.ensure_open()
        time.sleep(SETTLE_S)


def account(pid: int, role: str) -> dict[str, Any]:
    """The memory of one process, and its largest parts."""
    parts = [(name, part.report()) for name, part in memory.makeup(pid)[:10]]
    return {"pid": pid, "role": role, **memory.of_process(pid).report(), "makeup": parts}


def measure(right: Right, runs: int, snapshot: Path) -> dict[str, Any]:
    """Ours from each depth, and what the processes without a function keep."""
    port = free_port()
    with running("zerowake-depths", ours.serve_argv(snapshot, port), {}) as process:
        first_answer(
            port,
            OURS.path,
            OURS.request(SHORT),
            right,
            lambda: process.poll() is None,
        )
        sleeper = Sleeper(right, runs, port)
        warm_ms = sleeper.warm()
        depths = {depth: sleeper.from_depth(depth) for depth in DEPTHS}
        sleeper.sink("cold")
        listed = {one.pid: one.role for one in ours.processes(sleeper.control)}
        roles = {pid: listed.get(pid) or command(pid) for pid in tree(process.pid)}
        roles[process.pid] = "gateway"
        server = [account(pid, role) for pid, role in roles.items()]
    return {"warm_ms": warm_ms, "depths": depths, "server": server}
