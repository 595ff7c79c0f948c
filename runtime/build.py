"""Freeze a target, and verify what was frozen: find the source, run ``load`` once, publish.

The verbs are ``snapshot.freeze``'s; this file brings the author's code and the executor to it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerowake.runtime import process
from zerowake.runtime.executor import Executor
from zerowake.runtime.function import Function
from zerowake.runtime.info import Kind
from zerowake.runtime.jsontext import encode_json, parse_json
from zerowake.runtime.prove import prove
from zerowake.runtime.target import heavy_imports, load_function, parse_target
from zerowake.snapshot import code, proof
from zerowake.snapshot.errors import FreezeError, ZerowakeError
from zerowake.snapshot.store import Progress, open_snapshot, verify


def freeze_target(
    text: str,
    out: Path,
    *,
    name: str | None = None,
    probe: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Freeze ``path/app.py:Class`` into ``out``; returns the snapshot's folder.

    ``note`` is given what the author should know: slow imports at the top, fields of the answers
    that are not deterministic. Raises TargetError, DeclarationError, FreezeError or ProofFailed.
    """
    target = parse_target(text)
    files = code.collect(target.entry, target.root)
    for advice in heavy_imports(target):
        note(advice)
    from zerowake.snapshot.freeze import Recipe, freeze  # torch: only now, or it would seem light

    code.install(files)
    function = load_function(target.qualified)
    inputs = _read_probe(probe, function) if probe else function.check_examples()
    if not inputs:
        raise FreezeError(
            f"{function.name} has no probe; give @function(examples=[...]) or --probe FILE, so that "
            "the snapshot can be proved to answer as the original does"
        )
    process.set_threads(function.settings.threads)
    info = function.describe(target.qualified, name or function.name, _as_json(inputs, function))
    recipe = Recipe(
        name=info.name,
        function=info.to_json(),
        code=files,
        make=lambda: _make(function),
        cases=_cases(function, inputs),
        probe=lambda made, case: Executor(function, made).answer(case),
        prove=prove,
    )
    return freeze(recipe, out, progress=progress, note=note)


def _make(function: Function) -> object:
    if function.kind is Kind.HANDLER:
        return None
    try:
        return function.make()
    except ZerowakeError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise FreezeError(f"load of {function.name} failed: {code.in_words(error)}") from error


def _read_probe(path: Path, function: Function) -> list[bytes]:
    """Inputs from a JSON list, from JSON lines, or the whole file for a function of bytes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FreezeError(f"--probe {path}: {error.strerror}") from error
    if function.input.raw:
        return [content]
    if content.lstrip().startswith(b"["):
        values = parse_json(content)
    else:
        values = [parse_json(line) for line in content.splitlines() if line.strip()]
    bodies = [encode_json(value) for value in values]
    for body in bodies:
        function.decode(body)
    return bodies


def _as_json(inputs: list[bytes], function: Function) -> list[Any]:
    return [] if function.input.raw else [json.loads(body) for body in inputs[:3]]


def _cases(function: Function, inputs: list[bytes]) -> list[list[bytes]]:
    """Every input alone, and for a batching function all of them together as well."""
    cases = [[body] for body in inputs]
    if function.settings.batch is not None and len(inputs) > 1:
        cases.append(inputs[: function.settings.batch.max_size])
    return cases


def verify_snapshot(
    path: Path,
    *,
    trusted: frozenset[str] = frozenset(),
    code_dir: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> str:
    """Hash every block and replay the proof; returns what was found, in a line.

    Raises SnapshotError with what is wrong.
    """
    snapshot = open_snapshot(path)
    code.load_code(snapshot, trusted=trusted, code_dir=code_dir)
    evidence = verify(snapshot, lambda path: prove(path, code_dir), progress)
    nbytes = sum(segment.nbytes for segment in snapshot.manifest.segments)
    said = proof.summary(evidence)
    return f"{snapshot.manifest.name}: {nbytes:,} bytes of weights are right; {said}"
