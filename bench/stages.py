"""When a starting server reaches which stage, seen from outside: the same eyes for every server.

Looks every few milliseconds at what the kernel tells of its processes: which libraries and weights
they have mapped, whether the port listens, and what they have had read from the disk by then.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import memory
from process import tree

EVERY_S = 0.01

# a stage, and a piece of the path of what is mapped then
LIBTORCH, TORCH, WEIGHTS = "libtorch mapped", "torch being imported", "weights mapped"
LISTENS, ANSWERS = "listens", "right answer"
ORDER = (LISTENS, LIBTORCH, TORCH, WEIGHTS, ANSWERS)


@dataclass(frozen=True, slots=True)
class Reached:
    """A stage: milliseconds since the spawn, and megabytes read from the disk by then."""

    ms: float
    read_mb: float


class Stages(threading.Thread):
    """Watches the server ``pid`` from ``started`` (``perf_counter``) until ``answered``."""

    def __init__(self, pid: int, port: int, weights: Path, started: float) -> None:
        super().__init__(daemon=True)
        self.reached: dict[str, Reached] = {}
        self._pid, self._port, self._spawned = pid, port, started
        self._marks = {
            LIBTORCH: "/libtorch_cpu.so",
            TORCH: "/libtorch_python.so",
            WEIGHTS: str(weights),
        }
        self._read: dict[int, int] = {}  # of processes that have ended, too
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self._look()

    def answered(self) -> dict[str, Reached]:
        """The right answer is there; returns all stages that were seen."""
        ms = 1e3 * (time.perf_counter() - self._spawned)
        self._stopped.set()
        self.join()
        self._look()
        self.reached[ANSWERS] = Reached(ms, self._read_mb())
        return self.reached

    def _look(self) -> None:
        ms = 1e3 * (time.perf_counter() - self._spawned)
        mapped = ""
        for pid in tree(self._pid):
            with contextlib.suppress(OSError):
                mapped += Path(f"/proc/{pid}/maps").read_text()
                fields = dict(line.split(": ") for line in _lines(f"/proc/{pid}/io"))
                self._read[pid] = int(fields["read_bytes"])
        here = [stage for stage, mark in self._marks.items() if mark in mapped]
        here += [LISTENS] if self._listens() else []
        for stage in here:
            self.reached.setdefault(stage, Reached(ms, self._read_mb()))

    def _read_mb(self) -> float:
        return sum(self._read.values()) / memory.MB

    def _listens(self) -> bool:
        """Whether a socket of state LISTEN (0A) has the port, in either table of the kernel."""
        mark = f":{self._port:04X} "
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in _lines(table):
                fields = line.split()
                if mark.strip() in fields[1] and fields[3] == "0A":
                    return True
        return False


def _lines(path: str) -> Iterator[str]:
    yield from Path(path).read_text().splitlines()
