"""AWS's own Runtime Interface Emulator around ``zerowake run``, in both of its modes.

It comes in the wheel of aws-sam-cli. With AWS_LAMBDA_MAX_CONCURRENCY it is a Managed Instance: it
then takes its command from /var/task/bootstrap, and runs that as a user who may read nothing of
ours. So there it lives in a mount namespace of its own, in which /var is an empty one and the folders
that it needs can be entered by everybody.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import parts
from support import PATIENCE_S, ROOT, Reply, free_ports

PACKAGE = "aws-sam-cli==1.170.0"
RIE = "samcli/local/rapid/aws-lambda-rie-x86_64"
INVOKE = "/2015-03-31/functions/function/invocations"


class Emulator:
    """A Lambda environment. ``log``: what the emulator and the function's processes say."""

    def __init__(
        self, command: list[str], needs: list[Path], *, slots: int | None, env: Mapping[str, str]
    ) -> None:
        binary = parts.wheel_file(PACKAGE, RIE)
        api, entry = free_ports(2)
        self.url = f"http://127.0.0.1:{entry}{INVOKE}"
        self.log: list[str] = []
        self._callers = ThreadPoolExecutor(32)
        run = [str(binary), "--runtime-api-address", f"127.0.0.1:{api}"]
        run += ["--runtime-interface-emulator-address", f"127.0.0.1:{entry}"]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
        if slots is None:
            run += command
        else:
            environ["AWS_LAMBDA_MAX_CONCURRENCY"] = str(slots)
            environ["ZEROWAKE_STATE"] = "/var/tmp/state"
            script = _namespace(command, [binary.parent, *needs])
            run = ["unshare", "--mount", "sh", "-ec", f"{script}\nexec {shlex.join(run)}"]
        self.process = subprocess.Popen(
            run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
        )
        threading.Thread(target=self._collect, daemon=True).start()
        self.until(lambda: self._listens(entry))

    def invoke(self, body: bytes, headers: dict[str, str] | None = None) -> Reply:
        request = urllib.request.Request(self.url, body, headers or {}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def start(self, body: bytes) -> "Future[Reply]":
        return self._callers.submit(self.invoke, body)

    @property
    def runtime_pid(self) -> int:
        """The process of ``zerowake run``."""
        return self.until(lambda: children(self.process.pid))[0]

    @property
    def instance_pid(self) -> int:
        """The process of the function."""
        named = lambda: [pid for pid in descendants(self.process.pid) if _name(pid)[:5] == "zw-i "]  # noqa: E731
        return self.until(named)[-1]

    def said(self, words: str) -> bool:
        return any(words in line for line in list(self.log))

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until ``what()`` is true; its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := what()):
            assert time.monotonic() < deadline, "it did not come to that\n" + "\n".join(self.log)
            time.sleep(0.02)
        return value

    def close(self) -> None:
        self._callers.shutdown(wait=False, cancel_futures=True)
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.decode(errors="replace").rstrip("\n"))

    def _listens(self, port: int) -> bool:
        assert self.process.poll() is None, "the emulator ended:\n" + "\n".join(self.log)
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> list[int]:
    found: list[int] = []
    for tid in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            found += map(int, (tid / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (*descendants(child), child)]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _namespace(command: list[str], needs: list[Path]) -> str:
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
