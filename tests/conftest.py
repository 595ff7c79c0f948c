"""What all tests share: a state directory of their own, frozen functions, running gateways."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
APPS = ROOT / "tests" / "apps"
PATIENCE_S = 60.0  # nothing here should take so long; it ends a test that hangs


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trust records and caches of the tests stay out of the user's."""
    path = tmp_path_factory.mktemp("state")
    changed = {"ZEROWAKE_STATE": str(path / "state"), "XDG_CACHE_HOME": str(path / "cache")}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    yield path
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def zerowake(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "zerowake", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S * 3, **options)


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``frozen("zoo.py:Add")``: the snapshot of a function of tests/apps, made once."""
    out = tmp_path_factory.mktemp("snapshots")
    made: dict[str, Path] = {}

    def freeze(target: str) -> Path:
        if target not in made:
            run = zerowake("freeze", APPS.parent.parent / target if "/" in target else APPS / target, "--out", out)
            assert run.returncode == 0, run.stderr
            made[target] = Path(run.stdout.splitlines()[-1])
        return made[target]

    return freeze


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
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
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

    def pids(self, name: str) -> dict[str, int]:
        """The function's processes by role, the last one of each."""
        return {entry["role"]: entry["pid"] for entry in self.function(name)["instances"]}

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
        return self.request("POST", f"/functions/{name}/sleep", json.dumps({"depth": depth}).encode())

    def stop(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Gateway]]:
    """``launch(snapshot_or_target, ..., "--depth", "cold", env={...})``: a gateway that is ready."""
    running: list[Gateway] = []

    def start(*arguments: object, env: dict[str, str] | None = None, ready: bool = True) -> Gateway:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "zerowake", "serve", *map(str, arguments), "--port", str(port)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        gateway = Gateway(process, f"http://127.0.0.1:{port}")
        running.append(gateway)

        def collect() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                gateway.log.append(line.decode(errors="replace").rstrip("\n"))

        threading.Thread(target=collect, daemon=True).start()
        if ready:
            gateway.until(lambda: _is_ready(gateway))
        return gateway

    yield start
    for gateway in running:
        gateway.callers.shutdown(wait=False, cancel_futures=True)
        gateway.stop(signal.SIGKILL)


def _is_ready(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, "the gateway ended:\n" + "\n".join(gateway.log)
    try:
        return gateway.request("GET", "/readyz").status == 200
    except OSError:
        return False
