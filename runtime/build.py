"""Freeze a target: find its source, run ``load`` once, publish the snapshot; or reuse the last one.

The verbs are ``snapshot.freeze``'s; this file brings the author's code and the executor to it.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerowake.runtime import process
from zerowake.runtime.errors import TargetError
from zerowake.runtime.executor import Executor
from zerowake.runtime.function import Function, Kind
from zerowake.runtime.jsontext import encode_json, parse_json
from zerowake.runtime.target import Target, heavy_imports, load_function, parse_target
from zerowake.snapshot import code, proof
from zerowake.snapshot.errors import FreezeError, ProofFailed, ZerowakeError
from zerowake.snapshot.store import open_snapshot, verify

Progress = Callable[[str, int, int], None]


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
    described = function.describe(target.qualified)
    recipe = Recipe(
        name=name or function.name,
        function={**described, "examples": _as_json(inputs, function)},
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
        raise FreezeError(
            f"load of {function.name} failed: {type(error).__name__}: {error}"
        ) from error


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


def prove(path: Path, code_dir: Path | None = None) -> list[proof.Answers]:
    """Restore ``path`` in a process of its own and answer the probe there.

    The caller vouches for the snapshot's code, or names ``code_dir``. Raises ProofFailed with what that process said when it does not come to answers.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as answers:
        command = [sys.executable, "-P", "-m", "zerowake.runtime.prove", str(path), answers.name]
        command += [str(code_dir)] if code_dir else []
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        text = answers.read()
    if run.returncode:
        said = json.loads(text)["error"] if text else process.exit_reason(run.returncode << 8)
        raise ProofFailed(f"the snapshot could not be restored in a new process: {said}")
    return [[[b64decode(c) for c in item] for item in case] for case in json.loads(text)]


def fingerprint(target: Target) -> str:
    """Changes when a snapshot of ``target`` made earlier must not be used any more."""
    files = code.collect(target.entry, target.root)
    versions = [platform.python_version(), platform.machine()]
    for package in ("zerowake", "torch", "transformers", "tokenizers"):
        try:
            versions.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            versions.append("")
    return hashlib.sha256(
        json.dumps([target.qualified, files.digest, versions]).encode()
    ).hexdigest()


def ensure_snapshot(text: str, cache: Path) -> Path:
    """The snapshot of a target as its source is now: the last one if nothing changed, else a new one.

    The new one is made by a process of its own, so that the caller stays free of torch. Raises
    TargetError when that fails; what it said has gone to standard error.
    """
    target = parse_target(text)
    index = cache / "targets" / fingerprint(target)
    try:
        path = Path(index.read_text())
        open_snapshot(path)
        return path
    except (OSError, ZerowakeError):
        pass
    out = cache / "snapshots"
    command = [sys.executable, "-P", "-m", "zerowake", "freeze", text, "--out", str(out)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        process.STARTED.add(child.pid)
        said, _ = child.communicate()
    process.STARTED.discard(child.pid)
    if child.returncode:
        raise TargetError(f"{text} could not be frozen; the reason stands above")
    path = Path(os.fsdecode(said.splitlines()[-1]))
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(str(path))
    return path


def cache_directory() -> Path:
    """Where snapshots of served targets are kept: ``$XDG_CACHE_HOME/zerowake``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zerowake"


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
    verify(snapshot, lambda path: prove(path, code_dir), progress)
    nbytes = sum(segment.nbytes for segment in snapshot.manifest.segments)
    return f"{snapshot.manifest.name}: {nbytes:,} bytes of weights and the proof are right"
