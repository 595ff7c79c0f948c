"""How many cores this process may keep busy. Knows nothing of what computes on them."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path


def usable() -> int:
    """Those of its affinity, and no more than the container's quota pays for: 1 at least.

    More threads than that are stopped by the kernel, all of them, for the rest of each period of
    100 ms: a container with 2 of a machine's 64 cores must not start 64 threads.
    """
    return max(1, int(min(len(os.sched_getaffinity(0)), quota(Path("/")))))


@functools.cache
def quota(root: Path) -> float:
    """Processor seconds a second that the control groups of this process grant; inf for no limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and version 1's cpu.cfs_quota_us.
    """
    return min(_quotas(root), default=float("inf"))


def _quotas(root: Path) -> Iterator[float]:
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = groups / controllers  # inside a container its own group, whatever ``path`` says
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    yield _granted(folder)
                if folder == top:
                    break


def _granted(folder: Path) -> float:
    """Raises OSError or ValueError where a group has no limit."""
    with contextlib.suppress(OSError):
        limit, period = (folder / "cpu.max").read_text().split()
        return int(limit) / int(period)
    limit = (folder / "cpu.cfs_quota_us").read_text()
    if int(limit) < 0:
        raise ValueError("no limit")
    return int(limit) / int((folder / "cpu.cfs_period_us").read_text())
