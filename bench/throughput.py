"""Requests per second and latency of the MiniLM endpoint, peers and ours in one run.

One keep-alive client, then 32, in a process of their own; texts of 5 to 60 words; every answer
is checked. Peers run with one and with two torch threads and their better figure counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import memory
import ours
import report
from client import first_answer
from common import (
    CACHE,
    DEFAULT_VENVS,
    child_env,
    free_port,
    machine,
    write_json,
)
from load_client import Job
from peers.registry import VARIANTS, Peer, select, select_ours
from process import log_tail, running, tree
from texts import SHORT, reference, right

CLIENTS, WARMUP = 32, 200
SINGLE_WARMUP, SINGLE_REQUESTS = 20, 200
PEER_THREADS = (1, 2)
LOAD_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Server:
    """One way to run one server; `setting` tells the ways of a peer apart."""

    peer: Peer
    setting: str
    env: Mapping[str, str]
    snapshot: Path | None = None

    def argv(self, venvs: Path, port: int) -> list[str]:
        if self.snapshot is not None:
            return ours.serve_argv(self.snapshot, port)
        return self.peer.argv(venvs, port)


def send_load(job: Job) -> dict[str, Any]:
    """Runs the load client as a process of its own."""
    argv = [sys.executable, str(Path(__file__).with_name("load_client.py"))]
    done = subprocess.run(
        argv,
        input=json.dumps(asdict(job)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=child_env({}),
        timeout=LOAD_LIMIT_S,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if result["wrong"]:
        print(f"  {job.name}: {result['wrong']} WRONG answers, first: {result['first_wrong']}")
    return result


def measure(
    server: Server, args: argparse.Namespace, wanted: Mapping[str, list[float]]
) -> dict[str, Any]:
    """One start of a server: the load of one client, then of many."""
    peer, port = server.peer, free_port()
    check = right(peer, SHORT, wanted)
    with running(peer.name, server.argv(args.venvs, port), server.env) as process:
        try:
            first_answer(
                port, peer.path, peer.request(SHORT), check, lambda: process.poll() is None
            )
        except (RuntimeError, TimeoutError) as error:
            raise SystemExit(f"{peer.name}: {error}\n{log_tail(peer.name)}") from error
        venvs = str(args.venvs)
        # One client first: BentoML learns its waiting time from a load and keeps it afterwards.
        single = send_load(Job(peer.name, port, 1, SINGLE_WARMUP, SINGLE_REQUESTS, venvs))
        many = send_load(Job(peer.name, port, CLIENTS, WARMUP, args.requests, venvs))
        kept = memory.of_processes(tree(process.pid))
    print(
        f"  {peer.name}, {server.setting}: {many['rps']:.0f} rps, p50 {many['p50_ms']:.0f}, "
        f"p99 {many['p99_ms']:.0f} ms; one client p50 {single['p50_ms']:.1f}, "
        f"p99 {single['p99_ms']:.1f} ms; client {100 * many['client_cpu']:.0f}% of a core",
        flush=True,
    )
    return {"many": many, "single": single, "memory": kept.report()}


def servers(args: argparse.Namespace) -> list[Server]:
    """Peers that are started as they are (not the forked one, which is FastAPI again), then ours."""
    found = [
        Server(peer, f"{threads} torch threads", {"BENCH_THREADS": str(threads), **dict(peer.env)})
        for peer in select(args.only)
        if not peer.forks
        for threads in PEER_THREADS
    ]
    for peer in select_ours(args.only, VARIANTS):
        found.append(Server(peer, "as frozen", {}, ours.freeze(peer.name)))
    return found


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the figures over the rounds, key by key."""
    return {
        key: statistics.median(run[key] for run in runs)
        for key, value in runs[0].items()
        if isinstance(value, int | float)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--only", help="comma-separated peers, and zerowake")
    parser.add_argument("--requests", type=int, default=1500, help="of the 32 clients together")
    parser.add_argument("--rounds", type=int, default=1, help="all servers in turn; medians count")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = reference(args.venvs)
    before = machine()
    every = servers(args)
    runs: list[list[dict[str, Any]]] = [[] for _ in every]
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        for server, kept in zip(every, runs, strict=True):
            kept.append(measure(server, args, wanted))
    rows = [
        {"name": server.peer.name, "setting": server.setting}
        | {part: middle([run[part] for run in kept]) for part in ("many", "single", "memory")}
        for server, kept in zip(every, runs, strict=True)
    ]
    result = {"machine": before, "rounds": args.rounds, "clients": CLIENTS, "servers": rows}
    print("\n" + report.throughput(result))
    write_json(args.json, result)


if __name__ == "__main__":
    main()
