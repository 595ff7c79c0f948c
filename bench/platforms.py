"""On AWS's own emulator: one process with one model beside awslambdaric's process a slot.

Throughput and memory with 16 concurrent invocations of MiniLM (Managed Instances mode), then what one
invocation costs beyond the function itself (classic mode, a function that gives back its input).
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emulator
import memory
import ours
from client import Connection, first_answer
from common import DEFAULT_VENVS, free_port, machine, percentile, table, write_json
from load_client import Job
from peers.registry import INVOCATIONS, LAMBDA, OUR_LAMBDA, Peer
from process import log_tail, running, tree
from texts import SHORT, reference, right
from throughput import send_load

CONCURRENCY = 16
WARMUP = 100
COST = "an empty invocation, ms (p99)"
EMBED, ECHO = "awslambdaric_app.embed", "awslambdaric_echo.echo"


def concurrent(
    peer: Peer, command: list[str], wanted: Mapping[str, list[float]], args: argparse.Namespace
) -> dict[str, Any]:
    """Throughput of 16 clients, and the memory of all processes behind the emulator."""
    port = free_port()
    env = emulator.environment(EMBED, CONCURRENCY, 1)
    with running(peer.name, emulator.argv(command, port, managed=True), env) as process:
        try:
            check = right(peer, SHORT, wanted)
            question = peer.request(SHORT)
            first_answer(port, peer.path, question, check, lambda: process.poll() is None)
        except (RuntimeError, TimeoutError) as error:
            raise SystemExit(f"{peer.name}: {error}\n{log_tail(peer.name)}") from error
        load = send_load(Job(peer.name, port, CONCURRENCY, WARMUP, args.requests, str(args.venvs)))
        behind = {pid: start for pid, start in tree(process.pid).items() if pid != process.pid}
        kept = memory.of_processes(behind)
    gb = kept.pss_nbytes / 1e9
    print(f"  {peer.name}: {load['rps']:.0f} rps, {gb:.2f} GB, {len(behind)} processes", flush=True)
    return {**load, "pss_gb": gb, "processes": len(behind), "rps_per_gb": load["rps"] / gb}


def overhead_ms(name: str, command: list[str], count: int) -> list[float]:
    """Milliseconds of each of ``count`` invocations of a function that does nothing, one by one."""
    port = free_port()
    with running(
        name, emulator.argv(command, port), emulator.environment(ECHO, None, 1)
    ) as process:
        value = {"text": SHORT}
        first_answer(
            port,
            INVOCATIONS,
            value,
            lambda reply: reply.status == 200 and json.loads(reply.body) == value,
            lambda: process.poll() is None,
        )
        connection = Connection(port)
        took = []
        for _ in range(count + WARMUP):
            started = time.perf_counter()
            reply = connection.send("POST", INVOCATIONS, value)
            took.append(1e3 * (time.perf_counter() - started))
            assert reply.status == 200, reply.body
        connection.close()
    return took[WARMUP:]


def _cost(took: list[float]) -> str:
    return f"{statistics.median(took):.2f} ({percentile(took, 0.99):.2f})"


def _compared(costs: Mapping[str, list[float]]) -> str:
    ours_ms, theirs_ms = (statistics.median(costs[peer.name]) for peer in (OUR_LAMBDA, LAMBDA))
    return f"an empty one: {ours_ms / theirs_ms:.2f} of theirs"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", choices=["empty"], help="leave out the model: a minute instead of ten"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    echo = ours.freeze_target("bench/echo/app.py:echo", "echo", ["--no-compile"])
    nothing = (
        (OUR_LAMBDA.name, emulator.our_command(echo)),
        (LAMBDA.name, emulator.their_command(args.venvs, ECHO)),
    )
    before = machine()
    costs: dict[str, list[float]] = {name: [] for name, _ in nothing}
    if args.only == "empty":
        for _ in range(args.rounds):
            for name, command in nothing:
                costs[name] += overhead_ms(name, command, 300)
        rows = [[name, _cost(took)] for name, took in costs.items()]
        print(table(["one at a time", COST], rows))
        print(_compared(costs))
        write_json(args.json, {"machine": before, "empty_ms": costs})
        return
    wanted = reference(args.venvs)
    models = (
        (OUR_LAMBDA, emulator.our_command(ours.freeze("zerowake"))),
        (LAMBDA, emulator.their_command(args.venvs, EMBED)),
    )
    runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer, _ in models}
    for _ in range(args.rounds):
        for peer, command in models:
            runs[peer.name].append(concurrent(peer, command, wanted, args))
        for name, command in nothing:
            costs[name] += overhead_ms(name, command, 300)
    rows = []
    for name, kept in runs.items():
        row = {
            key: statistics.median(run[key] for run in kept)
            for key in kept[0]
            if key != "first_wrong"
        }
        figures = [f"{row['rps']:.0f}", f"{row['p99_ms']:.0f}", f"{row['pss_gb']:.2f}"]
        last = [f"{row['rps_per_gb']:.0f}", f"{row['processes']:.0f}", _cost(costs[name])]
        rows.append([name, *figures, *last])
    print(f"machine: {before}")
    head = [f"{CONCURRENCY} at a time", "rps", "p99 ms", "PSS, GB", "rps per GB", "processes"]
    print(table([*head, COST], rows))
    per_gb = [statistics.median(run["rps_per_gb"] for run in runs[peer.name]) for peer, _ in models]
    print(f"per GB: {per_gb[0] / per_gb[1]:.2f} times; {_compared(costs)}")
    write_json(args.json, {"machine": before, "runs": runs, "empty_ms": costs})


if __name__ == "__main__":
    main()
