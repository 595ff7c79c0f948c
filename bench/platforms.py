"""On AWS's own emulator: one process with one model beside awslambdaric's process a slot.

Throughput and memory with 16 concurrent invocations of MiniLM (Managed Instances mode), then what one
invocation costs beyond the function itself (a function that gives back its input), in both modes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

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
PAUSE_S = 0.01
EMPTY: dict[str, dict[str, Any]] = {
    "on demand": {"managed": False, "clients": 1, "count": 1000},
    "Managed Instance, one at a time": {"managed": True, "clients": 1, "count": 1000},
    "Managed Instance, 8 at a time": {"managed": True, "clients": CONCURRENCY // 2, "count": 6400},
}
EMBED, ECHO = "awslambdaric_app.embed", "awslambdaric_echo.echo"


class Took(NamedTuple):
    ms: list[float]
    rps: float


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


def empty(name: str, command: list[str], *, managed: bool, clients: int, count: int) -> Took:
    """Milliseconds of each of ``count`` invocations of a function that does nothing, and all a second."""
    port = free_port()
    slots = CONCURRENCY if managed else None
    env = emulator.environment(ECHO, slots, 1)
    with running(name, emulator.argv(command, port, managed=managed), env) as process:
        value = {"text": SHORT}
        first_answer(
            port,
            INVOCATIONS,
            value,
            lambda reply: reply.status == 200 and json.loads(reply.body) == value,
            lambda: process.poll() is None,
        )
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda _: _warm_up(port, value), range(clients)))
            started = time.perf_counter()
            parts = pool.map(lambda _: _send(port, value, count // clients), range(clients))
            took = [ms for part in parts for ms in part]
        return Took(took, len(took) / (time.perf_counter() - started))


def _warm_up(port: int, value: object) -> None:
    """Until WARMUP were answered in a row: theirs fork their slots one by one."""
    connection, good = Connection(port), 0
    while good < WARMUP:
        good = good + 1 if connection.send("POST", INVOCATIONS, value).status == 200 else 0
        if not good:
            time.sleep(PAUSE_S)
    connection.close()


def _send(port: int, value: object, count: int) -> list[float]:
    """As many good answers; where no slot has polled again yet, the emulator refuses, and is asked again."""
    connection = Connection(port)
    took: list[float] = []
    while len(took) < count:
        started = time.perf_counter()
        if connection.send("POST", INVOCATIONS, value).status == 200:
            took.append(1e3 * (time.perf_counter() - started))
        else:
            time.sleep(PAUSE_S)
    connection.close()
    return took


def _compared(costs: Mapping[str, Mapping[str, list[Took]]]) -> str:
    """A table of both, and their ratios."""
    rows = []
    for what, by_name in costs.items():
        ours_ms, theirs_ms = (
            [ms for took in by_name[peer.name] for ms in took.ms] for peer in (OUR_LAMBDA, LAMBDA)
        )
        rps = [
            statistics.median(took.rps for took in by_name[peer.name])
            for peer in (OUR_LAMBDA, LAMBDA)
        ]
        ratio = statistics.median(ours_ms) / statistics.median(theirs_ms)
        rows.append([what, _cost(ours_ms), _cost(theirs_ms), f"{ratio:.2f}"])
        rows[-1] += [f"{each:.0f}" for each in rps]
    head = ["an empty invocation, ms (p99)", OUR_LAMBDA.name, LAMBDA.name, "ratio"]
    return table([*head, "rps, ours", "theirs"], rows)


def _cost(took: list[float]) -> str:
    return f"{statistics.median(took):.2f} ({percentile(took, 0.99):.2f})"


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
    costs: dict[str, dict[str, list[Took]]] = {
        what: {name: [] for name, _ in nothing} for what in EMPTY
    }

    def measure_empty() -> None:
        for what, told in EMPTY.items():
            for name, command in nothing:
                costs[what][name].append(empty(name, command, **told))

    if args.only == "empty":
        for _ in range(args.rounds):
            measure_empty()
        print(f"machine: {before}")
        print(_compared(costs))
        write_json(args.json, {"machine": before, "empty": costs})
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
        measure_empty()
    rows = []
    for name, kept in runs.items():
        row = {
            key: statistics.median(run[key] for run in kept)
            for key in kept[0]
            if key != "first_wrong"
        }
        figures = [f"{row['rps']:.0f}", f"{row['p99_ms']:.0f}", f"{row['pss_gb']:.2f}"]
        last = [f"{row['rps_per_gb']:.0f}", f"{row['processes']:.0f}"]
        rows.append([name, *figures, *last])
    print(f"machine: {before}")
    head = [f"{CONCURRENCY} at a time", "rps", "p99 ms", "PSS, GB", "rps per GB", "processes"]
    print(table(head, rows))
    per_gb = [statistics.median(run["rps_per_gb"] for run in runs[peer.name]) for peer, _ in models]
    print(f"per GB: {per_gb[0] / per_gb[1]:.2f} times")
    print(_compared(costs))
    write_json(args.json, {"machine": before, "runs": runs, "empty": costs})


if __name__ == "__main__":
    main()
