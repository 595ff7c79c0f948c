"""Compiling a snapshot: its modules in one new process, the proof in a second, then it is published.

``python -m zerowake.runtime.compiling SNAPSHOT OUT [DTYPE]`` is the first: it restores the snapshot,
answers the probe while the calls of its modules are recorded, and compiles those. It writes to OUT their
libraries and, as ``form.json``, ``{"modules": [...], "left": [...]}`` or ``{"error": ...}``, and with either ``jit``:
whether the function compiles something itself. Whatever goes wrong here,
the snapshot stays as it is and serves eagerly.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.runtime import process
from zerowake.runtime.config import COMPILE_TIMEOUT_S, COMPILE_TOLERANCE, shows_gpu
from zerowake.runtime.errors import to_problem
from zerowake.runtime.executor import Executor
from zerowake.runtime.imported import Imported, import_function
from zerowake.runtime.info import Kind
from zerowake.runtime.prove import prove_compiled
from zerowake.snapshot import comparison, jit, proof, state
from zerowake.snapshot.errors import CannotCompile, ProofFailed, UnusableForm
from zerowake.snapshot.fingerprint import fingerprint
from zerowake.snapshot.form import (
    CACHES,
    FILE,
    FORMAT,
    NOT_WANTED,
    Form,
    find_form,
    home,
    lies_here,
    module_node,
    prune,
    why_file,
)
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.publish import publish, staged, sync, write_file
from zerowake.snapshot.restore import wake_up
from zerowake.snapshot.skeleton import torch_at, within_modules
from zerowake.snapshot.store import check_digests, open_snapshot, read_file

if TYPE_CHECKING:
    from zerowake.snapshot.calls import Calls

# Runs of the probe until one finds all that it compiles: the first compiles, in the second sizes vary from
# the start that have varied in the first.
MOST_RUNS = 3

Note = Callable[[str], None]


def compile_snapshot(
    path: Path,
    *,
    dtype: str | None = None,
    tolerance: float = COMPILE_TOLERANCE,
    timeout_s: float = COMPILE_TIMEOUT_S,
    note: Note = lambda text: None,
) -> Form:
    """Compile the modules of the snapshot at ``path`` for this machine, prove and publish the form.

    The caller vouches for the snapshot's code. dtype: of the weights and the arithmetic ("bfloat16");
    None keeps them. tolerance: the largest error on the probe against the snapshot's own answers,
    as cosine distance of vectors and relative error of numbers. ``note`` is told which form it is,
    and what keeps it from the next. Raises CannotCompile with the reason, which is kept beside the
    forms where there is no earlier one that stays in use; DamagedSnapshot.
    """
    snapshot = open_snapshot(path)
    check_digests(snapshot)  # what is compiled from damaged weights would be trusted afterwards
    if not snapshot.skeleton.needs_torch:
        raise CannotCompile("it holds no module, so there is nothing to compile")
    earlier = None
    with contextlib.suppress(UnusableForm):
        earlier = find_form(snapshot)
    try:
        made = _make(snapshot, dtype, tolerance, timeout_s, note)
    except CannotCompile as error:
        if earlier is not None:
            raise CannotCompile(f"{error}; the earlier form ({earlier}) stays in use") from None
        _keep_why(snapshot, str(error))
        raise CannotCompile(f"{error}; the function serves eagerly") from None
    if earlier is not None and earlier.dtype != dtype:
        note(f"it takes the place of the earlier form ({earlier})")
    return made


def leave_uncompiled(path: Path, note: Note = lambda text: None) -> None:
    """Have no form for this machine, because nobody wants one: an earlier one is removed."""
    snapshot = open_snapshot(path)
    if not snapshot.skeleton.needs_torch:
        return
    if lies_here(snapshot):
        with staged(home(snapshot).parent) as aside:  # gone at once for who looks, then removed
            home(snapshot).rename(aside / "form")
        note("the compiled form that it had for this machine is removed (--no-compile)")
    _keep_why(snapshot, NOT_WANTED)


def _keep_why(snapshot: Snapshot, reason: str) -> None:
    """So that it can still be said when somebody asks why the function runs eagerly."""
    file = why_file(snapshot)
    with contextlib.suppress(OSError):  # the snapshot serves without it too
        file.unlink(missing_ok=True)
        write_file(file, reason.encode(errors="replace"))


def _make(
    snapshot: Snapshot, dtype: str | None, tolerance: float, timeout_s: float, note: Note
) -> Form:
    forms = home(snapshot).parent
    with _system_errors_told(forms), staged(forms) as staging:
        modules, left = _in_new_process(snapshot, staging, dtype, timeout_s)
        limits = [said for module in modules if (said := module.pop("limits"))]
        form = {
            "format": FORMAT,
            "snapshot": snapshot.digest,
            "fingerprint": fingerprint(),
            "dtype": dtype if modules else None,
            "modules": modules,
            "torch_free": False,
            "error": 0.0,
            "tolerance": tolerance,
            "files": _digests(staging),
        }
        _write(staging, form)
        evidence = proof.parse(read_file(snapshot, "proof.json"))
        try:
            answers, torch_by = _prove(snapshot, staging, timeout_s)
            error = comparison.distance(evidence, answers)
        except ProofFailed as failure:
            raise CannotCompile(f"the compiled form does not answer the probe: {failure}") from None
        if not error <= tolerance:
            raise CannotCompile(
                f"the compiled form differs from the original by {error:.1e} on the probe, and at "
                f"most {tolerance:.1e} is allowed; --tolerance raises that, where it does no harm"
            )
        form |= {"torch_free": torch_by is None, "error": error, "files": _digests(staging)}
        if not form["files"]:
            raise CannotCompile("; ".join(left))
        state.record_trust(_write(staging, form))
        for entry in jit.files_in(staging).values():
            sync(entry)
        # The newer form replaces an older one: who has mapped its files keeps them.
        publish(staging, home(snapshot), lambda old: False)
        why_file(snapshot).unlink(missing_ok=True)
    made = find_form(snapshot)
    for said in left:
        note(f"not compiled, and the original module is asked: {said}")
    if limits:
        note(
            f"compiled for {'; '.join(limits)}; other shapes are answered by the original module, "
            "slower and with torch: add an example of those that you expect"
        )
    if made.caches:
        nbytes = sum(file.path.stat().st_size for file in made.caches.values())
        what = f"{len(made.caches)} files, {nbytes:,} bytes"
        note(f"what the function compiles itself on the probe is kept: {what}")
    if not modules:
        return made
    if torch_by is None:
        note(f"compiled, and it needs no torch; error on the probe {error:.1e}")
    else:
        if (held := torch_at(prune(made, snapshot))) is not None:
            torch_by = held
            if not left:  # else it may be one of those modules
                torch_by += "; keep it in a module that is called, or as plain values (lists)"
        note(f"compiled; error on the probe {error:.1e}; it still needs torch: {torch_by}")
    return made


def _in_new_process(
    snapshot: Snapshot, out: Path, dtype: str | None, timeout_s: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Entries of form.json, and what is said of modules that were left out.

    No entries where no module compiles, but the function compiles something itself.
    """
    command = [sys.executable, "-P", "-m", "zerowake.runtime.compiling"]
    command += [str(snapshot.path), str(out), *([dtype] if dtype else [])]
    said = out / FILE  # for now: the form itself takes its place
    # Inductor keeps what it has compiled, below /tmp by default, where others could put it first.
    # Here it goes with the staging directory: it is 1.5 MB a module, and of no use to the next.
    # Whatever the variable says: torch sets it, to that very folder, when load has dynamo imported.
    cache = out / ".inductor"
    environ = {**os.environ, jit.INDUCTOR_CACHE: str(cache)}
    environ[process.PARENT] = str(os.getpid())
    # A session of its own: a compiler that hangs or takes too long goes with its children.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True, text=True, errors="replace", env=environ,
    ) as child:  # fmt: skip
        try:
            _out, log = child.communicate(timeout=timeout_s)
        except BaseException as error:
            process.end_group(child)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise CannotCompile(
                f"it took longer than {timeout_s:g} s (--compile-timeout) and was ended"
            ) from None
    try:
        plain = json.loads(said.read_bytes())
    except (OSError, ValueError):
        last = "\n".join(log.strip().splitlines()[-3:])
        how = process.code_reason(child.returncode)
        raise CannotCompile(f"the compiling process ended: {how}; {last}") from None
    shutil.rmtree(cache, ignore_errors=True)
    if "error" in plain:
        if plain["jit"] or shows_gpu():  # there kernels may run that the processor has none of
            for file in jit.files_in(out).values():
                file.unlink()
            return [], [plain["error"]]
        raise CannotCompile(plain["error"])
    return plain["modules"], plain["left"]


def _prove(
    snapshot: Snapshot, staging: Path, timeout_s: float
) -> tuple[list[proof.Answers], str | None]:
    """As ``prove_compiled``. What the function itself compiles meanwhile is left in ``staging``."""
    folder = staging / CACHES
    environ = jit.environment(folder, os.environ)
    if shows_gpu():
        with contextlib.suppress(ProofFailed):
            prove_compiled(snapshot.path, staging, None, timeout_s, environ, "auto")
    found, runs = set(jit.files_in(folder)), 0
    try:
        while True:
            proven = prove_compiled(snapshot.path, staging, None, timeout_s, environ)
            before, found, runs = found, set(jit.files_in(folder)), runs + 1
            if found == before or runs == MOST_RUNS:
                break
    except ProofFailed:
        if not folder.exists():
            raise
        # It may be the fault of how that is compiled to be kept: the modules' form can do without.
        shutil.rmtree(folder)
        return prove_compiled(snapshot.path, staging, None, timeout_s)
    jit.finish(folder)
    return proven


def _digests(staging: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in jit.files_in(staging).items()
        if name != FILE
    }


@contextlib.contextmanager
def _system_errors_told(forms: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise CannotCompile(f"{forms} cannot be written to: {error.strerror}") from error
        raise CannotCompile(f"the system refuses something: {error}") from error


def _write(staging: Path, form: dict[str, Any]) -> str:
    data = json.dumps(form, indent=1, sort_keys=True).encode()
    (staging / FILE).write_bytes(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _compile(path: Path, out: Path, dtype: str | None, told: dict[str, Any]) -> None:
    """Tells ``modules``: entries of form.json for those of the snapshot, their libraries written to ``out``.

    ``left``: what is said of the others, which stay the author's own. ``jit``: whether the function
    compiles something itself. Raises CannotCompile where all are left.
    """
    snapshot = open_snapshot(path)
    imported = import_function(snapshot, trusted=(snapshot.digest,))
    function = imported.function
    try:
        target, calls = _watched(snapshot, imported)
    finally:  # nothing else has imported it yet
        told["jit"] = jit.INDUCTOR in sys.modules
    evidence = proof.parse(read_file(snapshot, "proof.json"))
    if comparison.says_nothing(evidence) is not None:
        raise CannotCompile(_nothing_to_compare(evidence))
    if function.kind is Kind.BATCH and function.settings.batch is not None:
        # A batch of several, whatever the examples: so that the batch dimension varies.
        bodies = [body for case in imported.cases for body in case]
        count = min(function.settings.batch.max_size, max(2, len(bodies)))
        for each in calls:
            each.is_probe = False
        with contextlib.suppress(Exception):  # examples need not fit together
            Executor(function, target).answer(list(islice(cycle(bodies), count)))
    from zerowake.snapshot import toolchain
    from zerowake.snapshot.compile import compile_module

    modules, left = [], []
    with toolchain.remembered(toolchain.home()):
        for each in calls:
            try:
                modules.append(compile_module(each, out, dtype))
            except CannotCompile as error:
                left.append(str(error))
    inside = within_modules(
        snapshot.skeleton, {module_node(snapshot, m["path"]): m["path"] for m in modules}
    )
    left += [f"self.{path} is part of a module that is not compiled" for path in sorted(inside)]
    for name in inside:
        (out / f"{name}.so").unlink()
    modules = [module for module in modules if module["path"] not in inside]
    if not modules:
        raise CannotCompile("; ".join(left))
    told |= {"modules": modules, "left": left}


def _watched(snapshot: Snapshot, imported: Imported) -> tuple[Any, "list[Calls]"]:
    """The object, awake, with recorders in place of its modules; and what they have seen on the probe.

    A module that is not only called stands there itself, and all is done again: what stood in its
    place may have failed, or have been kept by somebody (``torch.compile`` in ``wake``). Raises what
    ``wake`` and ``predict`` raise.
    """
    from zerowake.snapshot.calls import recorded

    used: dict[str, str] = {}
    while True:
        target = imported.restore().object
        calls = recorded(target, used)
        known, failure = len(used), None
        try:
            for each in calls:
                each.during = "wake"
            wake_up(target, snapshot.manifest.name)
            for each in calls:
                each.during = "predict"
            imported.answer_probe(target)
        except Exception as error:
            failure = error
        used |= {each.path: each.other_use for each in calls if each.other_use is not None}
        if len(used) == known:
            break
    if failure is not None:
        raise failure
    return target, calls


def _nothing_to_compare(evidence: proof.Proof) -> str:
    if not evidence.cases:
        return (
            "nothing would show that it answers wrongly, as it has no probe; freeze it with --probe"
        )
    fields = sorted({field for case in evidence.unsteady for field in case})
    more = f" and {len(fields) - 5} more" if len(fields) > 5 else ""
    return (
        "nothing on the probe would show that it answers wrongly, as all that is answered differs from "
        f"run to run ({', '.join(fields[:5])}{more}); take random numbers from random, numpy.random or "
        "torch, which are seeded, or return what the model gives under a key of its own"
    )


def main(arguments: list[str]) -> int:
    process.end_with_parent(os.environ)
    path, out, *dtype = arguments
    plain: dict[str, Any] = {"jit": False}
    try:
        _compile(Path(path), Path(out), dtype[0] if dtype else None, plain)
    except BaseException as error:
        plain["error"] = to_problem(error)["detail"]
    (Path(out) / FILE).write_text(json.dumps(plain))
    return 1 if "error" in plain else 0


if __name__ == "__main__":
    sys.exit(process.leave(main(sys.argv[1:])))  # an author's threads may not end
