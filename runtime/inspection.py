"""Snapshots and running functions as text for a terminal."""

from collections.abc import Sequence
from typing import Any

from zerowake.runtime.forms import choose
from zerowake.runtime.info import FunctionInfo
from zerowake.snapshot.opened import Snapshot


def human_nbytes(nbytes: float | None) -> str:
    """1536 -> "1.5 KiB"; "-" for None."""
    if nbytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as left-aligned columns, the first row being the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe(snapshot: Snapshot) -> str:
    """What ``zerowake inspect`` prints."""
    manifest = snapshot.manifest
    info = FunctionInfo.of(manifest)
    form = choose(snapshot, (), "auto")
    weights = sum(segment.nbytes for segment in manifest.segments)
    lines = [
        ("name", manifest.name),
        ("digest", snapshot.digest),
        ("path", str(snapshot.path)),
        ("function", f"{info.target} ({info.kind})"),
        ("settings", ", ".join(f"{k}={v}" for k, v in info.settings.to_json().items())),
        ("code", ", ".join(sorted(manifest.code.files))),
        ("form here", f"{form.name}{f' ({form.reason})' if form.reason else ''}"),
        ("weights", f"{human_nbytes(weights)} in {len(manifest.tensors)} tensors"),
        ("changed by probe", str(sum(tensor.mutated for tensor in manifest.tensors))),
        ("environment", ", ".join(f"{k} {v}" for k, v in manifest.environment.items() if v)),
    ]
    width = max(len(key) for key, _ in lines)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines)


def table(functions: list[dict[str, Any]]) -> str:
    """What ``zerowake ps`` prints."""
    rows = [("NAME", "FORM", "DEPTH", "STATE", "QUEUED", "PROCESSES", "PRIVATE", "REASON")]
    for function in functions:
        processes = function["processes"]
        private = [p["private_nbytes"] for p in processes if p["private_nbytes"] is not None]
        rows.append(
            (
                function["name"],
                function["form"],
                function["depth"],
                function["state"],
                str(function["queued"]),
                " ".join(f"{p['role']}:{p['pid']}" for p in processes) or "-",
                human_nbytes(sum(private)) if private else "-",
                function["reason"] or "",
            )
        )
    return columns(rows)
