"""Opening a snapshot and checking it: everything that can be told without running or importing any of it.

Knows no torch. A snapshot may come from a stranger: ``open_snapshot`` looks at structure (cheap),
``check_digests`` reads every byte.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from zerowake.snapshot import layout, manifest, mapping, names, skeleton, skeleton_parser, state
from zerowake.snapshot.code import code_digest
from zerowake.snapshot.errors import DamagedSnapshot, SnapshotError, SnapshotNotFound
from zerowake.snapshot.mapping import open_file
from zerowake.snapshot.opened import Snapshot

if TYPE_CHECKING:
    from zerowake.snapshot.proof import Answers, Proof

MANIFEST_FILE = "manifest.json"
PROOF_FILE = "proof.json"
CODE = "code/"
MAX_HEADER_NBYTES = manifest.MAX_JSON_NBYTES  # below the 100 MB of safetensors itself
# Beside the snapshot, outside its identity, with digests of their own.
BESIDE = frozenset({"compiled", "timings.json"})

Progress = Callable[[str, int, int], None]


def open_snapshot(path: Path, *, checked: str = "") -> Snapshot:
    """The snapshot at ``path``, after every structural check; imports and runs nothing of it.

    checked: the digest of a snapshot that another process has opened. What the same digest stands
    for is not checked again, which takes half as long, only that the files are there in full.

    Raises SnapshotNotFound, UnsupportedVersion, DamagedSnapshot or ForbiddenClass.
    """
    if not (path / MANIFEST_FILE).exists():
        raise _not_found(path)
    path = path.resolve()
    data = mapping.read_file(path / MANIFEST_FILE, manifest.MAX_JSON_NBYTES)
    digest = manifest.digest_of(data)
    known = digest == checked
    found = manifest.parse(data, checked=known)
    _check_files(path, found)
    if not known:
        _check_code(found)
        for index, (segment, table) in enumerate(zip(found.segments, _tables(found), strict=True)):
            _check_segment(path, index, segment, table)
    skeleton_data = mapping.read_file(path / skeleton.FILE, manifest.MAX_JSON_NBYTES)
    if hashlib.sha256(skeleton_data).hexdigest() != found.files[skeleton.FILE].sha256:
        raise DamagedSnapshot(f"{skeleton.FILE} does not have the SHA-256 that the manifest names")
    parsed = skeleton_parser.parse(skeleton_data, found, checked=known)
    return Snapshot(path, digest, found, parsed)


def check_digests(
    snapshot: Snapshot, progress: Progress | None = None, force: bool = False
) -> None:
    """Hash every file and every block of weights; DamagedSnapshot names what differs.

    Skipped when this user verified exactly these files before (device, inode, size and times are
    the same), unless ``force``. ``progress("verify", done, total)`` counts bytes.
    """
    facts = _facts(snapshot)
    if not force and state.is_verified(snapshot.digest, facts):
        return
    found = snapshot.manifest
    files = {path: file.sha256 for path, file in found.files.items()}
    jobs = [(path, 0, found.files[path].nbytes, sha, path) for path, sha in files.items()]
    for segment in found.segments:
        for i, sha in enumerate(segment.blocks):
            start = i * segment.block_nbytes
            nbytes = min(segment.block_nbytes, segment.nbytes - start)
            jobs.append((segment.file, start, nbytes, sha, f"block {i} of {segment.file}"))
    total, done = sum(job[2] for job in jobs), 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # hashlib gives up the interpreter lock, so threads hash side by side
        hashes = pool.map(lambda job: _hash(snapshot.path, *job[:3]), jobs)
        for job, sha in zip(jobs, hashes, strict=True):
            if sha != job[3]:
                pool.shutdown(cancel_futures=True)
                raise DamagedSnapshot(
                    f"{job[4]} is damaged: its SHA-256 is {sha[:12]}..., the manifest says "
                    f"{job[3][:12]}..."
                )
            done += job[2]
            if progress is not None:
                progress("verify", done, total)
    if facts == _facts(snapshot):
        state.record_verified(snapshot.digest, facts)


def is_whole(path: Path, digest: str | None = None) -> bool:
    """Whether a snapshot lies at ``path``, ``digest`` if that is given, and all digests are right."""
    try:
        snapshot = open_snapshot(path)
        check_digests(snapshot)
    except SnapshotError:
        return False
    return digest in (None, snapshot.digest)


def file_sizes(found: manifest.Manifest) -> dict[str, int]:
    """Bytes of every file of a snapshot but its manifest, by path.

    Raises DamagedSnapshot when a file is listed twice, is missing or has no place in a snapshot.
    """
    sizes = {file.file: file.nbytes for file in found.segments}
    twice = sizes.keys() & found.files.keys()
    if twice or len(sizes) != len(found.segments) or MANIFEST_FILE in found.files:
        raise DamagedSnapshot(f"manifest.json lists a file twice: {sorted(twice) or sorted(sizes)}")
    sizes |= {name: file.nbytes for name, file in found.files.items()}
    for needed in (skeleton.FILE, PROOF_FILE):
        if needed not in found.files:
            raise DamagedSnapshot(f"manifest.json does not list {needed}")
    top = {skeleton.FILE, PROOF_FILE}
    for name in found.files:
        if name not in top and not name.startswith((skeleton.ASSETS, CODE)):
            raise DamagedSnapshot(f"manifest.json lists {name}, which has no place in a snapshot")
    return sizes


def verify(
    snapshot: Snapshot, prove: "Callable[[Path], list[Answers]]", progress: Progress | None = None
) -> "Proof":
    """Hash every block again, then have the proof's cases answered and compare the answers.

    ``prove(path)`` restores the snapshot and answers all cases, as in ``freeze.Recipe``. Returns
    the proof. Raises DamagedSnapshot or ProofFailed.
    """
    from zerowake.snapshot import comparison, proof  # a start that proves nothing saves 2 ms

    check_digests(snapshot, progress, force=True)
    evidence = proof.parse(read_file(snapshot, PROOF_FILE))
    comparison.compare(evidence, prove(snapshot.path))
    return evidence


def read_file(snapshot: Snapshot, path: str) -> bytes:
    """A file that the manifest lists, its digest checked."""
    file = snapshot.manifest.files[path]
    data = mapping.read_file(snapshot.path / path, file.nbytes)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DamagedSnapshot(f"{path} does not have the SHA-256 that the manifest names")
    return data


def _hash(root: Path, file: str, start: int, nbytes: int) -> str:
    fd = open_file(root / file)
    try:
        digest, end = hashlib.sha256(), start + nbytes
        while part := os.pread(fd, min(end - start, manifest.BLOCK_NBYTES), start):
            digest.update(part)  # one pread gives at most 2 GiB, and may give less than it could
            start += len(part)
        return digest.hexdigest()
    finally:
        os.close(fd)


def _facts(snapshot: Snapshot) -> list[list[object]]:
    found = snapshot.manifest
    paths = [MANIFEST_FILE, *sorted(found.files), *(segment.file for segment in found.segments)]
    facts: list[list[object]] = []
    for path in paths:
        try:
            file = os.lstat(snapshot.path / path)
        except FileNotFoundError:
            raise DamagedSnapshot(f"{path} is missing") from None
        facts.append([path, *state.file_facts(file)])
    return facts


def _walk(root: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            relative = f"{below}{entry.name}"
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                raise DamagedSnapshot(
                    f"{relative!r:.400} is a symbolic link; a snapshot holds only files"
                )
            if not below and entry.name in BESIDE:
                continue
            if stat.S_ISDIR(found.st_mode):
                if relative.count("/") >= manifest.MAX_PARTS:
                    raise DamagedSnapshot(
                        f"directories are nested deeper than {manifest.MAX_PARTS} levels"
                    )
                yield from _walk(root, relative + "/")
            else:
                yield relative, found


def _not_found(path: Path) -> SnapshotNotFound:
    if path.suffix == ".py" and path.is_file():
        first, *others = _declared(path)[:6] or ["Class"]
        more = f" (or {', '.join(others)})" if others else ""
        return SnapshotNotFound(
            f"{path} is a source file and no snapshot; name the function in it, {path}:{first}{more}; "
            "`zerowake freeze` makes a snapshot of it"
        )
    if path.name == MANIFEST_FILE and path.is_file():
        return SnapshotNotFound(f"{path} is a file of a snapshot; name its folder, {path.parent}")
    below = sorted(str(found.parent) for found in path.glob(f"*/{MANIFEST_FILE}"))[:5]
    remedy = (
        f"name one of those below it: {', '.join(below)}"
        if below
        else "`zerowake freeze` makes one"
    )
    if str(path).isidentifier() and not path.exists():
        remedy += f", and a function in source is named by its file, FILE.py:{path}"
    return SnapshotNotFound(f"there is no snapshot at {path}: no {MANIFEST_FILE}; {remedy}")


def _declared(source: Path) -> list[str]:
    """What looks like a function of ours, or of functions-framework, in a source file: a guess."""
    import ast

    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in tree.body if isinstance(node, kinds)]
    return [n.name for n in nodes if any("function" in ast.unparse(d) for d in n.decorator_list)]


def _check_files(path: Path, found: manifest.Manifest) -> None:
    sizes = file_sizes(found)
    present: set[str] = set()
    for name, facts in _walk(path):
        if name == MANIFEST_FILE:
            continue
        if name not in sizes:
            raise DamagedSnapshot(f"{name!r:.400} is not listed in manifest.json")  # !r: any bytes
        if not stat.S_ISREG(facts.st_mode):
            raise DamagedSnapshot(f"{name} is no regular file")
        if facts.st_size != sizes[name]:
            raise DamagedSnapshot(
                f"{name} has {facts.st_size} bytes, the manifest says {sizes[name]}"
            )
        present.add(name)
    if missing := sorted(sizes.keys() - present):
        raise DamagedSnapshot(f"{missing[0]} is missing")


def _check_code(found: manifest.Manifest) -> None:
    code = found.code
    listed = {name.removeprefix(CODE) for name in found.files if name.startswith(CODE)}
    if listed != code.files.keys():
        odd = min(listed ^ code.files.keys())
        raise DamagedSnapshot(f"manifest.json: code.files and files disagree about {CODE}{odd}")
    for path, sha256 in code.files.items():
        if found.files[CODE + path].sha256 != sha256:
            raise DamagedSnapshot(
                f"manifest.json: code.files and files name two digests of {CODE}{path}"
            )
        if not path.endswith(".py"):
            raise DamagedSnapshot(f"{CODE}{path} is no Python file")
    for module in names.own_modules(code.files):
        if not names.may_be_own(module):
            raise DamagedSnapshot(
                f"the snapshot's code has a module {module!r}, which would stand before Python's "
                "or a library's"
            )
    if code_digest(code.files) != code.digest:
        raise DamagedSnapshot("manifest.json: code.digest is not the digest of code.files")


def _tables(found: manifest.Manifest) -> list[list[manifest.Tensor]]:
    """The tensor table, by segment."""
    tables: list[list[manifest.Tensor]] = [[] for _ in found.segments]
    for tensor in found.tensors:
        if tensor.segment >= len(tables):
            raise DamagedSnapshot(
                f"manifest.json: tensor {tensor.name!r:.80} lies in segment {tensor.segment} of "
                f"{len(tables)}"
            )
        tables[tensor.segment].append(tensor)
    return tables


def _check_segment(
    path: Path, index: int, segment: manifest.Segment, table: list[manifest.Tensor]
) -> None:
    """The tensor table against the head of the file, which any safetensors reader goes by."""
    file = segment.file
    if file != layout.segment_file(index):
        raise DamagedSnapshot(
            f"manifest.json: segment {index} is {file}; wanted {layout.segment_file(index)}"
        )
    fd = open_file(path / file)
    try:
        nbytes = int.from_bytes(os.pread(fd, 8, 0), "little")
        if nbytes > MAX_HEADER_NBYTES or 8 + nbytes != segment.data_offset:
            raise DamagedSnapshot(
                f"{file} has a header of {nbytes} bytes; the manifest says its data starts at "
                f"{segment.data_offset}"
            )
        if segment.data_offset % layout.PAGE_NBYTES:
            raise DamagedSnapshot(f"{file}: data starts at {segment.data_offset}, on no page")
        head = manifest.parse_json(os.pread(fd, nbytes, 8), f"the header of {file}")
    finally:
        os.close(fd)
    if not isinstance(head, dict):
        raise DamagedSnapshot(f"the header of {file} is no object")
    head.pop("__metadata__", None)
    if {tensor.name for tensor in table} != head.keys() or len(table) != len(head):
        raise DamagedSnapshot(f"{file} and the tensor table do not name the same tensors")
    end = 0
    for tensor in sorted(table, key=lambda tensor: tensor.offset):
        where = f"tensor {tensor.name!r:.80} of {file}"
        item = layout.ITEM_NBYTES.get(tensor.dtype)
        if item is None:
            raise DamagedSnapshot(f"{where} has the dtype {tensor.dtype!r:.40}, which is not known")
        count = 1
        for n in tensor.shape:
            count *= n
            if count > manifest.MAX_INT:
                raise DamagedSnapshot(f"{where} has the shape {tensor.shape}, larger than any file")
        if count * item != tensor.nbytes:
            raise DamagedSnapshot(
                f"{where} has {tensor.nbytes} bytes; its shape {tensor.shape} of {tensor.dtype} "
                f"takes {count * item}"
            )
        if not tensor.nbytes:
            raise DamagedSnapshot(f"{where} has no elements; such tensors are not stored")
        if tensor.offset % item:
            raise DamagedSnapshot(f"{where} starts at byte {tensor.offset}, not on an element")
        if tensor.offset < end:
            raise DamagedSnapshot(f"{where} overlaps the tensor before it")
        if tensor.offset > end:
            raise DamagedSnapshot(f"{where} leaves a hole before it, from byte {end}")
        end = tensor.offset + tensor.nbytes
        if end > segment.nbytes - segment.data_offset:
            raise DamagedSnapshot(f"{where} ends at byte {end}, past the end of the file")
        wanted = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.offset, end],
        }
        if head[tensor.name] != wanted:
            raise DamagedSnapshot(f"{where}: the file's header says {head[tensor.name]!r:.120}")
    if end != segment.nbytes - segment.data_offset:
        raise DamagedSnapshot(f"{file} has bytes past its last tensor")
