"""AWS's Runtime Interface Emulator around a server: the same one for ours and for AWS's own client.

Invocations are POSTed to it. As the emulator of Managed Instances it lets a runtime hold several at a time.
How it is started is told in ``tests/rie.py``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from common import CACHE, OUR_BIN, ROOT, child_env, free_port
from peers.registry import HERE, LAMBDA

sys.path.append(str(ROOT / "tests"))
import rie


def argv(command: Sequence[str], port: int, *, managed: bool = False) -> list[str]:
    """The emulator on ``port``; it starts ``command`` at the first invocation, ``managed`` at once."""
    if managed and os.geteuid():
        raise SystemExit("the emulator of Managed Instances runs only as root")
    return rie.argv(command, api=free_port(), entry=port, readable=[CACHE] if managed else None)


def our_command(snapshot: Path) -> list[str]:
    """Whoever runs it, the snapshot's code and its compiled form are vouched for by their digests."""
    shown = subprocess.run(
        [str(OUR_BIN / "zerowake"), "inspect", str(snapshot), "--json"],
        check=True,
        capture_output=True,
        env=child_env({}),
    )
    digests = [json.loads(shown.stdout)["digest"]]
    for form in snapshot.glob("compiled/*/form.json"):
        digests.append("sha256:" + sha256(form.read_bytes()).hexdigest())
    trust = [part for digest in digests for part in ("--trust", digest)]
    return [str(OUR_BIN / "zerowake"), "run", str(snapshot), *trust]


def their_command(venvs: Path, handler: str) -> list[str]:
    return [str(venvs / LAMBDA.venv / "bin" / "python"), "-m", "awslambdaric", handler]


def environment(handler: str, concurrency: int | None, threads: int) -> dict[str, str]:
    """What Lambda sets; for both. handler: ``module.function`` in the folder of the peers."""
    found = {
        "LAMBDA_TASK_ROOT": str(HERE),
        "PYTHONPATH": str(HERE),
        "_HANDLER": handler,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "8192",
        "BENCH_THREADS": str(threads),
    }
    if concurrency is not None:
        found["AWS_LAMBDA_MAX_CONCURRENCY"] = str(concurrency)
    return found
