"""What all tests share: a state directory of their own, frozen functions, running gateways."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support import APPS, ROOT, Gateway, free_ports, is_ready, zerowake


def pytest_configure() -> None:
    """As from a terminal: a shell's background job ignores Ctrl-C, and so would what tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def shared(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all processes of one test run have in common."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    path.mkdir(exist_ok=True)
    return path


def once(folder: Path, what: str, make: Callable[[], Path]) -> Path:
    """The path that ``make`` returns, made by the first of these processes that wants it."""
    note = folder / f"{what.replace('/', '-')}.made"
    with open(note, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (text := note.read_text()):
            note.write_text(text := str(make()))
        return Path(text)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trust records and caches of the tests stay out of the user's."""
    path = shared(tmp_path_factory, "state")
    changed = {"ZEROWAKE_STATE": str(path / "state"), "XDG_CACHE_HOME": str(path / "cache")}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    yield path
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def toolchain() -> Iterator[None]:
    """For tests that compile in their own process: what all processes of one run have seen already."""
    from zerowake.snapshot.toolchain import home, remembered

    with remembered(home()):
        yield


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``frozen("zoo.py:Add")``: the snapshot of a function of tests/apps, made once."""
    out = shared(tmp_path_factory, "snapshots")

    def freeze(target: str) -> Path:
        file = ROOT / target if "/" in target else APPS / target
        run = zerowake("freeze", file, "--out", out, "--no-compile")
        assert run.returncode == 0, run.stderr
        return Path(run.stdout.splitlines()[-1])

    return cache(lambda target: once(out, target, lambda: freeze(target)))


@pytest.fixture(scope="session")
def compiled(
    frozen: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``compiled("nets.py:Nets")``: a copy of the frozen snapshot with its compiled form, made once."""
    folder = shared(tmp_path_factory, "compiled")

    def compile_(target: str) -> Path:
        path = folder / frozen(target).name
        shutil.copytree(frozen(target), path)
        run = zerowake("compile", path)
        assert run.returncode == 0, run.stderr
        return path

    return cache(lambda target: once(folder, target, lambda: compile_(target)))


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Gateway]]:
    """``launch(snapshot_or_target, ..., "--depth", "cold", env={...})``: a gateway that is ready."""
    running: list[Gateway] = []

    def start(*arguments: object, env: dict[str, str] | None = None, ready: bool = True) -> Gateway:
        (port,) = free_ports(1)
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
