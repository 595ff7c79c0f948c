"""Compiling a snapshot: its modules in one new process, the proof in a second, then it is published.

``python -m zerowake.runtime.compiling SNAPSHOT OUT [DTYPE]`` is the first: it restores the snapshot,
answers the probe while the calls of its modules are recorded, and compiles those. It writes to OUT their
libraries and, as ``form.json``, ``{"modules": [...]}`` or ``{"error": ...}``. Whatever goes wrong here,
the snapshot stays as it is and serves eagerly.
"""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from zerowake.runtime import process
from zerowake.runtime.config import COMPILE_TIMEOUT_S, COMPILE_TOLERANCE
from zerowake.runtime.errors import to_problem
from zerowake.runtime.executor import Executor
from zerowake.runtime.imported import import_function
from zerowake.runtime.info import Kind
from zerowake.runtime.prove import prove_compiled
from zerowake.snapshot import comparison, proof, state
from zerowake.snapshot.errors import CannotCompile, ProofFailed
from zerowake.snapshot.fingerprint import fingerprint, fingerprint_id
from zerowake.snapshot.form import DIRECTORY, FILE, FORMAT, Form, find_form, prune
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.publish import publish, staged, sync
from zerowake.snapshot.restore import wake_up
from zerowake.snapshot.skeleton import torch_at
from zerowake.snapshot.store import open_snapshot, read_file

INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_snapshot(
    path: Path,
    *,
    dtype: str | None = None,
    tolerance: float = COMPILE_TOLERANCE,
    timeout_s: float = COMPILE_TIMEOUT_S,
    note: Callable[[str], None] = lambda text: None,
) -> Form:
    """Compile the modules of the snapshot at ``path`` for this machine, prove and publish the form.

    The caller vouches for the snapshot's code. dtype: of the weights and the arithmetic ("bfloat16");
    None keeps them. tolerance: the largest error on the probe against the snapshot's own answers,
    as cosine distance of vectors and relative error of numbers. ``note`` is told which form it is,
    and what keeps it from the next. Raises CannotCompile with the reason.
    """
    snapshot = open_snapshot(path)
    home = snapshot.path / DIRECTORY
    with _system_errors_told(home), staged(home) as staging:
        modules = _in_new_process(snapshot, staging, dtype, timeout_s)
        limits = [said for module in modules if (said := module.pop("limits"))]
        form = {
            "format": FORMAT,
            "snapshot": snapshot.digest,
            "fingerprint": fingerprint(),
            "dtype": dtype,
            "modules": modules,
            "torch_free": False,
            "error": 0.0,
            "files": {
                entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
                for entry in staging.iterdir()
                if entry.name != FILE
            },
        }
        _write(staging, form)
        evidence = proof.parse(read_file(snapshot, "proof.json"))
        try:
            answers, torch_by = prove_compiled(snapshot.path, staging, timeout_s)
            error = comparison.distance(evidence, answers)
        except ProofFailed as failure:
            raise CannotCompile(f"the compiled form does not answer the probe: {failure}") from None
        if not error <= tolerance:
            raise CannotCompile(
                f"the compiled form differs from the original by {error:.1e} on the probe; "
                f"at most {tolerance:.1e} is allowed (--tolerance)"
            )
        form |= {"torch_free": torch_by is None, "error": error}
        state.record_trust(_write(staging, form))
        for entry in staging.iterdir():
            sync(entry)
        # The newer form replaces an older one: who has mapped its files keeps them.
        publish(staging, home / fingerprint_id(), lambda old: False)
    made = find_form(snapshot)
    if limits:
        note(
            f"compiled for {'; '.join(limits)}; other shapes are answered by the original module, "
            "slower and with torch: add an example of those that you expect"
        )
    if torch_by is None:
        note(f"compiled, and it needs no torch; error on the probe {error:.1e}")
    else:
        if (held := torch_at(prune(made, snapshot))) is not None:
            torch_by = f"{held}; keep it in a module that is called, or as plain values (lists)"
        note(f"compiled; error on the probe {error:.1e}; it still needs torch: {torch_by}")
    return made


def _in_new_process(
    snapshot: Snapshot, out: Path, dtype: str | None, timeout_s: float
) -> list[dict[str, Any]]:
    command = [sys.executable, "-P", "-m", "zerowake.runtime.compiling"]
    command += [str(snapshot.path), str(out), *([dtype] if dtype else [])]
    said = out / FILE  # for now: the form itself takes its place
    # Inductor keeps what it has compiled, below /tmp by default, where others could put it first.
    environ = {INDUCTOR_CACHE: str(state.state_dir() / "inductor"), **os.environ}
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
    if "error" in plain:
        raise CannotCompile(plain["error"])
    modules: list[dict[str, Any]] = plain["modules"]
    return modules


@contextlib.contextmanager
def _system_errors_told(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise CannotCompile(f"{home} cannot be written to: {error.strerror}") from error
        raise CannotCompile(f"the system refuses something: {error}") from error


def _write(staging: Path, form: dict[str, Any]) -> str:
    data = json.dumps(form, indent=1, sort_keys=True).encode()
    (staging / FILE).write_bytes(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _compile(path: Path, out: Path, dtype: str | None) -> list[dict[str, Any]]:
    """Entries of form.json for the modules of the snapshot, their libraries written to ``out``."""
    snapshot = open_snapshot(path)
    if not snapshot.skeleton.needs_torch:
        raise CannotCompile("it holds no module")
    imported = import_function(snapshot, trusted=(snapshot.digest,))
    function, target = imported.function, imported.restore().object
    wake_up(target, snapshot.manifest.name)
    from zerowake.snapshot.calls import recorded
    from zerowake.snapshot.compile import compile_module

    calls = recorded(target)
    imported.answer_probe(target)
    if function.kind is Kind.BATCH and function.settings.batch is not None:
        # A batch of several, whatever the examples: so that the batch dimension varies.
        bodies = [body for case in imported.cases for body in case]
        count = min(function.settings.batch.max_size, max(2, len(bodies)))
        for each in calls:
            each.is_probe = False
        with contextlib.suppress(Exception):  # examples need not fit together
            Executor(function, target).answer(list(islice(cycle(bodies), count)))
    return [compile_module(each, out, dtype) for each in calls]


def main(arguments: list[str]) -> int:
    process.end_with_parent(os.environ)
    path, out, *dtype = arguments
    plain: dict[str, Any]
    try:
        plain = {"modules": _compile(Path(path), Path(out), dtype[0] if dtype else None)}
    except BaseException as error:
        plain = {"error": to_problem(error)["detail"]}
    (Path(out) / FILE).write_text(json.dumps(plain))
    return 1 if "error" in plain else 0


if __name__ == "__main__":
    sys.exit(process.leave(main(sys.argv[1:])))  # an author's threads may not end
