"""What all benchmark scripts share: places, environment, free ports, figures and tables.

Starts nothing and speaks to nobody. Standard library only, so that any Python 3.11 runs it.
"""

import json
import math
import os
import platform
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path.home() / ".cache" / "zerowake-bench"
DEFAULT_VENVS = CACHE / "venvs"
OUR_BIN = ROOT / ".venv" / "bin"
MIN_COSINE = 0.999


def child_env(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process that is measured: bytecode is kept, no hub is asked."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONPATH")
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**env, "HF_HUB_OFFLINE": "1", **extra}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Cosine of two vectors; -1.0 where one has another length or is zero or not finite."""
    if len(left) != len(right):
        return -1.0
    norm = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(y * y for y in right))
    value = sum(x * y for x, y in zip(left, right, strict=True)) / norm if norm else -1.0
    return value if math.isfinite(value) else -1.0


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, `share` from 0 to 1."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> str:
    """Median with the range, as the tables show it."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(head), rule, *[line(row) for row in rows]])


def machine() -> dict[str, object]:
    """What the figures depend on, for the JSON files."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "?")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_json(path: Path | None, value: object) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")
        print(f"\nwritten: {path}")
