"""The tables of cold_start.py and throughput.py, from the values that their JSON files hold.

Measures nothing. Targets are those of the project's issues 3 (eager) and 4 (compiled), met or missed
in the same run.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from common import spread, table
from memory import MB
from peers.registry import BF16, EAGER, OUR_NAMES, OURS

PREWARMED_BY_WARM = 1.5
ZYGOTE_BY_WARM = 4.0
PEER_BY_ZYGOTE = 60.0
PREWARMED_PRIVATE_MB = 15.0
NOTHING_BY_IMPORT = 0.5
PEER_BY_NOTHING = 6.0
PEER_BY_COLD = 50.0
WARM_BY_EAGER = 0.75
BF16_BY_BEST_RPS = 2.0


def _mb(value: Mapping[str, Any], key: str) -> str:
    return f"{value[key] / MB:.1f}"


def _memory(value: Mapping[str, Any]) -> list[str]:
    keys = ("pss_nbytes", "uss_nbytes", "dirty_nbytes", "pte_nbytes")
    return [_mb(value, key) for key in keys]


def _total(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = ("pss_nbytes", "uss_nbytes", "dirty_nbytes", "pte_nbytes", "private_nbytes")
    return {key: sum(part[key] for part in parts) for key in keys}


def _target(name: str, seen: float, wanted: float, at_least: bool = False, unit: str = "x") -> str:
    met = seen >= wanted if at_least else seen <= wanted
    sign = ">=" if at_least else "<="
    return f"- {'met   ' if met else 'MISSED'} {name}: {seen:.2f}{unit} ({sign} {wanted:g}{unit})"


def fastest_spawn(result: Mapping[str, Any]) -> tuple[str, float] | None:
    """The peer that is quickest from a spawned process; forks of a waiting parent do not count."""
    medians = {
        name: result["median_ms"][name]
        for name, one in result["starts"].items()
        if name not in OUR_NAMES and not one["forks"]
    }
    return min(medians.items(), key=lambda one: one[1]) if medians else None


def _starts(result: Mapping[str, Any]) -> str:
    best = fastest_spawn(result)
    rows = []
    for name, one in result["starts"].items():
        ratio = f"{result['median_ms'][name] / best[1]:.2f}" if best else "-"
        clock = "fork" if one["forks"] else "spawn"
        count = str(one["memory"]["processes"])
        rows.append([name, clock, spread(one["ms"]), ratio, *_memory(one["memory"]), count])
        if "asleep" in one:
            rows.append(["  its parent, asleep", "", "", "", *_memory(one["asleep"]), "1"])
    torch = result["import_torch"]
    ratio = f"{statistics.median(torch['ms']) / best[1]:.2f}" if best else "-"
    rows.append(["bare `import torch`", "spawn", spread(torch["ms"]), ratio, *["-"] * 5])
    head = ["start to first right answer", "clock", "ms, median (range)", "x fastest peer"]
    return table([*head, "PSS MB", "USS MB", "dirty MB", "PTE MB", "processes"], rows)


def _warm(mine: Mapping[str, Any]) -> float:
    parts = (mine, *mine["depths"].values())
    return statistics.median([ms for one in parts for ms in one["warm_ms"]])


def _depths(result: Mapping[str, Any], name: str) -> str:
    best, mine = fastest_spawn(result), result["ours"][name]
    rows = [["hot (warm)", f"{_warm(mine):.1f}", "1.00", "-", *["-"] * 6]]
    for depth, one in mine["depths"].items():
        first = statistics.median(one["ms"])
        total = _total(one["asleep"])
        found = "" if set(one["found"]) == {depth} else f" (found {'/'.join(set(one['found']))})"
        rows.append(
            [
                depth + found,
                spread(one["ms"]),
                f"{first / statistics.median(one['warm_ms']):.2f}",
                f"{best[1] / first:.0f}" if best else "-",
                _mb(total, "private_nbytes"),
                *_memory(total),
                ", ".join(f"{p['role']} {_mb(p, 'private_nbytes')}" for p in one["asleep"])
                or "none",
            ]
        )
    head = [f"{name} from", "first ms, median (range)", "x warm", "fastest peer / this"]
    memory = ["private MB", "PSS MB", "USS MB", "dirty MB", "PTE MB", "its processes, private MB"]
    return table([*head, *memory], rows)


def _timings(mine: Mapping[str, Any]) -> str:
    """The server's own account of the median call from each depth."""
    lines = []
    for depth, one in mine["depths"].items():
        middle = sorted(one["ms"])[len(one["ms"]) // 2]
        lines.append(f"- {depth}, {middle:.1f} ms: {one['server_timing'][one['ms'].index(middle)]}")
    return "\n".join(lines)


def _makeup(mine: Mapping[str, Any]) -> str:
    """What sleeping processes are made of: the function's at each depth, then the server's."""
    depths = mine["depths"].items()
    sleeping = [(f"at {depth}: ", part) for depth, one in depths for part in one["asleep"]]
    rows = []
    for when, one in [*sleeping, *(("server: ", part) for part in mine["server"])]:
        rows.append([when + one["role"], _mb(one, "private_nbytes"), *_memory(one)])
        rows += [
            [f"  {name}", _mb(part, "private_nbytes"), *_memory(part)]
            for name, part in one["makeup"]
            if part["private_nbytes"] > MB
        ]
    head = [
        "asleep, and its parts over 1 MB",
        "private MB",
        "PSS MB",
        "USS MB",
        "dirty MB",
        "PTE MB",
    ]
    return table(head, rows)


def _first(mine: Mapping[str, Any]) -> dict[str, float]:
    return {depth: statistics.median(one["ms"]) for depth, one in mine["depths"].items()}


def _eager_targets(result: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    first, best = _first(mine), fastest_spawn(result)
    by_warm = {d: first[d] / statistics.median(o["warm_ms"]) for d, o in mine["depths"].items()}
    asleep = mine["depths"]["prewarmed"]["asleep"]
    kept = sum(part["private_nbytes"] for part in asleep if part["role"] == "prewarmed") / MB
    lines = [
        _target("eager, from prewarmed by warm", by_warm["prewarmed"], PREWARMED_BY_WARM),
        _target("eager, from zygote by warm", by_warm["zygote"], ZYGOTE_BY_WARM),
        _target("eager, private memory of the prewarmed", kept, PREWARMED_PRIVATE_MB, unit=" MB"),
    ]
    if best:
        name, ms = best
        nothing = result["median_ms"][EAGER.name]
        ratio = ms / first["zygote"]
        lines.append(_target(f"eager, {name}'s spawn by zygote", ratio, PEER_BY_ZYGOTE, True))
        lines.append(_target(f"eager, from nothing by {name}", nothing / ms, 1.0))
    return lines


def _compiled_targets(result: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    nothing, best = result["median_ms"][OURS.name], fastest_spawn(result)
    by_import = nothing / statistics.median(result["import_torch"]["ms"])
    lines = [_target("compiled, from nothing by `import torch`", by_import, NOTHING_BY_IMPORT)]
    if best:
        name, ms = best
        lines.append(
            _target(f"{name} by compiled, from nothing", ms / nothing, PEER_BY_NOTHING, True)
        )
        cold = ms / _first(mine)["cold"]
        lines.append(_target(f"{name} by compiled, from cold", cold, PEER_BY_COLD, True))
    if eager := result["ours"].get(EAGER.name):
        lines.append(_target("compiled, warm by eager", _warm(mine) / _warm(eager), WARM_BY_EAGER))
    return lines


def cold_start(result: Mapping[str, Any]) -> str:
    """All tables of one run of cold_start.py."""
    parts = [_starts(result)]
    for name, mine in result["ours"].items():
        parts += [_depths(result, name), _timings(mine), _makeup(mine)]
        targets = _eager_targets if name == EAGER.name else _compiled_targets
        parts.append("\n".join(targets(result, mine)))
    return "\n\n".join(parts)


def throughput(result: Mapping[str, Any]) -> str:
    """The table of one run of throughput.py: of each server its better setting."""
    many: dict[str, Mapping[str, Any]] = {}
    single: dict[str, Mapping[str, Any]] = {}
    for row in result["servers"]:
        name = row["name"]
        if name not in many or row["many"]["rps"] > many[name]["many"]["rps"]:
            many[name] = row
        if name not in single or row["single"]["p50_ms"] < single[name]["single"]["p50_ms"]:
            single[name] = row
    peers = [name for name in many if name not in OUR_NAMES]
    best_rps = max((many[name]["many"]["rps"] for name in peers), default=0.0)
    best_p99 = min((many[name]["many"]["p99_ms"] for name in peers), default=0.0)
    rows = []
    for name, row in many.items():
        load, one = row["many"], single[name]["single"]
        ratio = f"{load['rps'] / best_rps:.2f}" if best_rps else "-"
        figures = [f"{load['rps']:.0f}", ratio, f"{load['p50_ms']:.0f}", f"{load['p99_ms']:.0f}"]
        alone = [f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}"]
        wrong = str(int(load["wrong"] + one["wrong"]))
        kept = _mb(row["memory"], "pss_nbytes")
        rows.append([name, row["setting"], *figures, *alone, kept, wrong])
    head = ["32 clients, then one", "setting", "rps", "x best peer", "p50 ms", "p99 ms"]
    parts = [table([*head, "1 client p50", "p99", "PSS MB", "wrong"], rows)]
    lines = []
    for name in OUR_NAMES & many.keys() if best_rps else ():
        load = many[name]["many"]
        least = BF16_BY_BEST_RPS if name == BF16.name else 1.0
        lines.append(_target(f"{name}, rps by best peer", load["rps"] / best_rps, least, True))
        lines.append(_target(f"{name}, p99 by best peer", load["p99_ms"] / best_p99, 1.0))
        if "fastapi" in single:
            alone = single[name]["single"]["p50_ms"] / single["fastapi"]["single"]["p50_ms"]
            lines.append(_target(f"{name}, one client's p50 by FastAPI", alone, 1.0))
    parts.append("\n".join(sorted(lines, key=lambda line: line[9:])))
    return "\n\n".join(parts)
