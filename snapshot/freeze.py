"""Freezing: an object that ``load`` made becomes a snapshot, proven before it is published.

Does not know how an object is made, run or restored in a fresh process: the recipe brings that.
The snapshot is written aside, synced, proven and renamed; a failure leaves nothing behind.
"""

import errno
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.snapshot import (
    comparison,
    layout,
    manifest,
    names,
    proof,
    publish,
    skeleton,
    state,
    store,
)
from zerowake.snapshot.code import CodeFiles, in_words
from zerowake.snapshot.dismantle import Parts, dismantle
from zerowake.snapshot.errors import FreezeError
from zerowake.snapshot.proof import Answers, Probe, Proof
from zerowake.snapshot.record import run_twice
from zerowake.snapshot.restore import wake_up
from zerowake.snapshot.store import Progress
from zerowake.snapshot.walker import Leaf

if TYPE_CHECKING:
    from zerowake.snapshot.tensors import Run

_LARGE = {  # files of limited size, and what to do when one is too large
    skeleton.FILE: "Keep large data in arrays, bytes, or lists and dictionaries of nothing but "
    "numbers and strings",
    store.PROOF_FILE: "Give examples whose answers are smaller",
    store.MANIFEST_FILE: "Give smaller examples",
}
_SPARE_NBYTES = 1 << 20  # manifest and directories, when judging free space


@dataclass(frozen=True, slots=True)
class Recipe:
    """What freezing needs from above.

    make: gives the object after ``load`` ran; called once. Freeze takes it apart and then calls
        its ``wake``, as every instance does, before it is probed.
    cases: probe cases, each the encoded bodies of the items of one batch.
    probe: runs one case on an object; for each item the chunks of its answer (one unless it
        streams). Random state is seeded before each call.
    prove: restores the snapshot at a path in a fresh process and answers all cases there, with
        ``proof.answer_all`` and as many threads as here.
    ready: called before ``wake``, when torch is imported if the object holds something of it.
    unproven: whether there may be no cases, of what must not be called to be tried.
    function: what the runtime wants to find again in the manifest; plain JSON.
    """

    name: str
    function: Mapping[str, Any]
    code: CodeFiles
    make: Callable[[], object]
    cases: list[list[bytes]]
    probe: Probe
    prove: Callable[[Path], list[Answers]]
    ready: Callable[[], None] = lambda: None
    unproven: bool = False


def freeze(
    recipe: Recipe,
    out: Path,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Write the snapshot of ``recipe`` below ``out`` and return its directory.

    ``progress(stage, done, total)`` counts bytes; ``note`` is told what the author should know.
    Raises FreezeError for what cannot be frozen or has no space, WakeFailed, ProofFailed when the
    restored object answers otherwise than the original; OSError, and what ``make`` raises, go through.
    """
    if not recipe.cases and not recipe.unproven:
        raise FreezeError(f"{recipe.name} has no probe; give examples, so that it can be proven")
    progress = progress or (lambda stage, done, total: None)
    if not manifest.is_name(recipe.name):
        raise FreezeError(f"the name is {recipe.name!r}; wanted letters, digits, '-', '_' and '.'")
    target = recipe.make()
    parts = dismantle(target, names.own_modules(recipe.code.files))
    runs = _runs(parts.leaves) if parts.leaves else []
    if "torch" in sys.modules:
        from zerowake.snapshot.eager import accept_arrays

        accept_arrays(target)  # only now: hooks are no part of what load has left
    recipe.ready()
    wakes = callable(getattr(target, "wake", None))
    wake = (lambda: wake_up(target, recipe.name)) if wakes else None
    first, second = run_twice(runs, wake, lambda: _answers(recipe, target))
    evidence = Proof(recipe.cases, first, comparison.unsteady(first, second))
    for case, fields in enumerate(evidence.unsteady):
        if fields and note is not None:
            note(
                f"case {case} is not deterministic in {', '.join(fields)}: two runs from the same "
                "seeds differ. The snapshot is not held to these fields."
            )
    with publish.staged(out) as staging:
        try:
            digest = _write(recipe, parts, runs, evidence, staging, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _no_space(runs, out) from error
        store.open_snapshot(staging)
        progress("prove", 0, 1)
        comparison.compare(evidence, recipe.prove(staging))
        progress("prove", 1, 1)
        final = out / f"{recipe.name}-{digest.removeprefix('sha256:')[:12]}"
        publish.publish(staging, final, store.is_whole)
    state.record_trust(digest)
    store.check_digests(store.open_snapshot(final), progress)
    return final


def _runs(leaves: list[Leaf]) -> "list[Run]":
    from zerowake.snapshot.tensors import align, gather

    runs = gather(leaves)
    return gather(leaves) if align(runs) else runs


def _answers(recipe: Recipe, target: object) -> list[Answers]:
    try:
        return proof.answer_all(target, recipe.cases, recipe.probe)
    except Exception as error:
        said = in_words(error.__cause__ or error)
        raise FreezeError(
            f"the probe failed: {said}; the examples must be items that the function answers"
        ) from error


def _write(
    recipe: Recipe,
    parts: Parts,
    runs: "list[Run]",
    evidence: Proof,
    staging: Path,
    progress: Progress,
) -> str:
    """Write all files of the snapshot into ``staging``, synced; returns its digest."""
    runs = sorted(runs, key=lambda run: run.first_use)  # stable: never used ones keep their order
    places = layout.place([run.piece for run in runs])
    if parts.leaves:
        from zerowake.snapshot.tensors import fill_nodes

        fill_nodes(parts.leaves, runs, {id(runs[p.piece]): i for i, p in enumerate(places)})
    if len(parts.skeleton.nodes) > skeleton.MAX_NODES:
        raise FreezeError(
            f"{recipe.name} consists of {len(parts.skeleton.nodes):,} objects; the format takes "
            f"{skeleton.MAX_NODES:,}. {_LARGE[skeleton.FILE]}"
        )
    files: dict[str, bytes] = {
        **{store.CODE + path: data for path, data in recipe.code.files.items()},
        **parts.assets,
        skeleton.FILE: skeleton.encode(parts.skeleton),
        store.PROOF_FILE: proof.encode(evidence),
    }
    needed = sum(run.piece.nbytes for run in runs) + sum(map(len, files.values()))
    if shutil.disk_usage(staging).free < needed + _SPARE_NBYTES:
        raise _no_space(runs, staging)
    for path, data in files.items():
        _write_file(staging / path, data)
    weights = _write_weights(runs, places, staging, progress)
    made = manifest.Manifest(
        name=recipe.name,
        function=recipe.function,
        code=manifest.Code(recipe.code.digest, recipe.code.entry, recipe.code.sha256),
        files={
            path: manifest.File(len(data), hashlib.sha256(data).hexdigest())
            for path, data in files.items()
        },
        segments=tuple(weights),
        tensors=tuple(
            manifest.Tensor(
                name=runs[p.piece].piece.name,
                segment=p.segment,
                offset=p.offset,
                nbytes=runs[p.piece].piece.nbytes,
                dtype=runs[p.piece].piece.dtype,
                shape=runs[p.piece].piece.shape,
                mutated=runs[p.piece].mutated,
            )
            for p in places
        ),
        environment=_environment(),
        created_by=f"zerowake {_version()}",
    )
    data = manifest.encode(made)
    _write_file(staging / store.MANIFEST_FILE, data)
    return manifest.digest_of(data)


def _write_weights(
    runs: "list[Run]", places: list[layout.Place], staging: Path, progress: Progress
) -> Iterator[manifest.Segment]:
    total, done = sum(run.piece.nbytes for run in runs), 0
    for segment in sorted({p.segment for p in places}):
        mine = [p for p in places if p.segment == segment]
        head = layout.header([(runs[p.piece].piece, p.offset) for p in mine])
        file = layout.segment_file(segment)
        with open(staging / file, "xb") as target:
            blocks = _Blocks()
            target.write(head)
            blocks.add(memoryview(head))
            for p in mine:
                data = runs[p.piece].read()
                for start in range(0, len(data), manifest.BLOCK_NBYTES):
                    part = data[start : start + manifest.BLOCK_NBYTES]
                    target.write(part)
                    blocks.add(part)
                    done += len(part)
                    progress("write", done, total)
            target.flush()
            os.fsync(target.fileno())
            nbytes = target.tell()
        yield manifest.Segment(file, nbytes, len(head), manifest.BLOCK_NBYTES, blocks.finish())


class _Blocks:
    """SHA-256 of each block of a stream."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = hashlib.sha256()
        self._room = manifest.BLOCK_NBYTES

    def add(self, data: memoryview) -> None:
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._close()

    def finish(self) -> tuple[str, ...]:
        if self._room < manifest.BLOCK_NBYTES:
            self._close()
        return tuple(self._done)

    def _close(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash, self._room = hashlib.sha256(), manifest.BLOCK_NBYTES


def _environment() -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if torch := sys.modules.get("torch"):
        found["threads"] = torch.get_num_threads()
    for library in names.LIBRARIES:
        if version := getattr(sys.modules.get(library), "__version__", None):
            found[library] = str(version)
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("zerowake")
    except importlib.metadata.PackageNotFoundError:  # a bare checkout
        return "0"


def _no_space(runs: "list[Run]", where: Path) -> FreezeError:
    needed = sum(run.piece.nbytes for run in runs) + _SPARE_NBYTES
    free = shutil.disk_usage(where).free
    return FreezeError(
        f"no space for the snapshot: it needs about {needed} bytes, {free} are free in {where}; "
        "free some, or choose another --out"
    )


def _write_file(path: Path, data: bytes) -> None:
    if path.name in _LARGE and len(data) > manifest.MAX_JSON_NBYTES:
        raise FreezeError(
            f"{path.name} would have {len(data):,} bytes; the format takes "
            f"{manifest.MAX_JSON_NBYTES:,}. {_LARGE[path.name]}"
        )
    publish.write_file(path, data)
