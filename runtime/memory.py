"""How much memory this container may still take. Linux; knows no functions and no processes."""

from pathlib import Path


def available_nbytes(root: Path = Path("/")) -> int:
    """The machine's available memory, or what the control group leaves of it, in bytes.

    Page cache that can be dropped counts as available, in both: mapped weights lie there.
    root: where /proc and /sys are found.
    """
    left = [_field(root / "proc/meminfo", "MemAvailable:") * 1024]
    group = root / "sys/fs/cgroup"
    if (limit := _number(group / "memory.max")) is not None:  # version 2; "max" is no number
        used = _number(group / "memory.current") or 0
        left.append(limit - used + _field(group / "memory.stat", "inactive_file"))
    return max(0, min(left))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int:
    """The number behind ``name`` in a file of names and numbers; 0 where there is none."""
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[:1] == [name]), 0)
    except (OSError, ValueError):
        return 0
