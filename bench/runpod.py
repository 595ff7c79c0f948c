"""RunPod's queue: how soon a job is answered, by our worker and by one of RunPod's own SDK.

    .venv/bin/python bench/runpod.py

One job server on this machine, two workers with a handler that does nothing, taking turns. Alone: a
job comes while the worker is idle. After another: a job comes the moment the one before is answered.
Burst: many at once, until the last is answered. The SDK has an environment of its own, made once
(.venv/parts).
"""

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT, spread, table

sys.path.insert(0, str(ROOT / "tests"))

import parts
from fake_jobs import SDK, FakeJobs, kill, sdk_worker

SLOTS = 4
GAP_S = (0.2, 0.7)  # between jobs that come alone; not in step with anybody's sleep
WARM = 5
ALONE, NEXT, BURST = "alone", "after another", "burst"
Worker = Callable[[FakeJobs], "subprocess.Popen[bytes]"]


def ours(snapshot: Path) -> Worker:
    def start(jobs: FakeJobs) -> "subprocess.Popen[bytes]":
        environ = {**os.environ, **jobs.environ, "ZEROWAKE_RUNPOD_CONCURRENCY": str(SLOTS)}
        command = [sys.executable, "-m", "zerowake", "run", str(snapshot)]
        return subprocess.Popen(
            command, env=environ, stderr=subprocess.DEVNULL, start_new_session=True
        )

    return start


def theirs(jobs: FakeJobs) -> "subprocess.Popen[bytes]":
    return sdk_worker(parts.venv(SDK), "echo", SLOTS, jobs, stdout=subprocess.DEVNULL)


async def answered_ms(jobs: FakeJobs, count: int = 1) -> float:
    """Milliseconds from ``count`` jobs in the queue to the last answer."""
    began_s = time.perf_counter()
    ids = await jobs.submit(*[{"value": 1}] * count)
    for id_ in ids:
        if await jobs.answer(id_) != {"output": {"echo": 1}}:
            raise SystemExit(f"a wrong answer: {jobs.answers[id_][0].body!r}")
    last_s = max(jobs.answers[id_][0].at_s for id_ in ids)
    return (last_s - began_s) * 1e3


async def measure(worker: Worker, runs: int, burst: int) -> dict[str, list[float]]:
    async with FakeJobs().running() as jobs:
        process = worker(jobs)
        try:
            for _ in range(WARM):
                await answered_ms(jobs)
            found: dict[str, list[float]] = {ALONE: [], NEXT: [], BURST: []}
            for _ in range(runs):
                await asyncio.sleep(random.uniform(*GAP_S))
                found[ALONE].append(await answered_ms(jobs))
                found[NEXT].append(await answered_ms(jobs))
            await asyncio.sleep(GAP_S[1])
            found[BURST].append(await answered_ms(jobs, burst))
            return found
        finally:
            kill(process)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="jobs of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each worker")
    parser.add_argument("--burst", type=int, default=64, help="jobs that come at once")
    args = parser.parse_args()
    parts.venv(SDK)
    with tempfile.TemporaryDirectory() as folder:
        freeze = [sys.executable, "-m", "zerowake", "freeze", str(ROOT / "tests/apps/zoo.py:Echo")]
        freeze += ["--out", folder, "--no-compile"]
        run = subprocess.run(freeze, check=True, stdout=subprocess.PIPE, text=True)
        workers = {"zerowake": ours(Path(run.stdout.splitlines()[-1])), SDK: theirs}
        ms: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                for kind, values in asyncio.run(measure(worker, args.runs, args.burst)).items():
                    ms[name].setdefault(kind, []).extend(values)
    rows = []
    for kind in (ALONE, NEXT, BURST):
        mine, other = (ms[name][kind] for name in workers)
        ratio = statistics.median(other) / statistics.median(mine)
        what = f"{kind} ({args.burst} jobs)" if kind == BURST else kind
        rows.append([what, spread(mine), spread(other), f"{ratio:.1f}"])
    print(f"milliseconds from a job to its answer, {SLOTS} jobs at a time: median (range)\n")
    print(table(["a job that comes", *workers, "ratio"], rows))


if __name__ == "__main__":
    main()
