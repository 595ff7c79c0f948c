"""Snapshots and running functions as text for a terminal."""

from collections.abc import Sequence
from typing import Any

from zerowake.runtime.forms import choose
from zerowake.runtime.info import FunctionInfo
from zerowake.snapshot import code
from zerowake.snapshot.errors import SnapshotError, UnusableForm
from zerowake.snapshot.form import Input, ModuleForm, all_forms, home
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
    form, forms = choose(snapshot, (), "auto"), compiled_forms(snapshot)
    trusted = "yes" if trusts_code(snapshot) else f"no; it runs with --trust {snapshot.digest}"
    weights = sum(segment.nbytes for segment in manifest.segments)
    lines = [
        ("name", manifest.name),
        ("digest", snapshot.digest),
        ("path", str(snapshot.path)),
        ("function", f"{info.target} ({info.kind})"),
        ("settings", ", ".join(f"{k}={v}" for k, v in info.settings.to_json().items())),
        ("code", ", ".join(sorted(manifest.code.files))),
        ("code trusted here", trusted),
        ("form here", f"{form.name}{f' ({form.reason})' if form.reason else ''}"),
        ("weights", f"{human_nbytes(weights)} in {len(manifest.tensors)} tensors"),
        ("changed by probe", str(sum(tensor.mutated for tensor in manifest.tensors))),
        ("environment", ", ".join(f"{k} {v}" for k, v in manifest.environment.items() if v)),
    ]
    for each in forms:
        first, *more = _form_lines(each)
        lines += [("compiled form", first), *(("", line) for line in more)]
    width = max(len(key) for key, _ in lines)
    return "\n".join(f"{key.ljust(width)}  {_printable(value)}" for key, value in lines)


def _printable(text: str) -> str:
    """Without what a terminal would obey: it may be a stranger's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def trusts_code(snapshot: Snapshot) -> bool:
    """Whether its code runs here without anybody vouching for it."""
    try:
        code.load_code(snapshot, trusted=frozenset(), code_dir=None)
    except SnapshotError:
        return False
    return True


def compiled_forms(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The forms that lie beside a snapshot, as JSON. ``reason``: why one is not used here, or ""."""
    chosen = choose(snapshot, (), "auto")
    found: list[dict[str, Any]] = []
    for path, form in all_forms(snapshot):
        here = path == home(snapshot)
        unused = chosen.reason if chosen.compiled is None else ""
        reason = unused if here else "for another machine, torch version or device"
        plain = {"path": str(path), "here": here}
        if isinstance(form, UnusableForm):
            found.append({**plain, "reason": reason if here else str(form)})
            continue
        libraries = {path / module.library for module in form.modules}
        found.append(
            {
                **plain,
                "reason": reason,
                "digest": form.digest,
                "dtype": form.dtype,
                "error": form.error,
                "tolerance": form.tolerance,
                "torch_free": form.torch_free,
                "library_nbytes": sum(f.stat().st_size for f in libraries if f.is_file()),
                "caches": {
                    "files": len(form.caches),
                    "nbytes": sum(
                        each.path.stat().st_size
                        for each in form.caches.values()
                        if each.path.is_file()
                    ),
                },
                "modules": {module.path: _inputs(module) for module in form.modules},
            }
        )
    return found


def _inputs(module: ModuleForm) -> list[dict[str, Any]]:
    """What a module takes: a size of the shape is a number, or [smallest, largest or null]."""

    def size(of: Input) -> list[Any]:
        return [module.ranges[each] if isinstance(each, str) else each for each in of.shape]

    return [{"name": one.name, "dtype": one.dtype, "shape": size(one)} for one in module.inputs]


def _form_lines(form: dict[str, Any]) -> list[str]:
    where = "here" if form["here"] else "elsewhere"
    if "digest" not in form:
        return [f"{where}: {form['reason']}"]
    why = "the reason stands above" if form["here"] else form["reason"]
    lines = [
        f"{where}: {form['dtype'] or 'own dtype'}, error {form['error']:.1e} (at most "
        f"{form['tolerance']:.1e}), {'torch-free' if form['torch_free'] else 'needs torch'}"
        + (f", {human_nbytes(form['library_nbytes'])} of code" if form["modules"] else ""),
        f"  {form['digest']}",
        "  used here" if not form["reason"] else f"  not used: {why}",
    ]
    if (caches := form["caches"])["files"]:
        said = f"{caches['files']} files, {human_nbytes(caches['nbytes'])}"
        lines.append(f"  what the function compiles itself: {said}")
    for path, inputs in form["modules"].items():
        said = ", ".join(f"{i['name']} {i['dtype']} {_shape(i['shape'])}" for i in inputs)
        lines.append(f"  {path}({said})")
    return lines


def _shape(sizes: list[Any]) -> str:
    """[3, (1, 6), (1, None)] -> "[3, 1..6, 1..]"."""
    shown = [
        f"{size[0]}..{'' if size[1] is None else size[1]}" if isinstance(size, tuple) else str(size)
        for size in sizes
    ]
    return f"[{', '.join(shown)}]"


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
