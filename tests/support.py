"""Running the command line and real gateways from tests."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.settings import Settings

ROOT = Path(__file__).parents[1]
APPS = ROOT / "tests" / "apps"
PATIENCE_S = 60.0  # nothing here should take so long; it ends a test that hangs


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def function_info(name: str, kind: str = "item", **known: Any) -> FunctionInfo:
    """What a snapshot of ``name`` would say, with ``known`` fields; it accepts anything."""
    defaults: dict[str, Any] = {
        "target": "app:Name",
        "settings": Settings(name),
        "parameters": ("value",),
        "input_schema": {},
        "output_schema": {},
    }
    return FunctionInfo(name, kind=Kind(kind), **{**defaults, **known})


def zerowake(
    *arguments: object, timeout_s: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, or stop it with SIGTERM after ``timeout_s``."""
    command: list[str] = [sys.executable, "-m", "zerowake", *map(str, arguments)]
    if timeout_s is not None:
        command = ["timeout", str(timeout_s), *command]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE_S * 3, **options
    )


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, which has imported nothing; it must end well."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr
    return run


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    """A real ``zerowake serve`` on a free port."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: list[str] = field(default_factory=list)
    callers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def call(self, name: str, value: Any, headers: dict[str, str] | None = None) -> Reply:
        return self.request("POST", f"/invoke/{name}", json.dumps(value).encode(), headers)

    def start_call(self, name: str, value: Any) -> "Future[Reply]":
        return self.callers.submit(self.call, name, value)

    def function(self, name: str) -> dict[str, Any]:
        functions = self.request("GET", "/functions").json()
        return next(f for f in functions if f["name"] == name)

    def is_running(self, name: str) -> bool:
        """Whether an instance of the function runs a batch."""
        return any(entry["state"] == "busy" for entry in self.function(name)["processes"])

    def pids(self, name: str) -> dict[str, int]:
        """The function's processes by role, the last one of each."""
        return {entry["role"]: entry["pid"] for entry in self.function(name)["processes"]}

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until ``what()`` is true; its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := what()):
            assert time.monotonic() < deadline, "it did not come to that\n" + "\n".join(self.log)
            time.sleep(0.02)
        return value

    def at_depth(self, name: str, depth: str) -> None:
        self.until(lambda: self.function(name)["depth"] == depth)

    def sleep(self, name: str, depth: str) -> Reply:
        return self.request(
            "POST", f"/functions/{name}/sleep", json.dumps({"depth": depth}).encode()
        )

    def stop(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)


def is_ready(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, "the gateway ended:\n" + "\n".join(gateway.log)
    try:
        return gateway.request("GET", "/readyz").status == 200
    except OSError:
        return False
