"""Lambda environments: the real emulator around real functions."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from emulator import Emulator

MAY_MOUNT = os.geteuid() == 0 and not subprocess.run("unshare --mount true", shell=True).returncode


@pytest.fixture(scope="module")
def emulate(frozen: Callable[[str], Path]) -> Iterator[Callable[..., Emulator]]:
    """``emulate("zoo.py:Add", slots=4, env={...})``: an environment.

    slots: of a Managed Instance, which is awaited until it is ``ready``. sees: folders beside the
    snapshot that its processes must be able to enter.
    """
    running: list[Emulator] = []

    def start(
        target: str,
        *,
        slots: int | None = None,
        env: dict[str, str] | None = None,
        sees: Iterable[Path] = (),
        ready: bool = True,
    ) -> Emulator:
        if slots is not None and not MAY_MOUNT:
            pytest.skip("the emulator of Managed Instances needs root and mount namespaces")
        snapshot = frozen(target)
        digest = _digest(snapshot)
        command = [sys.executable, "-m", "zerowake", "run", str(snapshot), "--drain-s", "30"]
        environ = {"ZEROWAKE_TRUST": digest, **(env or {})}
        found = Emulator(command, [snapshot, *sees], slots=slots, env=environ)
        running.append(found)
        if slots is not None and ready:  # on demand it starts with the first invocation
            found.until(lambda: found.said("serving"))
        return found

    yield start
    for each in running:
        each.close()


def _digest(snapshot: Path) -> str:
    from zerowake.snapshot.store import open_snapshot

    return open_snapshot(snapshot).digest
