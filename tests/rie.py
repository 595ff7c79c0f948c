"""AWS's own Runtime Interface Emulator, on demand or as a Managed Instance; for tests and benchmarks.

It comes in the wheel of aws-sam-cli. With AWS_LAMBDA_MAX_CONCURRENCY it is a Managed Instance: it
then takes its command from /var/task/bootstrap, and runs that as a user who may read nothing of
ours. So there it lives in a mount namespace of its own, in which /var is an empty one and the folders
that it needs can be entered by everybody. That takes root.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from parts import wheel_file

ROOT = Path(__file__).parents[1]
WHEEL, BINARY = "aws-sam-cli==1.170.0", "samcli/local/rapid/aws-lambda-rie-x86_64"


def argv(
    command: Sequence[str], *, api: int, entry: int, readable: Sequence[Path] | None = None
) -> list[str]:
    """The emulator, which takes invocations on the port ``entry`` and starts ``command``.

    api: the port of the Runtime API. readable: what a Managed Instance has to read beside the project
    and its Python; None is on demand. The environment has to say so as well.
    """
    binary = wheel_file(WHEEL, BINARY)
    run = [str(binary), "--runtime-api-address", f"127.0.0.1:{api}"]
    run += ["--runtime-interface-emulator-address", f"127.0.0.1:{entry}"]
    if readable is None:
        return [*run, *command]
    script = _namespace(command, [binary.parent, *readable])
    return ["unshare", "--mount", "sh", "-ec", f"{script}\nexec {shlex.join(run)}"]


def _namespace(command: Sequence[str], needs: Sequence[Path]) -> str:
    """Shell commands that make the bootstrap, and open what the runtime's user must read."""
    lines = ["mount -t tmpfs -o mode=755 tmpfs /var", "mkdir /var/task /var/keep"]
    lines += ["mkdir -m 1777 /var/tmp"]
    bootstrap = f"#!/bin/sh\nexec {shlex.join(command)}\n"
    lines += [f"printf %s {shlex.quote(bootstrap)} > /var/task/bootstrap"]
    lines += ["chmod 755 /var/task/bootstrap"]
    kept: dict[Path, str] = {}
    closed: set[Path] = set()
    for path in [Path(sys.base_prefix), Path(sys.prefix), ROOT, *needs]:
        ancestors = [above for above in reversed(path.parents) if not above.stat().st_mode & 1]
        if ancestors:
            kept[path] = f"/var/keep/{len(kept)}"
            closed.add(ancestors[0])
    for path, place in kept.items():
        lines += [f"mkdir {place}", f"mount --bind {shlex.quote(str(path))} {place}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(path))}" for path in closed]
    for path, place in kept.items():
        name = shlex.quote(str(path))
        lines += [f"mkdir -p {name}", f"mount --move {place} {name}"]
    return "\n".join(lines)
