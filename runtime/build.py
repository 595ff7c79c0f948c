"""Freeze a target, and verify what was frozen: find the source, run ``load`` once, publish.

The verbs are ``snapshot.freeze``'s; this file brings the author's code and the executor to it.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from zerowake.runtime import process
from zerowake.runtime.errors import BadRequest, InvalidInput
from zerowake.runtime.executor import Executor
from zerowake.runtime.function import Function
from zerowake.runtime.info import Kind
from zerowake.runtime.jsontext import encode_json, parse_json, pointer
from zerowake.runtime.prove import prove, prove_compiled
from zerowake.runtime.target import heavy_imports, load_function, parse_target
from zerowake.snapshot import code, comparison, proof
from zerowake.snapshot.errors import FreezeError, ProofFailed, UnusableForm, ZerowakeError
from zerowake.snapshot.form import check_form, find_form, lies_here
from zerowake.snapshot.freeze import Recipe, freeze
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.proof import Answers
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
    advised = heavy_imports(target)
    code.install(files)
    function = load_function(target.qualified)
    for advice in advised if function.kind is not Kind.HTTP else ():  # which has no load
        note(advice)
    inputs = _read_probe(probe, function) if probe else function.check_examples()
    if not inputs and function.kind is not Kind.HTTP:  # its calls may have effects
        raise FreezeError(
            f"{function.name} has no probe; give @function(examples=[...]) or --probe FILE, so that "
            "the snapshot can be proved to answer as the original does"
        )
    set_threads = partial(process.set_threads, function.settings.threads)
    set_threads()
    info = function.describe(target.qualified, name or function.name, _as_json(inputs, function))
    cases, answering = _cases(function, inputs), _Probe(function)
    recipe = Recipe(
        name=info.name,
        function=info.to_json(),
        code=files,
        make=lambda: _make(function),
        cases=cases,
        probe=answering,
        prove=prove,
        ready=set_threads,  # again: ``load`` may have imported torch; as in the proof
        unproven=function.kind is Kind.HTTP,
    )
    frozen = freeze(recipe, out, progress=progress, note=note)
    for advice in answering.advice(cases):
        note(advice)
    return frozen


def _make(function: Function) -> object:
    if function.kind.is_function:
        return None
    try:
        return function.make()
    except ZerowakeError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise FreezeError(f"load of {function.name} failed: {code.in_words(error)}") from error


class _Probe:
    """Answers the probe's cases, and remembers how.

    seconds: of each case the fastest of its runs, the first of which is recorded and slower.
    answers: those of the last run.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self.seconds: dict[tuple[bytes, ...], float] = {}
        self.answers: dict[tuple[bytes, ...], Answers] = {}

    def __call__(self, made: object, case: list[bytes]) -> Answers:
        key, started = tuple(case), time.perf_counter()
        self.answers[key] = answers = Executor(self._function, made).answer(case)
        seconds = time.perf_counter() - started
        self.seconds[key] = min(seconds, self.seconds.get(key, seconds))
        return answers

    def advice(self, cases: list[list[bytes]]) -> Iterator[str]:
        """What callers would run into, each in a sentence."""
        limit_s = self._function.settings.timeout_s
        for index, case in enumerate(cases):
            seconds, answers = self.seconds[tuple(case)], self.answers[tuple(case)]
            # Of a stream the time counts anew for each item.
            waits = len(answers[0]) + 1 if self._function.kind is Kind.STREAM else 1
            if seconds > limit_s * waits:
                what = f"example {index}" if len(case) == 1 else f"a batch of {len(case)} examples"
                yield (
                    f"{what} took {seconds:.1f} s; in service predict is ended after "
                    f"timeout_s={limit_s:g} s, which @function can raise"
                )
        for index, case in enumerate(cases):
            if len(case) == 1 and (misfit := self._misfit(self.answers[tuple(case)])):
                yield (
                    f"the answer to example {index} does not fit the output annotation: {misfit}; "
                    "callers read the annotation in /openapi.json, so correct one of the two"
                )
                return

    def _misfit(self, answers: Answers) -> str | None:
        """The first place where an answer does not fit the output's schema, and why."""
        output = self._function.output
        if output.raw or not output.schema:
            return None
        import jsonschema_rs

        try:
            validator = jsonschema_rs.validator_for(output.schema, offline=True)
        except ValueError as error:  # an author's pattern that other languages do not read, say
            return f"its schema is not valid: {str(error).partition(chr(10))[0]:.200}"
        for chunk in (chunk for chunks in answers for chunk in chunks):
            for misfit in validator.iter_errors(parse_json(chunk)):
                place = pointer(tuple(misfit.instance_path)) or "the top level"
                return f"at {place} {misfit.message:.200}"
        return None


def _read_probe(path: Path, function: Function) -> list[bytes]:
    """Inputs from a JSON list, from JSON lines, or the whole file for a function of bytes.

    Raises FreezeError naming the file, and the line of what is no JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FreezeError(f"--probe {path}: {error.strerror}") from error
    if function.input.raw:
        return [content]
    what = f"--probe {path}"
    try:
        if content.lstrip().startswith(b"["):
            values = parse_json(content, what)
        else:  # newlines before each line, so that an error has the number that it has in the file
            lines = enumerate(content.splitlines())
            values = [parse_json(b"\n" * n + line, what) for n, line in lines if line.strip()]
    except BadRequest as error:
        raise FreezeError(f"{error}; wanted a JSON list, or JSON lines") from None
    if not values:
        raise FreezeError(
            f"{what} holds no input; wanted a JSON list, or JSON lines, of one or more"
        )
    bodies = [encode_json(value) for value in values]
    for index, body in enumerate(bodies):
        try:
            function.decode(body)
        except InvalidInput as error:
            raise FreezeError(f"{what}: input {index}: {error}") from error
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
    """Hash every block and replay the proof, in this machine's compiled form too if there is one.

    Returns what was found, a line for each form. Raises SnapshotError with what is wrong.
    """
    snapshot = open_snapshot(path)
    code.load_code(snapshot, trusted=trusted, code_dir=code_dir)
    modules = snapshot.skeleton.needs_torch
    if modules and lies_here(snapshot):
        check_form(snapshot)  # before half a minute goes into the rest
    evidence = verify(snapshot, lambda path: prove(path, code_dir), progress)
    nbytes = sum(segment.nbytes for segment in snapshot.manifest.segments)
    said = f"{snapshot.manifest.name}: {nbytes:,} bytes of weights are right; "
    said += f"{'eager: ' if modules else ''}{comparison.summary(evidence)}"
    if modules:
        said += f"\n{_verify_form(snapshot, evidence, trusted, code_dir)}"
    return said


def _verify_form(
    snapshot: Snapshot, evidence: proof.Proof, trusted: frozenset[str], code_dir: Path | None
) -> str:
    try:
        form = find_form(snapshot, trusted, loads=True)  # ``check_form`` has hashed it
    except UnusableForm as error:  # there is none, or nobody vouches for it: its files are right
        return f"compiled: not replayed: {error}"
    try:
        answers, _torch_by = prove_compiled(snapshot.path, form.path, code_dir)
        found = comparison.distance(evidence, answers)
        if not found <= form.tolerance:
            raise ProofFailed(
                f"it differs from the original by {found:.1e}, and {form.tolerance:.1e} was allowed"
            )
    except ProofFailed as failure:
        raise ProofFailed(
            f"the compiled form in {form.path} does not answer the probe as it did: {failure}; "
            f"`zerowake compile {snapshot.path}` makes it anew"
        ) from None
    if (nothing := comparison.says_nothing(evidence)) is not None:
        return f"compiled: {nothing}"
    return f"compiled: the proof is right (largest error {found:.1e}, at most {form.tolerance:.1e})"
