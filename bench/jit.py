"""A function that calls ``torch.compile`` itself: from nothing to the first right answer, in a new process.

Ours with what was compiled at freeze kept, and without (``--no-compile``), over HTTP, and a plain process
that loads the same model, compiles it and answers once. Each start is that of a new machine: nothing that
was compiled before is found but what the snapshot holds. ``found`` is that plain process where
Inductor's folder is still there, on the same machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ours
from client import first_answer
from common import (
    CACHE,
    DEFAULT_VENVS,
    MIN_COSINE,
    OUR_BIN,
    child_env,
    cosine,
    free_port,
    machine,
    spread,
    table,
    write_json,
)
from peers.registry import HERE, OURS
from process import running
from texts import SHORT, reference, right

TARGET = "bench/jit/app.py:Embed"
KEPT, ANEW, PLAIN, FOUND = (
    "zerowake, kept",
    "zerowake, --no-compile",
    "plain process",
    "same, found",
)


def served(snapshot: Path, folder: Path, wanted: dict[str, list[float]]) -> str:
    """One start; what the server says about its first call."""
    port = free_port()
    env = {"TMPDIR": str(folder)}
    with running("zerowake-jit", ours.serve_argv(snapshot, port), env) as process:
        answer = right(OURS, SHORT, wanted)
        reply = first_answer(
            port, OURS.path, OURS.request(SHORT), answer, lambda: process.poll() is None
        )
    return reply.headers.get("server-timing", "")


def plain(folder: Path, wanted: dict[str, list[float]]) -> str:
    command = [str(OUR_BIN / "python"), str(HERE / "compiled_minilm.py"), SHORT]
    env = child_env({"TMPDIR": str(folder), "BENCH_THREADS": str(os.cpu_count())})
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    if cosine(json.loads(done.stdout), wanted[SHORT]) < MIN_COSINE:
        raise SystemExit("the plain process answers wrongly")
    return ""


def forget() -> None:
    """Our copy of what snapshots have kept: a new machine has none."""
    state = Path(os.environ.get("ZEROWAKE_STATE") or Path.home() / ".local/state/zerowake")
    shutil.rmtree(state / "jit", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--runs", type=int, default=3, help="kept ones; one is made before")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    wanted, before = reference(args.venvs), machine()
    began_s = time.perf_counter()
    kept = ours.freeze_target(TARGET, "jit", [])
    froze_s = time.perf_counter() - began_s
    anew = ours.freeze_target(TARGET, "jit-anew", ["--no-compile"])
    ways: dict[str, Callable[[Path], str]] = {
        KEPT: lambda folder: served(kept, folder, wanted),
        ANEW: lambda folder: served(anew, folder, wanted),
        PLAIN: lambda folder: plain(folder, wanted),
        FOUND: lambda folder: plain(folder, wanted),
    }
    took_s: dict[str, list[float]] = {way: [] for way in ways}
    told: dict[str, str] = {}
    for run in range(args.runs + 1):
        with tempfile.TemporaryDirectory(dir=CACHE) as found:
            for way, start in ways.items():
                forget()
                with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                    began_s = time.perf_counter()
                    told[way] = start(Path(found if way in (PLAIN, FOUND) else folder))
                    if run:
                        took_s[way].append(time.perf_counter() - began_s)
    peer = statistics.median(took_s[PLAIN])
    rows = [[w, spread(s), f"{statistics.median(s) / peer:.2f}"] for w, s in took_s.items()]
    print(f"machine: {before}\nfrozen in {froze_s:.0f} s, of which most compiles, three times")
    print(table(["from nothing to the first right answer", "s", "x plain process"], rows))
    print(f"{KEPT}: {told[KEPT]}")
    write_json(args.json, {"machine": before, "froze_s": froze_s, "took_s": took_s})


if __name__ == "__main__":
    main()
