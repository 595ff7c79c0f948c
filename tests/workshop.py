"""Freezing small functions in tests: source text in, snapshot and restored object out."""

import contextlib
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerowake.snapshot import code, proof
from zerowake.snapshot.freeze import Recipe, freeze
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.restore import restore, wake_up
from zerowake.snapshot.store import open_snapshot, read_file


@dataclass
class Made:
    path: Path
    original: Any
    restored: Any
    notes: list[str]

    @property
    def snapshot(self) -> Snapshot:
        return open_snapshot(self.path)

    def tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.snapshot.manifest.tensors}


def probe(target: Any, items: list[bytes]) -> proof.Answers:
    """Each item is JSON and goes to ``predict`` alone."""
    return [[json.dumps(target.predict(json.loads(item))).encode()] for item in items]


def prove_here(path: Path) -> list[proof.Answers]:
    """Replays the proof in this process, on an object of its own; a fresh process costs seconds."""
    snapshot = open_snapshot(path)
    target = bring_back(snapshot)
    cases = proof.parse(read_file(snapshot, "proof.json")).cases
    return proof.answer_all(target, cases, probe)


def bring_back(snapshot: Snapshot) -> Any:
    files = code.load_code(snapshot, trusted=frozenset({snapshot.digest}), code_dir=None)
    target = restore(snapshot, files).object
    wake_up(target, snapshot.manifest.name)
    return target


def recipe(
    folder: Path,
    source: str,
    *,
    cases: list[list[bytes]] | None = None,
    prove: Callable[[Path], list[proof.Answers]] = prove_here,
    make: Callable[[Any], object] | None = None,
    unproven: bool = False,
) -> tuple[Recipe, list[object]]:
    """A recipe for the class App in ``source`` (or a load body), and where its object will stand."""
    source = textwrap.dedent(source)
    if "class App" not in source:
        source = f"class App:\n    def load(self):\n{textwrap.indent(source, ' ' * 8)}\n"
    if "def predict" not in source:
        source += "    def predict(self, item):\n        return item\n"
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(source)
    files = code.collect(folder / "app.py", folder)
    code.install(files)
    originals: list[object] = []

    def load() -> object:
        module = importlib.import_module("app")
        if make is None:
            target = module.App()
            target.load()
        else:
            target = make(module)
        originals.append(target)
        return target

    made = Recipe(
        name="app",
        function={"target": "app:App"},
        code=files,
        make=load,
        cases=cases if cases is not None else [[b"1"]],
        probe=probe,
        prove=prove,
        unproven=unproven,
    )
    return made, originals


def freeze_source(folder: Path, source: str, **options: Any) -> Made:
    made, originals = recipe(folder / "source", source, **options)
    notes: list[str] = []
    path = freeze(made, folder / "out", note=notes.append)
    return Made(path, originals[0], bring_back(open_snapshot(path)), notes)


@contextlib.contextmanager
def own_imports() -> Iterator[None]:
    """What is imported inside is forgotten afterwards, and what was before is not found inside."""
    names = ("app", "helper", "pack", "space")
    before, path = list(sys.meta_path), list(sys.path)

    def forget() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in names:
                del sys.modules[name]

    forget()
    yield
    sys.meta_path[:] = before
    sys.path[:] = path
    forget()
