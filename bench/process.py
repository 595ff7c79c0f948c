"""Starting, finding and ending the processes of one server.

A server is a session of its own: everything below it by parent id or by session id belongs to it.
Knows nothing of HTTP and memory.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common import CACHE, child_env

STOP_S = 15.0


@contextmanager
def running(
    name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path = CACHE, pipes: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Spawns a server and ends its whole tree at the end; its output goes to a log.

    With `pipes` stdin and stdout are pipes to the caller and only stderr is logged.
    """
    log = log_of(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else out,
            stderr=out,
            text=True,
            env=child_env(env),
            cwd=cwd,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def log_of(name: str) -> Path:
    return CACHE / "logs" / f"{name}.log"


def log_tail(name: str, lines: int = 15) -> str:
    return "\n".join(log_of(name).read_text(errors="replace").splitlines()[-lines:])


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Parent, session and start time of a process; None once it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[3]), fields[19])


def tree(root: int) -> dict[int, str]:
    """All living processes of a server with their start times: descendants of `root`, and what
    shares its session (a child whose parent left is found by that)."""
    every = {int(entry): _stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    living = {pid: stat for pid, stat in every.items() if stat is not None}
    found = {pid for pid, (_, session, _) in living.items() if pid == root or session == root}
    while True:
        more = {pid for pid, (parent, _, _) in living.items() if parent in found} - found
        if not more:
            return {pid: living[pid][2] for pid in sorted(found)}
        found |= more


def command(pid: int) -> str:
    """What the kernel calls a process, for those that nobody lists."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the server, SIGKILL to whatever of its tree is left after a while."""
    members = tree(process.pid)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    deadline = time.monotonic() + 2.0
    while (left := _left(members)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _left(members: Mapping[int, str]) -> list[int]:
    """Members that still live; the start time tells a reused id apart."""
    stats = {pid: _stat(pid) for pid in members}
    return [pid for pid, stat in stats.items() if stat is not None and stat[2] == members[pid]]
