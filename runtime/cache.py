"""The snapshots of targets that are served from their source: the last one, or a new one.

A target is frozen by a process of its own, so that the gateway stays free of torch.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
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

SPEAKING = (1, 130, 143)  # exit codes of a freeze that has said why: an error, interrupted
GRACE_S = 2.0  # how long a freeze may take to end before it is killed

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


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where snapshots of served targets are kept: ``$XDG_CACHE_HOME/zerowake``."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zerowake"


def stop_freezing() -> None:
    """End freezes that still run, and any that begin; whoever waits for one gets a TargetError."""
    _stopped.set()
    for child in list(_freezing):
        _end(child)


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
                _end(child)
            said, _ = child.communicate()
        except BaseException:  # a signal for us
            _end(child)
            raise
        finally:
            _freezing.discard(child)
            process.AWAITED.discard(child.pid)
    return child.returncode, said


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Ask it to end, and kill it where native code does not let the question through."""
    for signum, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
            return
