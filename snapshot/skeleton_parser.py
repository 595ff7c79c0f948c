"""Reading a skeleton that a stranger may have written: each name and each node is checked once.

Knows no torch, makes no object and imports nothing that the skeleton names.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from zerowake.snapshot import names
from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.layout import TORCH_DTYPES, array_item_nbytes
from zerowake.snapshot.manifest import MAX_INT, MAX_RANK, Manifest, integer, parse_json
from zerowake.snapshot.skeleton import ASSETS, FILE, KINDS, MAX_NODES, SHELLS, Skeleton
from zerowake.snapshot.tokenizer import MOST_FILES

_MAX_NESTED = 1000  # tuples in tuples
_HOOKS = re.compile(r"_\w*hooks(_with_kwargs|_always_called)?")  # tables of nn.Module
_DEVICE = re.compile(r"(cpu|cuda|mps)(:\d{1,3})?|meta", re.ASCII)


def parse(data: bytes, manifest: Manifest, *, checked: bool = False) -> Skeleton:
    """The skeleton in ``data``, each name on the allow-list and each node sound.

    checked: these bytes have been parsed before, so they are taken at their word.

    Raises ForbiddenClass for a name, DamagedSnapshot for anything else.
    """
    if checked:
        plain = json.loads(data)
        known = [(kind, name) for kind, name in plain["names"]]
        return Skeleton(plain["root"], plain["nodes"], plain["early"], known)
    plain = parse_json(data, FILE)
    if not isinstance(plain, dict) or plain.keys() != {"names", "early", "root", "nodes"}:
        raise DamagedSnapshot(f"{FILE}: wanted an object with names, early, root and nodes")
    if not all(isinstance(plain[key], list) for key in ("names", "early", "nodes")):
        raise DamagedSnapshot(f"{FILE}: names, early and nodes must be lists")
    if len(plain["nodes"]) > MAX_NODES:
        raise DamagedSnapshot(f"{FILE} has {len(plain['nodes'])} nodes; the limit is {MAX_NODES}")
    own = names.own_modules(manifest.code.files)
    named: list[tuple[str, str]] = []
    for entry in plain["names"]:
        if not isinstance(entry, list) or len(entry) != 2 or not all(map(_is_str, entry)):
            raise DamagedSnapshot(
                f"{FILE}: a name is {entry!r:.80}; wanted [kind, module:qualname]"
            )
        if entry[0] not in _NAME_KINDS:
            raise DamagedSnapshot(f"{FILE}: {entry!r:.80} is of no known kind")
        names.check(entry[1], entry[0], own)
        named.append((entry[0], entry[1]))
    skeleton = Skeleton(plain["root"], plain["nodes"], plain["early"], named)
    _Checker(skeleton, manifest).check()
    return skeleton


_NAME_KINDS = frozenset(
    {names.MODULE, names.OBJECT, names.ENUM, names.NAMEDTUPLE, names.CLASS, names.FUNCTION}
)


class _Checker:
    """Looks at every node once; what it lets pass, ``rebuild`` may take at its word."""

    def __init__(self, skeleton: Skeleton, manifest: Manifest) -> None:
        self.skeleton = skeleton
        self.manifest = manifest
        self.early = set()
        self.at = 0
        self.tuples: dict[int, tuple[int, int]] = {}  # by node: values in all, and how deep
        count = len(skeleton.nodes)
        for index in skeleton.early:
            if type(index) is not int or not 0 <= index < count:
                raise DamagedSnapshot(f"{FILE}: early names node {index!r:.40} of {count}")
            self.early.add(index)

    def check(self) -> None:
        nodes = self.skeleton.nodes
        for self.at, node in enumerate(nodes):
            if not isinstance(node, dict):
                self.refuse(f"is {node!r:.40}; wanted an object")
            kind = node.get("t")
            if not isinstance(kind, str) or kind not in KINDS:
                self.refuse(f"is of kind {kind!r:.40}, which this format does not have")
            keys = node.keys() - {"t"}
            must, may = KINDS[kind]
            if not must <= keys or not keys <= must | may:
                self.refuse(f"of kind {kind} has the fields {sorted(keys)}; wanted {sorted(must)}")
            if self.at in self.early and kind not in SHELLS:
                self.refuse(f"of kind {kind} stands in early; only containers can")
            _CHECKS[kind](self, node)
        self.at = len(nodes)
        self.value(self.skeleton.root)

    def refuse(self, problem: str) -> NoReturn:
        raise DamagedSnapshot(f"{FILE}: node {self.at} {problem}")

    # values

    def value(self, value: Any) -> None:
        if type(value) is list:
            if len(value) != 1 or type(value[0]) is not int:
                self.refuse(f"holds {value!r:.60}; wanted a scalar or [node]")
            if not 0 <= value[0] < self.at and value[0] not in self.early:
                self.refuse(f"refers to node {value[0]!r:.40}, which is not made before it")
        elif type(value) is dict:
            self.refuse("holds an object; wanted a scalar or [node]")

    def values(self, values: Any) -> None:
        if type(values) is not list:
            self.refuse(f"holds {values!r:.40}; wanted a list of values")
        for value in values:
            if value.__class__ is list or value.__class__ is dict:
                self.value(value)

    def state(self, state: Any) -> None:
        """Attributes by name: what goes into an object's ``__dict__`` or slots."""
        self.by_key(state)
        for name in state:
            if name.startswith("__") and name.endswith("__"):
                self.refuse(f"sets the attribute {name!r:.60}; names of Python's own are not taken")

    def by_key(self, state: Any) -> None:
        if type(state) is not dict:
            self.refuse(f"holds {state!r:.40}; wanted an object of values")
        for value in state.values():
            if value.__class__ is list or value.__class__ is dict:
                self.value(value)

    def node_of(self, value: Any, *kinds: str) -> dict[str, Any]:
        """The node that ``value`` refers to, if it is of one of ``kinds``."""
        self.value(value)
        node = self.skeleton.nodes[value[0]] if type(value) is list else None
        if not isinstance(node, dict) or node.get("t") not in kinds:
            self.refuse(f"holds {value!r:.40}; wanted [node] of kind {' or '.join(kinds)}")
        return node

    def name(self, index: Any, *kinds: str) -> str:
        if type(index) is not int or not 0 <= index < len(self.skeleton.names):
            self.refuse(f"names class {index!r:.40} of {len(self.skeleton.names)}")
        kind, name = self.skeleton.names[index]
        if kind not in kinds:
            self.refuse(f"uses {name!r} as {kinds[0]}, but it is listed as {kind}")
        return name

    def asset(self, path: Any) -> None:
        known = isinstance(path, str) and path.startswith(ASSETS) and path in self.manifest.files
        if not known:
            self.refuse(f"names the asset {path!r:.80}, which the manifest does not list")

    def integers(self, values: Any, most: int = MAX_INT) -> list[int]:
        if type(values) is not list or len(values) > MAX_RANK:
            self.refuse(f"holds {values!r:.60}; wanted at most {MAX_RANK} integers")
        return [integer(value, f"{FILE}: node {self.at}", most) for value in values]

    # kinds

    def plain(self, node: dict[str, Any]) -> None:
        if ("v" in node) == ("asset" in node):
            self.refuse("wants either v or asset")
        if "asset" in node:
            self.asset(node["asset"])
            return
        v = node["v"]
        if type(v) is not dict and type(v) is not list:
            self.refuse(f"is plain and holds {v!r:.40}; wanted a list or an object")
        items = v.values() if type(v) is dict else v
        for item in items:
            if item.__class__ is list or item.__class__ is dict:
                self.refuse("is plain and holds more than scalars")

    def listed(self, node: dict[str, Any]) -> None:
        self.values(node["v"])

    def mapping(self, node: dict[str, Any]) -> None:
        if "s" in node:
            if "k" in node or "v" in node:
                self.refuse("has keys twice")
            self.by_key(node["s"])
            return
        self.values(node.get("k"))
        self.values(node.get("v"))
        if len(node["k"]) != len(node["v"]):
            self.refuse(f"has {len(node['k'])} keys and {len(node['v'])} values")

    def default(self, node: dict[str, Any]) -> None:
        f = node["f"]
        if f is not None and not (isinstance(f, str) and f in names.BUILTIN_TYPES):
            self.refuse(f"has the default {f!r:.40}; wanted a builtin type")
        self.mapping(node)

    def tuple_(self, node: dict[str, Any]) -> None:
        """Python hashes a tuple by hashing all that is in it, as often as it is in it: a tuple of
        twice a tuple of twice ... would take for ever, and a deep one the whole stack."""
        self.values(node["v"])
        size, depth = len(node["v"]), 1
        for value in node["v"]:
            inner = self.tuples.get(value[0]) if value.__class__ is list else None
            if inner is not None:
                size, depth = size + inner[0], max(depth, inner[1] + 1)
        if size > MAX_NODES or depth > _MAX_NESTED:
            self.refuse(
                f"is a tuple of {size} values, {depth} deep; wanted at most {MAX_NODES}, {_MAX_NESTED} deep"
            )
        self.tuples[self.at] = size, depth

    def namedtuple(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.NAMEDTUPLE)
        self.tuple_(node)

    def float_(self, node: dict[str, Any]) -> None:
        if node["v"] not in ("nan", "inf", "-inf"):
            self.refuse(f"is the float {node['v']!r:.40}; wanted nan, inf or -inf")

    def complex_(self, node: dict[str, Any]) -> None:
        v = node["v"]
        if type(v) is not list or len(v) != 2 or not all(map(_is_float, v)):
            self.refuse(f"is the complex number {v!r:.40}; wanted two floats as strings")

    def bytes_(self, node: dict[str, Any]) -> None:
        if ("v" in node) == ("asset" in node):
            self.refuse("wants either v or asset")
        if "asset" in node:
            self.asset(node["asset"])
        else:
            self.base64(node["v"])

    def base64(self, text: Any) -> bytes:
        try:
            return base64.b64decode(text.encode("ascii"), validate=True)
        except (AttributeError, ValueError, binascii.Error):
            self.refuse(f"holds {text!r:.40}; wanted base64")

    def range_(self, node: dict[str, Any]) -> None:
        v = node["v"]
        if type(v) is not list or len(v) != 3 or not all(type(n) is int for n in v) or v[2] == 0:
            self.refuse(f"is the range {v!r:.40}; wanted three integers, the step not 0")

    def slice_(self, node: dict[str, Any]) -> None:
        self.tuple_(node)
        if len(node["v"]) != 3:
            self.refuse(f"is a slice of {len(node['v'])} values; wanted 3")

    def text(self, node: dict[str, Any]) -> None:
        if not isinstance(node["v"], str):
            self.refuse(f"holds {node['v']!r:.40}; wanted a string")

    def time(self, node: dict[str, Any]) -> None:
        if node["c"] == "timedelta":
            v = node["v"]
            if type(v) is not list or len(v) != 3 or not all(type(n) is int for n in v):
                self.refuse(f"is the timedelta {v!r:.40}; wanted days, seconds, microseconds")
        elif node["c"] in ("date", "time", "datetime"):
            self.text(node)
        else:
            self.refuse(f"is the time {node['c']!r:.40}; wanted date, time, datetime, timedelta")

    def enum(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.ENUM)
        self.text(node)

    def dtype(self, node: dict[str, Any]) -> None:
        self.torch_dtype(node["v"])

    def torch_dtype(self, name: Any) -> int:
        if not isinstance(name, str) or name not in TORCH_DTYPES:
            self.refuse(f"has the dtype {name!r:.40}; known are {', '.join(TORCH_DTYPES)}")
        return TORCH_DTYPES[name][0]

    def device(self, node: dict[str, Any]) -> None:
        self.text(node)
        if not _DEVICE.fullmatch(node["v"]):
            self.refuse(
                f"is the device {node['v']!r:.40}; wanted cpu, cuda or mps, with or without :N, or meta"
            )

    def size(self, node: dict[str, Any]) -> None:
        self.integers(node["v"])

    def tensor(self, node: dict[str, Any]) -> None:
        for flag in ("p", "g"):
            if node.get(flag, True) is not True:
                self.refuse(f"has {flag}={node[flag]!r:.40}; wanted true or nothing")
        if "s" in node:
            self.state(node["s"])
        stored = self.stored(node["i"])
        if "v" not in node:
            if stored is None:
                self.refuse("stores nothing and has no shape")
            return
        v = node["v"]
        if type(v) is not list or len(v) != 4:
            self.refuse(f"has the view {v!r:.60}; wanted [dtype, shape, strides, offset]")
        item = self.torch_dtype(v[0])
        strides = [n * item for n in self.integers(v[2])]
        offset = integer(v[3], f"{FILE}: node {self.at}: offset") * item
        self.span(stored, self.integers(v[1]), strides, offset, item)

    def array(self, node: dict[str, Any]) -> None:
        item = self.array_dtype(node["dtype"])
        shape = self.integers(node["shape"])
        strides = self.integers(node["strides"]) if "strides" in node else packed(shape, item)
        offset = integer(node.get("o", 0), f"{FILE}: node {self.at}: offset")
        if node.get("ro", True) is not True:
            self.refuse(f"has ro={node['ro']!r:.40}; wanted true or nothing")
        self.span(self.stored(node["i"]), shape, strides, offset, item)

    def array_dtype(self, text: Any) -> int:
        item = array_item_nbytes(text) if isinstance(text, str) else None
        if item is None:
            self.refuse(f"has the array dtype {text!r:.40}; wanted one like '<f4'")
        return item

    def scalar(self, node: dict[str, Any]) -> None:
        wanted = self.array_dtype(node["dtype"])
        if len(self.base64(node["v"])) != wanted:
            self.refuse(f"is a scalar of {wanted} bytes and holds {node['v']!r:.40}")

    def stored(self, index: Any) -> int | None:
        """Bytes of the stored tensor, None when nothing is stored (no elements)."""
        if index is None:
            return None
        count = len(self.manifest.tensors)
        if type(index) is not int or not 0 <= index < count:
            self.refuse(f"takes tensor {index!r:.40}; the table has {count}")
        return self.manifest.tensors[index].nbytes

    def span(
        self, stored: int | None, shape: list[int], strides: list[int], offset: int, item: int
    ) -> None:
        """Refuse a view whose last byte lies past the stored ones. All numbers are bytes."""
        if len(strides) != len(shape):
            self.refuse(f"has {len(shape)} dimensions and {len(strides)} strides")
        if 0 in shape or item == 0:
            end = offset
        else:
            end = offset + item
            end += sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if end > (stored or 0) or (stored is None and 0 not in shape):
            self.refuse(f"is a view that ends at byte {end} of {stored or 0} stored")

    def object_(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.OBJECT)
        self.state(node["s"])

    def module(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.MODULE)
        self.state(node["s"])
        if any(map(_HOOKS.fullmatch, node["s"])):
            self.refuse("sets hooks")
        if node["s"].keys() & _MODULE_TABLES:
            self.refuse(f"sets {sorted(node['s'].keys() & _MODULE_TABLES)} as plain attributes")
        for table, kind in (("p", "tensor"), ("b", "tensor"), ("m", "module")):
            entries = node.get(table, {})
            self.by_key(entries)
            for value in entries.values():
                if value is not None:
                    self.node_of(value, kind)
        v = node.get("n", [])
        if type(v) is not list or not all(map(_is_str, v)):
            self.refuse("lists non-persistent buffers that are no strings")

    def class_(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.CLASS)

    def function(self, node: dict[str, Any]) -> None:
        self.name(node["c"], names.FUNCTION)

    def partial(self, node: dict[str, Any]) -> None:
        self.node_of(node["f"], "function", "method", "class")
        self.values(node["a"])
        self.by_key(node["k"])

    def method(self, node: dict[str, Any]) -> None:
        target = self.node_of(node["o"], "object", "module")
        name = node["v"]
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            self.refuse(f"is the method {name!r:.40}; wanted a name without '__'")
        kinds = (names.OBJECT, names.MODULE)
        owner = self.name(target.get("c"), *kinds).partition(":")[0]
        if owner not in names.own_modules(self.manifest.code.files) and name != "forward":
            self.refuse(f"is the method {name!r} of a library's object; only forward is taken")

    def weakref(self, node: dict[str, Any]) -> None:
        self.node_of(node["o"], "tensor", "object", "module")

    def tokenizer(self, node: dict[str, Any]) -> None:
        self.asset(node["asset"])
        files = node.get("files", [])
        if type(files) is not list or len(files) > MOST_FILES:
            self.refuse(f"holds {files!r:.60}; wanted at most {MOST_FILES} files of a tokenizer")
        for path in files:
            self.asset(path)

    def token(self, node: dict[str, Any]) -> None:
        v = node["v"]
        if type(v) is not list or [type(x) for x in v] != [str, bool, bool, bool, bool, bool]:
            self.refuse(f"is the token {v!r:.60}; wanted its text and five flags")


_MODULE_TABLES = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})

_CHECKS: dict[str, Callable[[_Checker, dict[str, Any]], None]] = {
    "plain": _Checker.plain,
    "list": _Checker.listed,
    "tuple": _Checker.tuple_,
    "set": _Checker.listed,
    "frozenset": _Checker.listed,
    "dict": _Checker.mapping,
    "ordered": _Checker.mapping,
    "default": _Checker.default,
    "namedtuple": _Checker.namedtuple,
    "float": _Checker.float_,
    "complex": _Checker.complex_,
    "bytes": _Checker.bytes_,
    "range": _Checker.range_,
    "slice": _Checker.slice_,
    "path": _Checker.text,
    "time": _Checker.time,
    "enum": _Checker.enum,
    "dtype": _Checker.dtype,
    "device": _Checker.device,
    "size": _Checker.size,
    "tensor": _Checker.tensor,
    "array": _Checker.array,
    "scalar": _Checker.scalar,
    "object": _Checker.object_,
    "module": _Checker.module,
    "class": _Checker.class_,
    "function": _Checker.function,
    "partial": _Checker.partial,
    "method": _Checker.method,
    "weakref": _Checker.weakref,
    "tokenizer": _Checker.tokenizer,
    "token": _Checker.token,
}


def packed(shape: list[int], item: int) -> list[int]:
    """Strides of a C-ordered array, in bytes."""
    strides = [item] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return strides


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_float(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 40:
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
