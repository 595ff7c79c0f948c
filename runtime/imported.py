"""A frozen function whose code has been imported: its declaration, its probe, and its object on demand.

What proving, compiling and serving a snapshot begin with. Knows no process and no socket.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zerowake.runtime.executor import Executor
from zerowake.runtime.function import Function
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.target import load_function
from zerowake.snapshot import code, proof
from zerowake.snapshot.code import CodeFiles
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.restore import Restored, restore
from zerowake.snapshot.store import read_file

if TYPE_CHECKING:
    from zerowake.snapshot.form import Form


@dataclass(frozen=True, slots=True)
class Imported:
    """``cases``: the probe's, each with the bodies of its items."""

    function: Function
    cases: list[list[bytes]]
    _snapshot: Snapshot = field(repr=False)
    _files: CodeFiles = field(repr=False)

    def restore(
        self, *, device: str = "cpu", form: "Form | None" = None, fall_back: bool = True
    ) -> Restored:
        """Its object, ``wake`` not yet called; parameters and errors as in ``snapshot.restore``."""
        return restore(self._snapshot, self._files, device=device, form=form, fall_back=fall_back)

    def answer_probe(self, target: object) -> list[proof.Answers]:
        """What ``target``, its object, answers to all cases."""
        executor = Executor(self.function, target)
        return proof.answer_all(target, self.cases, lambda _target, case: executor.answer(case))


def import_function(
    snapshot: Snapshot, *, trusted: Iterable[str], code_dir: Path | None = None
) -> Imported:
    """Import the author's code, where it may run: UntrustedCode otherwise (``load_code``)."""
    files = code.load_code(snapshot, trusted=frozenset(trusted), code_dir=code_dir)
    code.install(files)
    function = load_function(FunctionInfo.of(snapshot.manifest).target)
    cases = proof.parse(read_file(snapshot, "proof.json")).cases
    return Imported(function, cases, snapshot, files)
