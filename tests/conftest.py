"""What all tests share: a state directory of their own, frozen functions, running gateways."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import APPS, ROOT, Gateway, is_ready, zerowake


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


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``frozen("zoo.py:Add")``: the snapshot of a function of tests/apps, made once."""
    out = tmp_path_factory.mktemp("snapshots")
    made: dict[str, Path] = {}

    def freeze(target: str) -> Path:
        if target not in made:
            file = ROOT / target if "/" in target else APPS / target
            run = zerowake("freeze", file, "--out", out, "--no-compile")
            assert run.returncode == 0, run.stderr
            made[target] = Path(run.stdout.splitlines()[-1])
        return made[target]

    return freeze


@pytest.fixture(scope="session")
def compiled(
    frozen: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``compiled("nets.py:Nets")``: a copy of the frozen snapshot with its compiled form, made once."""
    made: dict[str, Path] = {}

    def compile_(target: str) -> Path:
        if target not in made:
            path = tmp_path_factory.mktemp("compiled") / frozen(target).name
            shutil.copytree(frozen(target), path)
            run = zerowake("compile", path)
            assert run.returncode == 0, run.stderr
            made[target] = path
        return made[target]

    return compile_


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Gateway]]:
    """``launch(snapshot_or_target, ..., "--depth", "cold", env={...})``: a gateway that is ready."""
    running: list[Gateway] = []

    def start(*arguments: object, env: dict[str, str] | None = None, ready: bool = True) -> Gateway:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "zerowake",
            "serve",
            *map(str, arguments),
            "--port",
            str(port),
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        gateway = Gateway(process, f"http://127.0.0.1:{port}")
        running.append(gateway)

        def collect() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                gateway.log.append(line.decode(errors="replace").rstrip("\n"))

        threading.Thread(target=collect, daemon=True).start()
        if ready:
            gateway.until(lambda: is_ready(gateway))
            gateway.request("GET", "/functions")  # imports FastAPI, which tests should not wait for
        return gateway

    yield start
    for gateway in running:
        gateway.callers.shutdown(wait=False, cancel_futures=True)
        gateway.stop(signal.SIGKILL)
