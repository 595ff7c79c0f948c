"""A compiled form of a snapshot: modules that answer without their Python, and without torch.

A form lies in ``compiled/<fingerprint>`` of a snapshot, outside its identity: ``form.json``, one
library a module and what constants the snapshot does not hold. It is a program, so it is used only
where this user compiled it or named its digest; all of it is checked before the library is loaded,
for a wrong address in there ends the process. ``compile`` makes one; docs/format.md describes it.
"""

import ctypes
import functools
import hashlib
import inspect
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerowake.snapshot import skeleton, state
from zerowake.snapshot.arrays import Kind, give, kind_of, span, take
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.layout import ALIGN_NBYTES, TORCH_DTYPES
from zerowake.snapshot.libtorch import (
    ELEMENTS,
    Array,
    Library,
    contiguous_strides,
    library_path,
    libtorch,
    reach,
    same_layout,
)
from zerowake.snapshot.mapping import map_file
from zerowake.snapshot.opened import Snapshot

DIRECTORY = "compiled"
FILE = "form.json"
FORMAT = 1
CONSTANTS = "constants.bin"  # weights that the snapshot does not hold: literals, other dtypes

_TORCH_NAMES = {stored: name for name, (_, stored) in TORCH_DTYPES.items() if stored}


@dataclass(frozen=True, slots=True)
class Input:
    """One array that a module takes. shape: sizes, or names of sizes that vary (``ranges``).

    below: values are row numbers of a table of so many rows; 0 where they are none. An error in a
    parallel loop of compiled code ends the process, so they are looked at before.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    below: int = 0


@dataclass(frozen=True, slots=True)
class Weight:
    """How a constant lies in memory; offset: in CONSTANTS, None where the snapshot holds it."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int | None


@dataclass(frozen=True, slots=True)
class ModuleForm:
    """One compiled module.

    path: the attribute of the object where it stands. signature: what its forward takes.
    fixed: arguments that are no arrays, with the values they had when it was compiled.
    ranges: smallest and largest size by name; None is no bound. output: a tree like ``{"t": "dict",
    "v": {...}}`` with the places of results as leaves. constants: what the library wants, by FQN.
    """

    path: str
    library: str
    signature: inspect.Signature
    fixed: Mapping[str, Any]
    inputs: tuple[Input, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    output: Any
    constants: Mapping[str, Weight]


@dataclass(frozen=True, slots=True)
class Form:
    """A checked form. torch_free: the probe was answered without importing torch.

    snapshot: the digest of the one that it belongs to. files: SHA-256 by name.
    dtype: what weights and arithmetic were changed to. error: the largest on the probe.
    """

    path: Path
    digest: str
    snapshot: str
    torch_free: bool
    dtype: str | None
    error: float
    modules: tuple[ModuleForm, ...]
    files: Mapping[str, str]


class Output(dict[str, Any]):
    """What a module returned as an object with named fields: by key, attribute or place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return (
            list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)
        )


class CompiledModule:
    """What ``predict`` finds in place of a module: it can be called, with its signature."""

    def __init__(self, form: ModuleForm, library: Library) -> None:
        self._form = form
        self._library = library

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes tensors, numpy arrays or nested lists; returns what it was given.

        Raises TypeError or ValueError naming the argument, RuntimeError with the library's words.
        """
        form = self._form
        bound = form.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for name, value in form.fixed.items():
            if given[name] is not value and given[name] != value:
                raise TypeError(
                    f"{form.path}({name}={given[name]!r:.80}): it was compiled for {name}={value!r}; "
                    "call it like that in an example, or freeze with --no-compile"
                )
        arrays = [self._take(each, given[each.name]) for each in form.inputs]
        self._check(arrays)
        results = self._library.run(arrays)
        kind = kind_of(given[each.name] for each in form.inputs)
        return _tree(form.output, results, kind)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the compiled form of a module can only be called; {self._form.path}.{name} needs the "
            "module itself: read it in load and keep it on self, or freeze with --no-compile"
        )

    def _take(self, wanted: Input, value: Any) -> Array:
        try:
            return take(value, wanted.dtype, len(wanted.shape))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self._form.path}: {wanted.name}: {error}") from None

    def _check(self, arrays: Sequence[Array]) -> None:
        sizes: dict[str, int] = {}
        for wanted, array in zip(self._form.inputs, arrays, strict=True):
            for place, (size, found) in enumerate(zip(wanted.shape, array.shape, strict=True)):
                if isinstance(size, str):
                    least, most = self._form.ranges[size]
                    fits = found >= least and (most is None or found <= most)
                    said = f"{least} to {'any' if most is None else most}"
                    if fits:
                        said = f"{sizes.setdefault(size, found)}, as in another argument"
                        fits = sizes[size] == found
                else:
                    fits, said = found == size, f"{size}"
                if not fits:
                    raise ValueError(
                        f"{self._form.path}: {wanted.name} has {found} entries in dimension {place}; "
                        f"the compiled form takes {said}"
                    )
            if wanted.below and array.count:
                low, high = span(array)
                if low < 0 or high >= wanted.below:
                    raise IndexError(
                        f"{self._form.path}: {wanted.name} holds values from {low} to {high}; "
                        f"wanted 0 to {wanted.below - 1}"
                    )


def find(snapshot: Snapshot, named: frozenset[str] = frozenset()) -> Form:
    """The form for this machine, checked, of a snapshot.

    named: digests that the operator vouches for. Raises UnusableForm with the reason when there is
    none, or it is not to be used.
    """
    path = snapshot.path / DIRECTORY / fingerprint_id()
    try:
        data = (path / FILE).read_bytes()
    except OSError:
        others = list((snapshot.path / DIRECTORY).glob(f"[!.]*/{FILE}"))
        raise UnusableForm(
            "its compiled forms are for other machines, torch versions or devices"
            if others
            else "it has no compiled form; `zerowake compile` makes one"
        ) from None
    form = parse(path, data)
    if form.snapshot != snapshot.digest:
        raise UnusableForm(f"{path / FILE} belongs to another snapshot")
    if not state.is_trusted(form.digest, named):
        raise UnusableForm(
            f"its compiled form was not compiled by this user on this machine; name its digest "
            f"({form.digest}) with --trust, or compile it here: zerowake compile {snapshot.path}"
        )
    _check_files(path, form.files)
    return form


def load(form: Form, snapshot: Snapshot, mapped: Sequence[mmap.mmap]) -> dict[str, CompiledModule]:
    """The form's modules by path, bound to the weights where they are mapped.

    Raises UnusableForm when a weight is not what the library wants.
    """
    made = {}
    for each in form.modules:
        library = Library(form.path / each.library, libtorch())
        if library.inputs != len(each.inputs):
            raise UnusableForm(
                f"{each.library} takes {library.inputs} inputs, not {len(each.inputs)}"
            )
        if any(not 0 <= place < library.outputs for place in _places(each.output)):
            raise UnusableForm(f"{each.library} has {library.outputs} outputs, not {each.output}")
        library.bind(_weights(form, each, snapshot, mapped, library))
        made[each.path] = CompiledModule(each, library)
    return made


def fingerprint() -> dict[str, str]:
    """What compiled code depends on: the processor's features, torch and the device."""
    return {"machine": os.uname().machine, "cpu": _cpu(), "torch": _torch(), "device": "cpu"}


def fingerprint_id() -> str:
    return hashlib.sha256(json.dumps(fingerprint(), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _cpu() -> str:
    """A digest of the features that the kernel reports: code for more of them would crash."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    features = " ".join(sorted(flags.partition(":")[2].split()))
    return hashlib.sha256(features.encode()).hexdigest()[:16]


@functools.cache
def _torch() -> str:
    """torch's version, read from its file: importing it to ask takes a second."""
    text = (library_path().parents[1] / "version.py").read_text()
    found = re.search(r"__version__ = '([^']+)'", text)
    if found is None:
        raise UnusableForm("the installed torch does not say its version")
    return found[1]


def parse(path: Path, data: bytes) -> Form:
    """The form that ``data`` describes. Raises UnusableForm."""
    try:
        plain = json.loads(data)
        if plain["format"] != FORMAT:
            raise UnusableForm(
                f"{path / FILE} has format {plain['format']}; this release: {FORMAT}"
            )
        modules = tuple(_module(each) for each in plain["modules"])
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return Form(
            path,
            digest,
            str(plain["snapshot"]),
            bool(plain["torch_free"]),
            plain["dtype"],
            float(plain["error"]),
            modules,
            {str(name): str(sha256) for name, sha256 in plain["files"].items()},
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
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
    ranges = {name: (int(low), high) for name, (low, high) in plain["ranges"].items()}
    for each in inputs:
        if each.dtype not in ELEMENTS:
            raise ValueError(f"dtype {each.dtype!r:.40}")
        if any(isinstance(size, str) and size not in ranges for size in each.shape):
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
        output=plain["output"],
        constants=constants,
    )


def _sizes(plain: list[int]) -> tuple[int, ...]:
    sizes = tuple(map(int, plain))
    if any(size < 0 for size in sizes):
        raise ValueError(f"negative sizes {sizes}")
    return sizes


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[\w-]+\.so", name):
        raise ValueError(f"library {name!r:.80}")
    return name


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if found != sha256:
            raise UnusableForm(f"{path / name} does not have the digest that {FILE} names")
    if odd := {entry.name for entry in path.iterdir()} - {*files, FILE}:
        raise UnusableForm(f"{path / min(odd)} is not listed in {FILE}")


def _weights(
    form: Form,
    module: ModuleForm,
    snapshot: Snapshot,
    mapped: Sequence[mmap.mmap],
    library: Library,
) -> list[Array]:
    """An array for each of the library's constants, in its order, of the dtype it wants."""
    nodes = _tensors(snapshot, module.path)
    in_file = any(each.offset is not None for each in module.constants.values())
    nbytes = (form.path / CONSTANTS).stat().st_size if in_file else 0
    stored = map_file(form.path / CONSTANTS, nbytes) if nbytes else None  # shared by all instances
    arrays = []
    for constant in library.constants:
        fqn = constant.fqn.removeprefix("module.")  # the wrapper's name for what was compiled
        wanted = module.constants.get(fqn)
        if wanted is not None and wanted.offset is not None:
            array = _in_file(stored, wanted, wanted.offset)
        elif wanted is not None and fqn in nodes:
            array = _in_snapshot(snapshot, mapped, nodes[fqn])
        else:
            raise UnusableForm(f"{module.library} wants {constant.fqn!r:.80}, which nothing holds")
        # The library believes whatever it is given: a wrong address or stride ends the process.
        if (
            (array.dtype, array.dtype, array.shape) != (constant.dtype, wanted.dtype, wanted.shape)
            or not same_layout(array.shape, array.strides, wanted.strides)
        ):  # fmt: skip
            raise UnusableForm(
                f"{constant.fqn} is {array.dtype} {array.shape} with strides {array.strides}; the "
                f"library wants {constant.dtype} {wanted.shape} with strides {wanted.strides}"
            )
        arrays.append(array)
    return arrays


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


def _tensors(snapshot: Snapshot, path: str) -> dict[str, dict[str, Any]]:
    """Parameters and buffers of a module by FQN (``layer.0.weight``), as nodes of the skeleton."""
    nodes = snapshot.skeleton.nodes
    found: dict[str, dict[str, Any]] = {}

    def walk(index: int, prefix: str) -> None:
        node = nodes[index]
        for table in ("p", "b"):
            for name, value in node.get(table, {}).items():
                if isinstance(value, list):
                    found[prefix + name] = nodes[value[0]]
        for name, value in node.get("m", {}).items():
            if isinstance(value, list):
                walk(value[0], f"{prefix}{name}.")

    walk(module_node(snapshot, path), "")
    return found


def _in_snapshot(snapshot: Snapshot, mapped: Sequence[mmap.mmap], node: dict[str, Any]) -> Array:
    if node["i"] is None:
        raise UnusableForm("a weight without elements cannot be bound")
    entry = snapshot.manifest.tensors[node["i"]]
    segment = snapshot.manifest.segments[entry.segment]
    dtype, shape, offset = _TORCH_NAMES[entry.dtype], tuple(entry.shape), 0
    strides = contiguous_strides(shape)
    if "v" in node:
        dtype, shape, strides, offset = node["v"]
    start = segment.data_offset + entry.offset
    owner, address = _mapped(mapped[entry.segment], start, entry.nbytes)
    return Array(address + offset * ELEMENTS[dtype][0], dtype, tuple(shape), tuple(strides), owner)


def _in_file(mapping: mmap.mmap | None, weight: Weight, offset: int) -> Array:
    nbytes = ELEMENTS[weight.dtype][0] * reach(weight.shape, weight.strides)
    if offset < 0 or offset + nbytes > (len(mapping) if mapping is not None else 0):
        raise UnusableForm(f"{CONSTANTS} ends before a constant of {nbytes} bytes at {offset}")
    owner, address = _aligned(b"") if mapping is None else _mapped(mapping, offset, nbytes)
    return Array(address, weight.dtype, weight.shape, weight.strides, owner)


def _mapped(mapping: mmap.mmap, start: int, nbytes: int) -> tuple[Any, int]:
    """An owner and the address of bytes where they are mapped; copied only if they must be."""
    owner = ctypes.c_char.from_buffer(mapping)  # holds on to the mapping
    address = ctypes.addressof(owner) + start
    if address % ALIGN_NBYTES:  # as torch's own memory is: kernels take wider loads for granted
        return _aligned(memoryview(mapping)[start : start + nbytes])
    return owner, address


def _aligned(data: Any) -> tuple[Any, int]:
    memory = (ctypes.c_char * (len(data) + ALIGN_NBYTES))()
    address = -(-ctypes.addressof(memory) // ALIGN_NBYTES) * ALIGN_NBYTES
    at = address - ctypes.addressof(memory)
    memoryview(memory).cast("B")[at : at + len(data)] = data
    return memory, address


def _places(tree: Any) -> Iterator[int]:
    """The leaves of an output's tree."""
    if isinstance(tree, int):
        yield tree
    elif isinstance(tree, dict):
        inside = tree["v"]
        for each in inside.values() if isinstance(inside, dict) else inside:
            yield from _places(each)


def _tree(tree: Any, results: Sequence[Array], kind: Kind) -> Any:
    """The module's answer: ``tree`` with results in place of its leaves."""
    match tree:
        case int(place):
            return give(results[place], kind)
        case None:
            return None
        case {"t": "output", "v": fields}:
            return Output({name: _tree(each, results, kind) for name, each in fields.items()})
        case {"t": "dict", "v": fields}:
            return {name: _tree(each, results, kind) for name, each in fields.items()}
        case {"t": "tuple", "v": items}:
            return tuple(_tree(each, results, kind) for each in items)
        case {"t": "list", "v": items}:
            return [_tree(each, results, kind) for each in items]
    raise UnusableForm(f"{FILE} has an output {tree!r:.80}")
