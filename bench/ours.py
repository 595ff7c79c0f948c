"""Zerowake as the benchmarks drive it: freeze, serve, sleep, and which process plays which role.

Uses only the command line and the HTTP interface of the project's own venv.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import Connection
from common import CACHE, OUR_BIN, ROOT, child_env

TARGET = "examples/embed/app.py:Embed"
FUNCTION = "embed"
COMMAND = OUR_BIN / "zerowake"


def available() -> str:
    """Empty when ours can run, else the reason why not."""
    if not COMMAND.exists():
        return f"{COMMAND} is missing: run `make install` at {ROOT}"
    source = ROOT / TARGET.rsplit(":", 1)[0]
    return "" if source.exists() else f"{source} is missing"


FORMS = {
    "zerowake-eager": ["--no-compile"],
    "zerowake": [],
    "zerowake-bf16": ["--dtype", "bfloat16", "--tolerance", "1e-3"],
}


def freeze(name: str) -> Path:
    """Freezes the example in the form of one of our variants; returns the snapshot's path.

    Each in a folder of its own: a compiled form lies in the snapshot.
    """
    return freeze_target(TARGET, name, FORMS[name])


def freeze_target(target: str, name: str, options: list[str]) -> Path:
    """Freezes a target into the folder ``name`` of ours; returns the snapshot's path."""
    if missing := available():
        raise SystemExit(f"{name}: {missing}")
    argv = [str(COMMAND), "freeze", target, "--out", str(CACHE / "snapshots" / name), *options]
    print(f"freezing {target} for {name}", flush=True)
    done = subprocess.run(
        argv, cwd=ROOT, env=child_env({}), capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"freeze failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    path = (ROOT / lines[-1].strip()).resolve()
    if "--no-compile" in options:  # somebody may have compiled it since
        shutil.rmtree(path / "compiled", ignore_errors=True)
    return path


def serve_argv(snapshot: Path, port: int) -> list[str]:
    return [str(COMMAND), "serve", str(snapshot), "--port", str(port)]


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    role: str
    function: bool  # belongs to the function, not to the server as a whole


def _entry(functions: Any) -> dict[str, Any]:
    """The function's entry in the answer of GET /functions, a list or an object by name."""
    if isinstance(functions, dict):
        inner = functions.get("functions", functions)
        if isinstance(inner, dict):
            found: dict[str, Any] = inner[FUNCTION]
            return found
        functions = inner
    return next(entry for entry in functions if entry["name"] == FUNCTION)


def _pids(value: Any, role: str) -> Iterator[tuple[int, str]]:
    """Every {"pid": …, "role": …} anywhere in a JSON value."""
    if isinstance(value, dict):
        pid = value.get("pid")
        if isinstance(pid, int):
            yield pid, str(value.get("role") or value.get("kind") or role)
        for key, inner in value.items():
            yield from _pids(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _pids(inner, role)


def _functions(control: Connection) -> Any:
    control.ensure_open()
    return control.send("GET", "/functions").json()


def depth(control: Connection) -> str:
    return str(_entry(_functions(control))["depth"])


def processes(control: Connection) -> list[Process]:
    """What GET /functions reports; a base zygote listed with the function still is the server's."""
    answer = _functions(control)
    own = {pid for pid, role in _pids(_entry(answer), "?") if "base" not in role}
    return [Process(pid, role, pid in own) for pid, role in dict(_pids(answer, "?")).items()]


def sink(control: Connection, wanted: str, limit_s: float = 60.0) -> None:
    """Sinks the function and returns once the server reports the depth."""
    control.ensure_open()
    reply = control.send("POST", f"/functions/{FUNCTION}/sleep", {"depth": wanted})
    if reply.status // 100 != 2:
        raise RuntimeError(f"sleep to {wanted}: status {reply.status}: {reply.body[:300]!r}")
    deadline = time.monotonic() + limit_s
    while (seen := depth(control)) != wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"asked for {wanted}, still {seen} after {limit_s:.0f} s")
        time.sleep(0.02)
