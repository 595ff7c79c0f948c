"""The snapshots of targets that are served from their source: the last one, or a new one.

A target is frozen by a process of its own, so that the gateway stays free of torch.
"""

import ast
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from zerowake.runtime import process
from zerowake.runtime.errors import TargetError
from zerowake.runtime.target import Target, parse_target
from zerowake.snapshot import code, names
from zerowake.snapshot.errors import ZerowakeError
from zerowake.snapshot.store import open_snapshot

log = logging.getLogger("zerowake.gateway")

SPEAKING = (1, 130, 143)  # exit codes of a freeze that has said why: an error, interrupted

_stopped = threading.Event()
_freezing: set[subprocess.Popen[bytes]] = set()


def fingerprint(target: Target) -> str:
    """Changes when a snapshot of ``target`` made earlier must not be used any more."""
    files = code.collect(target.entry, target.root)
    versions = [platform.python_version(), platform.machine()]
    for package in names.LIBRARIES:
        try:
            versions.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            versions.append("")
    return hashlib.sha256(
        json.dumps([target.qualified, files.digest, versions]).encode()
    ).hexdigest()


def ensure_snapshot(text: str, cache: Path, *, compiled: bool = True) -> Path:
    """The snapshot of a target as its source is now: the last one if nothing changed, else a new one.

    compiled: a new one gets a compiled form as well, which takes tens of seconds.

    The new one is made by a process of its own, so that the caller stays free of torch. Raises
    TargetError when that fails; what it said has gone to standard error.
    """
    target = parse_target(text)
    index = cache / "targets" / fingerprint(target)
    try:
        path = Path(os.fsdecode(index.read_bytes()))
        open_snapshot(path)
        return path
    except (OSError, ZerowakeError):
        pass
    log.info("%s is frozen first: %s", text, _what_runs(target, compiled))
    out = cache / "snapshots"
    command = [sys.executable, "-P", "-m", "zerowake", "freeze", text, "--out", str(out)]
    command += [] if compiled else ["--no-compile"]
    code, said = _freeze(command)
    if code in SPEAKING:
        raise TargetError(f"{text} could not be frozen; the reason stands above")
    path = Path(os.fsdecode(said.splitlines()[-1] if said else b""))
    if code or path.parent != out:
        raise TargetError(
            f"{text} could not be frozen: the freezing process ended: "
            f"{process.code_reason(code)}, while it ran load or the probe"
        )
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_bytes(os.fsencode(path))
    return path


def _what_runs(target: Target, compiled: bool) -> str:
    """What freezing does, in words. Of a plain function there is nothing to load or to compile."""
    try:
        nodes = ast.parse(target.entry.read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # the freeze says it
        nodes = []
    if any(isinstance(n, ast.FunctionDef) and n.name == target.attribute for n in nodes):
        return "its module is imported"
    more = ", and its modules are compiled for this machine (half a minute or more)"
    return f"load runs{more if compiled else ''}"


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where snapshots of served targets are kept: ``$XDG_CACHE_HOME/zerowake``."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zerowake"


def stop_freezing() -> None:
    """End freezes that still run, and any that begin; whoever waits for one gets a TargetError."""
    _stopped.set()
    for child in list(_freezing):
        process.end_group(child)


def _freeze(command: list[str]) -> tuple[int, bytes]:
    """Exit code and standard output of a process that freezes, and that ends when we do."""
    environ = {**os.environ, process.PARENT: str(os.getpid())}
    with subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us; and it is ended with its own children
    ) as child:
        process.AWAITED.add(child.pid)
        _freezing.add(child)
        try:
            if _stopped.is_set():
                process.end_group(child)
            said, _ = child.communicate()
        except BaseException:  # a signal for us
            process.end_group(child)
            raise
        finally:
            _freezing.discard(child)
            process.AWAITED.discard(child.pid)
    return child.returncode, said
