"""Cold starts of the MiniLM endpoint, peers and ours in one run, with the memory each keeps.

Peers and ours from nothing: process spawn to first right answer over HTTP. Ours asleep: one call on
an open connection. The first run of each is discarded. Tables are printed by report.py.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import depths
import memory
import ours
import report
from client import Right, first_answer
from common import (
    CACHE,
    DEFAULT_VENVS,
    OUR_BIN,
    child_env,
    free_port,
    machine,
    write_json,
)
from peers.registry import EAGER, OURS, Peer, select, select_ours
from process import log_tail, running, tree
from texts import SHORT, reference, right

FORK_POLL_S = 0.001  # a fork answers in tens of milliseconds: 10 ms polls would blur it


@dataclass(frozen=True, slots=True)
class Setup:
    venvs: Path
    runs: int
    wanted: Mapping[str, list[float]]

    def right(self, peer: Peer) -> Right:
        return right(peer, SHORT, self.wanted)


def spawn_once(setup: Setup, peer: Peer, argv: list[str], port: int) -> tuple[float, memory.Memory]:
    """Seconds from spawn to the first right answer, and the memory of the tree after it."""
    env = {"BENCH_THREADS": "1", **dict(peer.env)}
    started = time.perf_counter()
    with running(peer.name, argv, env) as process:
        try:
            first_answer(
                port,
                peer.path,
                peer.request(SHORT),
                setup.right(peer),
                lambda: process.poll() is None,
            )
        except (RuntimeError, TimeoutError) as error:
            raise SystemExit(f"{peer.name}: {error}\n{log_tail(peer.name)}") from error
        took_s = time.perf_counter() - started
        return took_s, memory.of_processes(tree(process.pid))


def from_nothing(setup: Setup, servers: Sequence[tuple[Peer, Path | None]]) -> dict[str, Any]:
    """All servers in turn, round by round: a machine that drifts then drifts for all of them."""
    seen: dict[str, list[tuple[float, memory.Memory]]] = {peer.name: [] for peer, _ in servers}
    for number in range(setup.runs + 1):
        shown = []
        for peer, snapshot in servers:
            port = free_port()
            argv = ours.serve_argv(snapshot, port) if snapshot else peer.argv(setup.venvs, port)
            seen[peer.name].append(spawn_once(setup, peer, argv, port))
            shown.append(f"{peer.name} {1e3 * seen[peer.name][-1][0]:.0f}")
        print(f"  round {number}{'' if number else ' (discarded)'}: {', '.join(shown)}", flush=True)
    starts = {}
    for name, runs in seen.items():
        kept = sorted((run[1] for run in runs[1:]), key=lambda one: one.pss_nbytes)
        starts[name] = {
            "ms": [1e3 * took_s for took_s, _ in runs[1:]],
            "discarded_ms": 1e3 * runs[0][0],
            "memory": kept[len(kept) // 2].report(),
            "forks": False,
        }
    return starts


def from_fork(setup: Setup, peer: Peer) -> dict[str, Any]:
    """A parent forks the server: fork to first right answer, the parent asleep measured first."""
    ms: list[float] = []
    argv = peer.argv(setup.venvs, 0)
    with running(peer.name, argv, {"BENCH_THREADS": "1"}, pipes=True) as parent:
        assert parent.stdin and parent.stdout
        if parent.stdout.readline().strip() != "ready":
            raise SystemExit(f"{peer.name}: the parent did not start\n{log_tail(peer.name)}")
        asleep = memory.of_processes(tree(parent.pid))
        serving = asleep
        for _ in range(setup.runs + 1):
            port = free_port()
            parent.stdin.write(f"{port}\n")
            parent.stdin.flush()
            started_ns = int(parent.stdout.readline().split()[2])
            first_answer(
                port,
                peer.path,
                peer.request(SHORT),
                setup.right(peer),
                lambda: parent.poll() is None,
                poll_s=FORK_POLL_S,
            )
            ms.append((time.monotonic_ns() - started_ns) / 1e6)
            print(f"  {peer.name}: {ms[-1]:.0f} ms", flush=True)
            serving = memory.of_processes(tree(parent.pid))
            parent.stdin.write("reap\n")
            parent.stdin.flush()
            parent.stdout.readline()
    return {
        "ms": ms[1:],
        "discarded_ms": ms[0],
        "memory": serving.report(),
        "asleep": asleep.report(),
        "forks": True,
    }


def import_torch(venvs: Path, runs: int) -> dict[str, Any]:
    """Spawn of a bare interpreter until torch is imported: nothing that uses torch is faster."""
    pythons = [OUR_BIN / "python", *sorted(venvs.glob("*/bin/python"))]
    python = next((path for path in pythons if path.exists()), Path(sys.executable))
    argv = [str(python), "-c", "import torch; print(torch.__version__, flush=True)"]
    ms: list[float] = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=child_env({})) as child:
            assert child.stdout is not None
            version = child.stdout.readline().strip()
            ms.append(1e3 * (time.perf_counter() - started))
        if child.returncode:
            raise SystemExit(f"{python} cannot import torch")
    return {"ms": ms[1:], "version": version, "python": str(python)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--only", help="comma-separated peers, and zerowake")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    setup = Setup(args.venvs, args.runs, reference(args.venvs))
    result: dict[str, Any] = {"machine": machine(), "runs": args.runs, "starts": {}, "ours": {}}
    result["import_torch"] = import_torch(args.venvs, args.runs)
    peers = select(args.only)
    servers: list[tuple[Peer, Path | None]] = [(peer, None) for peer in peers if not peer.forks]
    mine = [(peer, ours.freeze(peer.name)) for peer in select_ours(args.only, (EAGER, OURS))]
    servers += mine
    print("from nothing, ms", flush=True)
    result["starts"] = from_nothing(setup, servers)
    for peer in peers:
        if peer.forks:
            result["starts"][peer.name] = from_fork(setup, peer)
    for peer, snapshot in mine:
        result["ours"][peer.name] = depths.measure(setup.right(peer), args.runs, snapshot)
    medians = {name: statistics.median(one["ms"]) for name, one in result["starts"].items()}
    result["median_ms"] = medians
    print("\n" + report.cold_start(result))
    write_json(args.json, result)


if __name__ == "__main__":
    main()
