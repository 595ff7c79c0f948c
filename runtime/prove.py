"""Proving a snapshot: restore it in a process of its own and answer the probe there.

``prove`` starts ``python -m zerowake.runtime.prove SNAPSHOT OUT [CODE_DIR]``, which writes to OUT the
answers as JSON (of each case, of each item, its chunks in base64), or ``{"error": ...}`` and ends
with 1.
"""

import json
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path

from zerowake.runtime import process
from zerowake.runtime.errors import to_problem
from zerowake.runtime.executor import Executor
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.target import load_function
from zerowake.snapshot import code, proof
from zerowake.snapshot.errors import ProofFailed
from zerowake.snapshot.restore import restore, wake_up
from zerowake.snapshot.store import open_snapshot, read_file


def prove(path: Path, code_dir: Path | None = None) -> list[proof.Answers]:
    """Restore ``path`` in a process of its own and answer the probe there.

    The caller vouches for the snapshot's code, or names ``code_dir``. Raises ProofFailed with what
    that process said when it does not come to answers.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as answers:
        command = [sys.executable, "-P", "-m", "zerowake.runtime.prove", str(path), answers.name]
        command += [str(code_dir)] if code_dir else []
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        text = answers.read()
    if run.returncode or not text:
        said = json.loads(text)["error"] if text else process.code_reason(run.returncode)
        raise ProofFailed(f"the snapshot could not be restored in a new process: {said}")
    return [[[b64decode(c) for c in item] for item in case] for case in json.loads(text)]


def answer(path: Path, code_dir: Path | None) -> list[proof.Answers]:
    """The restored object's answers to all cases of the probe.

    Whoever starts this process vouches for the snapshot: freeze has just written it, or the user
    has asked for it to be verified and its trust was checked.
    """
    snapshot = open_snapshot(path)
    trusted = frozenset() if code_dir else frozenset((snapshot.digest,))
    files = code.load_code(snapshot, trusted=trusted, code_dir=code_dir)
    code.install(files)
    function = load_function(FunctionInfo.of(snapshot.manifest).target)
    restored = restore(snapshot, files)
    process.set_threads(function.settings.threads)  # after restore, which imports torch if need be
    wake_up(restored.object, snapshot.manifest.name)
    executor = Executor(function, restored.object)
    cases = proof.parse(read_file(snapshot, "proof.json")).cases
    return proof.answer_all(restored.object, cases, lambda _target, case: executor.answer(case))


def main(arguments: list[str]) -> int:
    path, out, *code_dir = map(Path, arguments)
    try:
        answers = answer(path, code_dir[0] if code_dir else None)
    except BaseException as error:
        out.write_text(json.dumps({"error": to_problem(error)["detail"]}))
        return 1
    out.write_text(
        json.dumps([[[b64encode(c).decode() for c in item] for item in case] for case in answers])
    )
    return 0


if __name__ == "__main__":
    sys.exit(process.leave(main(sys.argv[1:])))
