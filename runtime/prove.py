"""Proving a snapshot: restore it in a process of its own and answer the probe there.

``python -m zerowake.runtime.prove JOB_JSON`` is that process. It writes to the job's ``out`` the answers
(of each case, of each item, its chunks in base64) and what imported torch, or an ``error``.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from base64 import b64decode, b64encode
from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from zerowake.runtime import process
from zerowake.runtime.errors import to_problem
from zerowake.runtime.imported import import_function
from zerowake.runtime.target import TOP_REMEDY
from zerowake.snapshot import installed_torch, proof
from zerowake.snapshot.errors import ProofFailed
from zerowake.snapshot.form import FILE, parse_form
from zerowake.snapshot.restore import wake_up
from zerowake.snapshot.store import open_snapshot


def prove(path: Path, code_dir: Path | None = None) -> list[proof.Answers]:
    """Restore ``path`` in a process of its own and answer the probe there.

    The caller vouches for the snapshot's code, or names ``code_dir``. Raises ProofFailed with what
    that process said when it does not come to answers.
    """
    return _in_new_process(path, code_dir=code_dir)[0]


def prove_compiled(
    path: Path,
    form: Path,
    code_dir: Path | None = None,
    timeout_s: float | None = None,
    environ: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> tuple[list[proof.Answers], str | None]:
    """The same with the compiled form that lies in ``form``; and what has imported torch, if any.

    The caller vouches for both. environ: of that process. device: "auto" for a GPU, where there is one,
    with the author's own modules.
    """
    return _in_new_process(path, code_dir, form, timeout_s, environ, device)


def _in_new_process(
    path: Path,
    code_dir: Path | None = None,
    form: Path | None = None,
    timeout_s: float | None = None,
    environ: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> tuple[list[proof.Answers], str | None]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        job = {
            "snapshot": str(path),
            "out": out.name,
            "code_dir": str(code_dir) if code_dir else None,
            "form": str(form) if form else None,
            "device": device,
        }
        command = [sys.executable, "-P", "-m", "zerowake.runtime.prove", json.dumps(job)]
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False, timeout=timeout_s,
                env=environ,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ProofFailed(f"it has not answered after {timeout_s:g} s") from None
        text = out.read()
    if run.returncode or not text:
        said = json.loads(text)["error"] if text else process.code_reason(run.returncode)
        raise ProofFailed(f"the snapshot could not be restored in a new process: {said}")
    told = json.loads(text)
    answers = [[[b64decode(c) for c in item] for item in case] for case in told["answers"]]
    return answers, told["torch_by"]


def answer(
    path: Path, code_dir: Path | None, form_path: Path | None, device: str = "cpu"
) -> list[proof.Answers]:
    """The restored object's answers to all cases of the probe.

    Whoever starts this process vouches for the snapshot: freeze has just written it, or the user
    has asked for it to be verified and its trust was checked.
    """
    snapshot = open_snapshot(path)
    form = None
    if form_path is not None:
        form = parse_form(form_path, (form_path / FILE).read_bytes())
    if device != "cpu":
        from zerowake.snapshot.device import resolve_device

        device, form = resolve_device(device), form and form._replace(modules=())
    trusted = frozenset() if code_dir else frozenset((snapshot.digest,))
    imported = import_function(snapshot, trusted=trusted, code_dir=code_dir)
    # A form that cannot answer the probe by itself is none.
    target = imported.restore(device=device, form=form, fall_back=False).object
    process.set_threads(imported.function.settings.threads)  # after restore, which imports torch
    wake_up(target, snapshot.manifest.name)
    return imported.answer_probe(target)


class _TorchWatch(MetaPathFinder):
    """Notes which line was the first to import torch."""

    by: str | None = None

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torch" and self.by is None:
            stack = [f for f in traceback.extract_stack() if not f.filename.startswith("<")][:-1]
            if stack[-1].filename == installed_torch.__file__:  # looks for it, does not import it
                return
            own = [f for f in stack if "/code/" in f.filename] or stack  # the author's, if it is
            self.by = _said(own)


def _said(own: list[traceback.FrameSummary]) -> str:
    """Who imports torch, and the remedy. own: the author's frames, outermost first."""
    first, last = own[0], own[-1]
    file = os.path.basename(last.filename)
    if last.name != "<module>":
        return f"{file}:{last.lineno} imports torch in {last.name}"
    if first.filename == last.filename:
        return f"{file}:{last.lineno} imports torch at the top; {TOP_REMEDY}"
    where = f"{os.path.basename(first.filename)}:{first.lineno}"
    at = "at the top" if first.name == "<module>" else f"in {first.name}"
    return f"{where} imports {file} {at}, which imports torch; import it in load"


def main(arguments: list[str]) -> int:
    told = json.loads(arguments[0])
    device = told.pop("device")
    job = {key: value and Path(value) for key, value in told.items()}
    watch = _TorchWatch()
    sys.meta_path.insert(0, watch)
    try:
        answers = answer(job["snapshot"], job["code_dir"], job["form"], device)
    except BaseException as error:
        job["out"].write_text(json.dumps({"error": to_problem(error)["detail"]}))
        return 1
    encoded = [[[b64encode(c).decode() for c in item] for item in case] for case in answers]
    job["out"].write_text(json.dumps({"answers": encoded, "torch_by": watch.by}))
    return 0


if __name__ == "__main__":
    sys.exit(process.leave(main(sys.argv[1:])))
