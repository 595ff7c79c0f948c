"""Memory of processes as the kernel accounts it: /proc/PID/smaps_rollup, smaps and status.

USS is what only this process maps (clean and dirty), PSS adds its share of the rest, PTE are its
page tables. Knows nothing of who the processes are.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

KIB = 1024
MB = 1e6


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, summed over processes."""

    pss_nbytes: int = 0
    dirty_nbytes: int = 0  # private and written: what really cannot be dropped
    clean_nbytes: int = 0  # private and clean: file pages that nobody else maps
    pte_nbytes: int = 0
    processes: int = 0

    @property
    def uss_nbytes(self) -> int:
        return self.dirty_nbytes + self.clean_nbytes

    @property
    def private_nbytes(self) -> int:
        return self.uss_nbytes + self.pte_nbytes

    def __add__(self, other: "Memory") -> "Memory":
        left, right = asdict(self), asdict(other)
        return Memory(**{key: left[key] + right[key] for key in left})

    def report(self) -> dict[str, int]:
        return {
            **asdict(self),
            "uss_nbytes": self.uss_nbytes,
            "private_nbytes": self.private_nbytes,
        }


def _kib(text: str) -> dict[str, int]:
    """The `Name:  123 kB` lines of a proc file, summed by name, in bytes."""
    sums: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        if line.endswith(" kB"):
            name, value = line.split(":", 1)
            sums[name] += int(value.split()[0]) * KIB
    return sums


def of_process(pid: int) -> Memory:
    """Memory of one process; zero when it has gone."""
    try:
        rollup = _kib(Path(f"/proc/{pid}/smaps_rollup").read_text())
        status = _kib(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return Memory()
    return Memory(
        pss_nbytes=rollup["Pss"],
        dirty_nbytes=rollup["Private_Dirty"] + rollup["Private_Hugetlb"],
        clean_nbytes=rollup["Private_Clean"],
        pte_nbytes=status["VmPTE"],
        processes=1,
    )


def of_processes(pids: Iterable[int]) -> Memory:
    return sum((of_process(pid) for pid in pids), Memory())


def makeup(pid: int) -> list[tuple[str, Memory]]:
    """Where the memory of a process lies: one entry a mapped file, heap, anonymous; largest
    private part first."""
    parts: dict[str, Memory] = defaultdict(Memory)
    name, block = "", ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:  # it has gone
        return []
    for line in [*lines, "0-0 end"]:
        words = line.split(maxsplit=5)
        if "-" in words[0] and not words[0].endswith(":"):
            if block:
                sums = _kib(block)
                parts[name] += Memory(sums["Pss"], sums["Private_Dirty"], sums["Private_Clean"])
            path = words[5] if len(words) > 5 else "[anonymous]"
            name, block = path if path.startswith("[") else os.path.basename(path), ""
        else:
            block += line + "\n"
    return sorted(parts.items(), key=lambda part: -part[1].uss_nbytes)
