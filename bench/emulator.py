"""AWS's Runtime Interface Emulator around a server: the same one for ours and for AWS's own client.

It comes inside the aws-sam-cli wheel. Invocations are POSTed to it. As the emulator of Managed Instances
it lets a runtime hold several at a time, starts /var/runtime/bootstrap, and does so as another user: it runs in a
mount namespace of its own (root is needed), where that file is ours and what lies under a closed home
folder can be read.
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
from parts import wheel_file

WHEEL, BINARY = "aws-sam-cli==1.170.0", "samcli/local/rapid/aws-lambda-rie-x86_64"

# HOME PYTHON CACHE BOOTSTRAP COMMAND...
_NAMESPACE = """
set -e
home=$1 python=$2 cache=$3 bootstrap=$4; shift 4
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/cache /mnt/bootstrap
mount --bind "$python" /mnt/python; mount --bind "$cache" /mnt/cache
mount --bind "$bootstrap" /mnt/bootstrap
mount -t tmpfs -o mode=755 tmpfs "$home"
mkdir -p "$python" "$cache"
mount --bind /mnt/python "$python"; mount --bind /mnt/cache "$cache"
mount -t tmpfs -o mode=755 tmpfs /var
mkdir /var/task /var/runtime
mount --bind /mnt/bootstrap /var/runtime
exec "$@"
"""


def argv(command: Sequence[str], port: int, *, managed: bool = False) -> list[str]:
    """The emulator on ``port``; it starts ``command`` at the first invocation, ``managed`` at once."""
    listen = ("--runtime-interface-emulator-address", f"127.0.0.1:{port}")
    api = ("--runtime-api-address", f"127.0.0.1:{free_port()}")
    emulator = [str(wheel_file(WHEEL, BINARY)), *api, *listen]
    if not managed:
        return [*emulator, *command]
    if os.geteuid():
        raise SystemExit("the emulator of Managed Instances runs only as root")
    folder = CACHE / "bootstrap" / str(port)
    folder.mkdir(parents=True, exist_ok=True)
    bootstrap = folder / "bootstrap"
    bootstrap.write_text("#!/bin/sh\nexec " + " ".join(map(_quoted, command)) + "\n")
    bootstrap.chmod(0o755)
    python = Path(sys.base_prefix)
    places = [str(Path.home()), str(python), str(CACHE), str(folder)]
    return ["unshare", "-m", "sh", "-c", _NAMESPACE, "sh", *places, *emulator]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


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
