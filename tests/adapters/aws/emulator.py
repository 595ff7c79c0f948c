"""AWS's own Runtime Interface Emulator around ``zerowake run``, in both of its modes (``rie``)."""

import contextlib
import os
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

import rie
from support import PATIENCE_S, Reply, free_ports

NO_POLL = b"Runtime.Unavailable"
INVOKE = "/2015-03-31/functions/function/invocations"


class Emulator:
    """A Lambda environment. ``log``: what the emulator and the function's processes say."""

    def __init__(
        self, command: list[str], needs: list[Path], *, slots: int | None, env: Mapping[str, str]
    ) -> None:
        api, entry = free_ports(2)
        self.url = f"http://127.0.0.1:{entry}{INVOKE}"
        self.log: list[str] = []
        self._callers = ThreadPoolExecutor(32)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
        if slots is not None:
            environ["AWS_LAMBDA_MAX_CONCURRENCY"] = str(slots)
            environ["ZEROWAKE_STATE"] = "/var/tmp/state"
        readable = None if slots is None else needs
        run = rie.argv(command, api=api, entry=entry, readable=readable)
        self.process = subprocess.Popen(
            run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
        )
        threading.Thread(target=self._collect, daemon=True).start()
        self.until(lambda: self._listens(entry))

    def invoke(self, body: bytes, headers: dict[str, str] | None = None) -> Reply:
        """An answer of the runtime. The emulator of Managed Instances has one of its own while no
        poll waits, where Lambda would send the invocation to another instance."""
        while NO_POLL in (reply := self._ask(body, headers)).body:
            time.sleep(0.01)
        return reply

    def _ask(self, body: bytes, headers: dict[str, str] | None) -> Reply:
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
