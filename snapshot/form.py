"""A compiled form of a snapshot, as it lies on disk: checked, and found for this machine.

It lies in ``compiled/<fingerprint>`` of a snapshot, outside its identity: ``form.json``, one library a
module, what constants the snapshot does not hold, and what the function itself compiles. It is a program, so it is used only where this
user compiled it or named its digest. docs/format.md describes it, ``compile`` makes one, ``compiled``
runs it.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zerowake.snapshot import conditions, skeleton, state
from zerowake.snapshot.conditions import Condition
from zerowake.snapshot.errors import DamagedForm, DamagedSnapshot, UnusableForm
from zerowake.snapshot.fingerprint import fingerprint_id
from zerowake.snapshot.layout import ALIGN_NBYTES
from zerowake.snapshot.listed import Listed, in_words
from zerowake.snapshot.mapping import open_file, read_file
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.strided import ELEMENTS, reach

DIRECTORY = "compiled"
FILE = "form.json"
FORMAT = 2
MAX_NBYTES = 16 << 20  # of form.json
MAX_LIBRARY_NBYTES = 256 << 20  # and of a cache's file
CACHES = "caches"  # a folder with what the function itself compiles: see ``jit``
CONSTANTS = "constants.bin"  # weights that the snapshot does not hold: packed, recast, literals
NOT_WANTED = "--no-compile"  # what stands in a WHY file where nobody has tried
_WHY_NBYTES = 2000
# Files of any kind, for all are part of a program; none has a hidden or a foreign place.
_CACHED = r"caches(/(?!\.)[\w.+=-]{1,200}){1,8}"


class Input(NamedTuple):
    """One array that a module takes. shape: sizes, or names of sizes that vary (``ranges``).

    below: values are row numbers of a table of so many rows; 0 where they are none. An error in a
    parallel loop of compiled code ends the process, so they are looked at before.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    below: int = 0


class Weight(NamedTuple):
    """How a constant lies in memory; offset: in CONSTANTS, None where the snapshot holds it."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int | None

    @property
    def nbytes(self) -> int:
        """From the first to the last byte, gaps included."""
        return ELEMENTS[self.dtype][0] * reach(self.shape, self.strides)


class ModuleForm(NamedTuple):
    """One compiled module.

    path: the attribute of the object where it stands. signature: what its forward takes.
    fixed: arguments that are no arrays, with the values they had when it was compiled.
    ranges: smallest and largest size by name; None is no bound. output: a tree like ``{"t": "dict",
    "v": {...}}`` with the places of results as leaves. guards: conditions on the named sizes, by
    their text. lookups: lines that look up rows which they
    compute; where there are any the last result tells which of them had one out of range.
    constants: what the library wants, by FQN.
    """

    path: str
    library: str
    signature: inspect.Signature
    fixed: Mapping[str, Any]
    inputs: tuple[Input, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    guards: Mapping[str, Condition]
    output: Any
    lookups: tuple[str, ...]
    constants: Mapping[str, Weight]


class Form(NamedTuple):
    """A checked form. torch_free: the probe was answered without importing torch.

    snapshot: the digest of the one that it belongs to. files: SHA-256 by name.
    dtype: what weights and arithmetic were changed to. error: the largest on the probe.
    tolerance: how large it was allowed to be.
    """

    path: Path
    digest: str
    snapshot: str
    torch_free: bool
    dtype: str | None
    error: float
    tolerance: float
    modules: tuple[ModuleForm, ...]
    files: Mapping[str, str]

    def __str__(self) -> str:
        caches = f", {len(self.caches)} files of caches" if self.caches else ""
        return f"{self.dtype or 'own dtype'}, error {self.error:.1e}{caches}"

    @property
    def caches(self) -> dict[str, Listed]:
        """What the function itself compiles, for ``jit.use``."""
        below = f"{CACHES}/"
        return {n.removeprefix(below): self.listed(n) for n in self.files if n.startswith(below)}

    def listed(self, name: str) -> Listed:
        """One of its files, which ``parse_form`` has seen in the list."""
        most = MAX_LIBRARY_NBYTES
        if name == CONSTANTS:
            constants = [each for module in self.modules for each in module.constants.values()]
            ends = [each.offset + each.nbytes for each in constants if each.offset is not None]
            most = max(ends, default=0) + ALIGN_NBYTES
        return Listed(self.path / name, self.files[name], most)


def find_form(
    snapshot: Snapshot, named: frozenset[str] = frozenset(), *, loads: bool = False
) -> Form:
    """The form for this machine, checked, of a snapshot.

    named: digests that the operator vouches for. loads: the caller loads it next, when its files are
    hashed; otherwise they are here. Raises UnusableForm with the reason when there is none, or it is
    not to be used.
    """
    form = _read_form(snapshot)
    if not state.is_trusted(form.digest, named):
        code = f" --trust {snapshot.digest}"
        needed = "" if state.is_trusted(snapshot.digest, named) else code
        here = "" if state.is_trusted(snapshot.digest, frozenset()) else code
        raise UnusableForm(
            f"its compiled form was not compiled by this user on this machine; vouch for it (on a "
            f"platform in ZEROWAKE_TRUST) with --trust {form.digest}{needed}, or compile it here: zerowake compile "
            f"{snapshot.path}{here}"
        )
    _check_files(form, snapshot, hashed=not loads)
    return form


def check_form(snapshot: Snapshot) -> Form:
    """The same, whoever made it: what can be told of a form without running it."""
    form = _read_form(snapshot)
    _check_files(form, snapshot)
    return form


def lies_here(snapshot: Snapshot) -> bool:
    """Whether there is a form for this machine, of whatever worth."""
    return (home(snapshot) / FILE).exists()


def keeps_caches(snapshot: Snapshot) -> bool:
    """Whether the form for this machine, of whatever worth, has caches."""
    return (home(snapshot) / CACHES).is_dir()


def all_forms(snapshot: Snapshot) -> Iterator[tuple[Path, Form | UnusableForm]]:
    """The folder of each form that lies there, for whatever machine, and what it says."""
    for file in sorted((snapshot.path / DIRECTORY).glob(f"[!.]*/{FILE}")):
        try:
            yield file.parent, parse_form(file.parent, read_file(file, MAX_NBYTES))
        except UnusableForm as error:
            yield file.parent, error
        except (DamagedSnapshot, OSError) as error:
            yield file.parent, UnusableForm(f"{file}: {in_words(error)}")


def home(snapshot: Snapshot) -> Path:
    """Where the form for this machine lies, or would."""
    return snapshot.path / DIRECTORY / fingerprint_id()


def why_file(snapshot: Snapshot) -> Path:
    """Where it is written why there is no form for this machine: the reason, or NOT_WANTED."""
    return snapshot.path / DIRECTORY / f"{fingerprint_id()}.why"


def _read_form(snapshot: Snapshot) -> Form:
    path = home(snapshot)
    try:
        data = read_file(path / FILE, MAX_NBYTES)
    except (DamagedSnapshot, OSError) as error:
        if os.path.lexists(path / FILE):
            said = f"its compiled form cannot be read: {in_words(error)}"
            raise DamagedForm(f"{said}; {_anew(snapshot)}") from None
        raise UnusableForm(_why_none(snapshot)) from None
    try:
        form = parse_form(path, data)
        if form.snapshot != snapshot.digest:
            raise UnusableForm(f"{path / FILE} belongs to another snapshot")
        return form
    except UnusableForm as error:
        raise DamagedForm(f"{error}; {_anew(snapshot)}") from None


def _why_none(snapshot: Snapshot) -> str:
    compiling = f"`zerowake compile {snapshot.path}` makes one"
    if (said := _read_why(snapshot)) == NOT_WANTED:
        return (
            f"it was frozen with --no-compile, or by --reload, which does not compile; {compiling}"
        )
    if said:
        return f"it was not compiled: {said}"
    if any((snapshot.path / DIRECTORY).glob(f"[!.]*/{FILE}")):
        return f"its compiled forms are for other machines, torch versions or devices; {compiling}"
    return f"it has no compiled form; {compiling}"


def _read_why(snapshot: Snapshot) -> str:
    """What stands there, as one line that a terminal can show: it may be a stranger's."""
    try:
        with open(open_file(why_file(snapshot)), "rb") as file:
            text = file.read(_WHY_NBYTES).decode(errors="replace")
    except (DamagedSnapshot, OSError):
        return ""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _anew(snapshot: Snapshot) -> str:
    return f"`zerowake compile {snapshot.path}` makes it anew"


def prune(form: Form, snapshot: Snapshot) -> skeleton.Skeleton:
    """The snapshot's skeleton with the form's modules in place of the object's own."""
    replaced = {module_node(snapshot, each.path): each.path for each in form.modules}
    return skeleton.prune(snapshot.skeleton, replaced)


def module_node(snapshot: Snapshot, path: str) -> int:
    """The skeleton's node of the module at an attribute of the object. Raises UnusableForm."""
    nodes = snapshot.skeleton.nodes
    root = snapshot.skeleton.root
    found = nodes[root[0]].get("s", {}).get(path) if isinstance(root, list) else None
    if not isinstance(found, list) or nodes[found[0]]["t"] != "module":
        raise UnusableForm(f"the object has no module {path!r:.80}")
    index: int = found[0]
    return index


def parse_form(path: Path, data: bytes) -> Form:
    """The form that ``data`` describes. Raises UnusableForm."""
    try:
        plain = json.loads(data)
        if plain["format"] != FORMAT:
            raise UnusableForm(
                f"{path / FILE} has format {plain['format']!r:.40}; this release: {FORMAT}"
            )
        modules = tuple(_module(each) for each in plain["modules"])
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        files = {_plain_name(name): str(sha256) for name, sha256 in plain["files"].items()}
        for module in modules:
            needed = {module.library}
            if any(each.offset is not None for each in module.constants.values()):
                needed.add(CONSTANTS)
            if missing := needed - files.keys():
                raise ValueError(f"{min(missing)} is not among its files")
        return Form(
            path,
            digest,
            str(plain["snapshot"]),
            bool(plain["torch_free"]),
            plain["dtype"],
            float(plain["error"]),
            float(plain.get("tolerance", plain["error"])),  # older ones do not say
            modules,
            files,
        )
    except (
        AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UnusableForm(f"{path / FILE} does not hold a form: {error!r}") from None


def _module(plain: dict[str, Any]) -> ModuleForm:
    parameters = [
        inspect.Parameter(
            name,
            getattr(inspect.Parameter, kind),
            default=default[0] if default else inspect.Parameter.empty,
        )
        for name, kind, default in plain["signature"]
    ]
    inputs = tuple(
        Input(str(each["name"]), str(each["dtype"]), tuple(each["shape"]), int(each["below"]))
        for each in plain["inputs"]
    )
    fixed = dict(plain["fixed"])
    known = {parameter.name for parameter in parameters}
    if unknown := {*fixed, *(each.name for each in inputs)} - known:
        raise ValueError(f"{min(unknown)!r:.80} is no argument")
    ranges = {
        name: (int(low), None if high is None else int(high))
        for name, (low, high) in plain["ranges"].items()
    }
    for each in inputs:
        if each.dtype not in ELEMENTS:
            raise ValueError(f"dtype {each.dtype!r:.40}")
        if any(size not in ranges if isinstance(size, str) else size < 0 for size in each.shape):
            raise ValueError(f"a size of {each.name} has no range")
    constants = {
        fqn: Weight(
            str(dtype), _sizes(shape), _sizes(strides), offset if offset is None else int(offset)
        )
        for fqn, (dtype, shape, strides, offset) in plain["constants"].items()
    }
    for weight in constants.values():
        if weight.dtype not in ELEMENTS or len(weight.shape) != len(weight.strides):
            raise ValueError(f"a weight that is {weight!r:.200}")
    return ModuleForm(
        path=str(plain["path"]),
        library=_plain_name(plain["library"]),
        signature=inspect.Signature(parameters),
        fixed=fixed,
        inputs=inputs,
        ranges=ranges,
        guards={text: conditions.parse(text, ranges) for text in plain["guards"]},
        output=plain["output"],
        lookups=tuple(map(str, plain["lookups"])),
        constants=constants,
    )


def _sizes(plain: list[int]) -> tuple[int, ...]:
    sizes = tuple(map(int, plain))
    if any(size < 0 for size in sizes):
        raise ValueError(f"negative sizes {sizes}")
    return sizes


def _plain_name(name: str) -> str:
    if name != CONSTANTS and not re.fullmatch(rf"[\w-]{{1,200}}\.so|{_CACHED}", name):
        raise ValueError(f"file {name!r:.80}")
    return name


def _entries(path: Path) -> set[str]:
    """Everything that lies there but real directories, whatever it is."""
    return {
        str(entry.relative_to(path))
        for parent, folders, files in os.walk(path)
        for name in (*folders, *files)
        if (entry := Path(parent, name)).is_symlink() or name in files
    }


def _check_files(form: Form, snapshot: Snapshot, *, hashed: bool = True) -> None:
    try:
        if hashed:
            for name in form.files:
                form.listed(name).check()
        if odd := _entries(form.path) - {*form.files, FILE}:
            raise UnusableForm(f"{form.path / min(odd)!s:.400} is not listed in {FILE}")
    except UnusableForm as error:
        raise DamagedForm(f"{error}; {_anew(snapshot)}") from None
    except OSError as error:
        raise DamagedForm(f"{error.filename}: {error.strerror}; {_anew(snapshot)}") from None
