"""``python -m zerowake.runtime.prove SNAPSHOT OUT [CODE_DIR]``: restore in this process and answer the probe.

Writes to OUT the answers as JSON (of each case, of each item, its chunks in base64), or
``{"error": ...}`` and ends with 1.
"""

import json
import sys
from base64 import b64encode
from pathlib import Path

from zerowake.runtime import process
from zerowake.runtime.executor import Executor
from zerowake.runtime.target import load_function
from zerowake.snapshot import code, proof
from zerowake.snapshot.restore import restore, wake_up
from zerowake.snapshot.store import open_snapshot, read_file


def answer(path: Path, code_dir: Path | None) -> list[proof.Answers]:
    """The restored object's answers to all cases of the probe.

    Whoever starts this process vouches for the snapshot: freeze has just written it, or the user
    has asked for it to be verified and its trust was checked.
    """
    snapshot = open_snapshot(path)
    trusted = frozenset() if code_dir else frozenset((snapshot.digest,))
    files = code.load_code(snapshot, trusted=trusted, code_dir=code_dir)
    code.install(files)
    function = load_function(snapshot.manifest.function["target"])
    restored = restore(snapshot, files, wake=False)
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
        out.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    out.write_text(
        json.dumps([[[b64encode(c).decode() for c in item] for item in case] for case in answers])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
