"""Objects into nodes of a skeleton, each once.

Every object must be of a kind that ``rebuild`` can make from plain state; any other is refused
with its path and the remedy. Imports no torch and no numpy: ``tensor_walker`` adds their kinds.
"""

import base64
import builtins
import collections
import dataclasses
import datetime
import enum
import functools
import importlib
import json
import math
import pathlib
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zerowake.snapshot import names, refusals, tokenizer
from zerowake.snapshot.errors import ForbiddenClass, FreezeError
from zerowake.snapshot.refusals import REMEDY
from zerowake.snapshot.skeleton import ASSETS, SHELLS

if TYPE_CHECKING:
    import numpy as np
    import torch

_MAX_INT_BITS = 14_000  # Python writes and reads at most 4300 digits
_ASSET_NBYTES = 64 << 10  # plain data larger than this goes to a file of its own

Node = dict[str, Any]


@dataclasses.dataclass(slots=True, eq=False)
class Leaf:
    """A tensor or array, the path at which it was first met, and its node, still without place."""

    value: "torch.Tensor | np.ndarray[Any, Any]"
    path: str
    node: Node


class Walker:
    """Walks what ``load`` has left. Raises FreezeError naming the attribute's path, its type and the remedy.

    A reference is a list ``[n]`` shared by all who refer; n is known once the node is complete,
    so that nodes stand after the nodes they name.

    own: the modules of the author's code.
    """

    def __init__(self, own: frozenset[str]) -> None:
        self.own = own
        self.nodes: list[Node] = []
        self.names: list[tuple[str, str]] = []
        self.leaves: list[Leaf] = []
        self.assets: dict[str, bytes] = {}
        self.early: dict[int, list[Any]] = {}
        self.refs: dict[int, tuple[object, list[Any], str]] = {}
        self.named: dict[tuple[str, str], int] = {}

    def value(self, obj: Any, path: str) -> Any:
        cls = type(obj)
        if _is_scalar(obj):
            return obj
        if cls is int:
            self.refuse(obj, path, f"has {obj.bit_length()} bits", "keep it as bytes")
        if cls.__module__ == "torch.torch_version":  # a string with a comparison of its own
            return str(obj)
        known = self.refs.get(id(obj))
        if known is not None:
            ref = known[1]
            if ref[0] is None:
                if known[2] not in SHELLS:
                    self.refuse(obj, path, "contains itself", "break the circle")
                self.early[id(obj)] = ref
            return ref
        kind, make = self.kind(obj, path)
        fresh: list[Any] = [None]
        self.refs[id(obj)] = (obj, fresh, kind)  # holds obj, so that its id is not used again
        node = make(self, obj, path)
        fresh[0] = len(self.nodes)
        node["t"] = kind
        self.nodes.append(node)
        return fresh

    def kind(self, obj: Any, path: str) -> tuple[str, Callable[["Walker", Any, str], Node]]:
        cls = type(obj)
        if (cls is list or cls is dict) and is_plain(obj):
            return "plain", Walker.plain
        if found := _EXACT.get(cls):
            return found
        if isinstance(obj, enum.Enum):
            return "enum", Walker.enum
        if isinstance(obj, pathlib.PurePath):
            return "path", Walker.path
        if isinstance(obj, type):
            return "class", Walker.class_
        if isinstance(obj, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
            return "namedtuple", Walker.namedtuple
        if cls.__module__ == "tokenizers" and cls.__qualname__ == "Tokenizer":
            return "tokenizer", Walker.tokenizer
        if cls.__module__ == "tokenizers" and cls.__qualname__ == "AddedToken":
            return "token", Walker.token
        name = names.function_name(obj)
        if name is not None or isinstance(obj, types.FunctionType | types.BuiltinFunctionType):
            return "function", Walker.function
        return "object", Walker.object_

    def refuse(self, obj: object, path: str, problem: str, remedy: str = REMEDY) -> Any:
        cls = type(obj)
        raise FreezeError(f"{path} ({cls.__module__}.{cls.__qualname__}) {problem}; {remedy}")

    def name(self, name: str, kind: str, obj: object, path: str) -> int:
        """The index of ``name``, sure to lead back to ``obj``."""
        index = self.named.get((kind, name))
        if index is not None:
            return index
        try:
            names.check(name, kind, self.own)
            module = importlib.import_module(name.partition(":")[0])
            found = names.look_up(name, kind, self.own, module)
        except (ForbiddenClass, ImportError):
            found = None
        if found is not obj:
            what = "class" if isinstance(obj, type) else "function"
            if "<locals>" in name:
                raise FreezeError(
                    f"{path}: the {what} {name} is defined inside a function, where nothing finds it "
                    "again; define it at the top of a file of yours (one that load imports)"
                )
            raise FreezeError(
                f"{path}: the {what} {name} cannot be frozen by name: it is neither on the "
                f"allow-list nor defined at the top of one of the author's files; {REMEDY}"
            )
        self.named[kind, name] = len(self.names)
        self.names.append((kind, name))
        return len(self.names) - 1

    def class_name(self, cls: type, kind: str, path: str) -> int:
        return self.name(f"{cls.__module__}:{cls.__qualname__}", kind, cls, path)

    def asset(self, name: str, data: bytes) -> str:
        path = f"{ASSETS}{len(self.assets) + 1}-{name}"
        self.assets[path] = data
        return path

    # containers

    def list_(self, obj: list[Any], path: str) -> Node:
        return {"v": [self.value(item, f"{path}[{i}]") for i, item in enumerate(obj)]}

    def set_(self, obj: set[Any], path: str) -> Node:
        items = list(obj)
        if all(type(item) is str for item in items):
            items.sort()  # the order of strings in a set changes from run to run
        return {"v": [self.value(item, f"{path}{{{i}}}") for i, item in enumerate(items)]}

    def plain(self, obj: Any, path: str) -> Node:
        data = json.dumps(obj, separators=(",", ":"), allow_nan=False).encode("ascii")
        if len(data) > _ASSET_NBYTES:
            return {"asset": self.asset("plain.json", data)}
        return {"v": obj.copy()}  # the probe may change the original

    def dict_(self, obj: dict[Any, Any], path: str) -> Node:
        if all(type(key) is str for key in obj):
            return {"s": {key: self.value(v, f"{path}[{key!r}]") for key, v in obj.items()}}
        keys = [self.value(key, f"{path} key {key!r:.40}") for key in obj]
        return {"k": keys, "v": [self.value(v, f"{path}[{key!r:.40}]") for key, v in obj.items()]}

    def default(self, obj: collections.defaultdict[Any, Any], path: str) -> Node:
        factory: Any = obj.default_factory
        if factory is not None and factory not in _FACTORIES:
            self.refuse(obj, path, f"makes values with {factory!r}", "use a builtin type like list")
        return {"f": factory and factory.__name__, **self.dict_(obj, path)}

    def namedtuple(self, obj: Any, path: str) -> Node:
        c = self.class_name(type(obj), names.NAMEDTUPLE, path)
        return {"c": c, **self.list_(obj, path)}

    # plain values

    def float_(self, obj: float, path: str) -> Node:
        return {"v": repr(obj)}

    def complex_(self, obj: complex, path: str) -> Node:
        return {"v": [repr(obj.real), repr(obj.imag)]}

    def bytes_(self, obj: bytes, path: str) -> Node:
        if len(obj) > _ASSET_NBYTES:
            return {"asset": self.asset("bytes.bin", obj)}
        return {"v": base64.b64encode(obj).decode("ascii")}

    def range_(self, obj: range, path: str) -> Node:
        return {"v": [obj.start, obj.stop, obj.step]}

    def slice_(self, obj: slice, path: str) -> Node:
        return {"v": [self.value(v, path) for v in (obj.start, obj.stop, obj.step)]}

    def path(self, obj: pathlib.PurePath, path: str) -> Node:
        if type(obj) is not type(pathlib.Path()):
            self.refuse(obj, path, "is no pathlib.Path of this system", "use pathlib.Path")
        return {"v": str(obj)}

    def time(self, obj: Any, path: str) -> Node:
        if isinstance(obj, datetime.timedelta):
            return {"c": "timedelta", "v": [obj.days, obj.seconds, obj.microseconds]}
        zone = getattr(obj, "tzinfo", None)
        if zone is not None and type(zone) is not datetime.timezone:
            self.refuse(obj, path, f"has the time zone {zone!r}", "use datetime.timezone")
        return {"c": type(obj).__name__, "v": obj.isoformat()}

    def enum(self, obj: enum.Enum, path: str) -> Node:
        if not isinstance(obj.name, str) or type(obj).__members__.get(obj.name) is not obj:
            self.refuse(obj, path, "is a combination of flags", "keep its members in a list")
        return {"c": self.class_name(type(obj), names.ENUM, path), "v": obj.name}

    # objects

    def state(self, state: dict[str, Any], path: str) -> Node:
        for name in state:
            if type(name) is not str or (name.startswith("__") and name.endswith("__")):
                raise FreezeError(f"{path}.{name}: an attribute cannot have this name; rename it")
        return {name: self.value(v, f"{path}.{name}") for name, v in state.items()}

    def object_(self, obj: Any, path: str) -> Node:
        cls = type(obj)
        if reason := refusals.odd_object(obj):
            self.refuse(obj, path, reason)
        try:
            c = self.class_name(cls, names.OBJECT, path)
        except FreezeError as error:
            if cls.__module__ in self.own:
                raise
            raise FreezeError(
                f"{path} is a {cls.__module__}.{cls.__qualname__}, which cannot be frozen; {REMEDY}"
            ) from error
        state = dict(getattr(obj, "__dict__", {}))
        for slot in names.slots(cls):
            if hasattr(obj, slot):
                state[slot] = getattr(obj, slot)
        try:
            object.__new__(cls)
        except TypeError:
            self.refuse(obj, path, "inherits from a builtin type", "hold the value in an attribute")
        return {"c": c, "s": self.state(state, path)}

    def class_(self, obj: type, path: str) -> Node:
        return {"c": self.class_name(obj, names.CLASS, path)}

    def function(self, obj: Any, path: str) -> Node:
        name = names.function_name(obj) or f"{obj.__module__}:{obj.__qualname__}"
        if "<" in name:
            self.refuse(obj, path, "is a lambda or closure", "define it at the top of a file")
        return {"c": self.name(name, names.FUNCTION, obj, path)}

    def partial(self, obj: "functools.partial[Any]", path: str) -> Node:
        if vars(obj):
            self.refuse(obj, path, "carries attributes", "keep them elsewhere")
        f = self.value(obj.func, f"{path}.func")
        if type(f) is not list or self.nodes[f[0]]["t"] not in _CALLABLE:
            self.refuse(obj.func, f"{path}.func", "is not a function")
        a = [self.value(v, f"{path}.args[{i}]") for i, v in enumerate(obj.args)]
        return {"f": f, "a": a, "k": self.state(obj.keywords, path)}

    def method(self, obj: types.MethodType, path: str) -> Node:
        owner, name = obj.__self__, obj.__func__.__name__
        cls = type(owner)
        own = cls.__module__ in self.own or self.is_forward(owner, name)
        if isinstance(owner, type) or not own or getattr(cls, name, None) is not obj.__func__:
            self.refuse(obj, path, f"is the method {name!r} of {owner!r:.60}", "call it by name")
        return {"o": self.value(owner, f"{path}.__self__"), "v": name}

    def is_forward(self, owner: object, name: str) -> bool:
        """Whether it is the method of a module that stands for its call."""
        return False

    def weakref(self, obj: "weakref.ref[Any]", path: str) -> Node:
        target = obj()
        if target is None or obj.__callback__ is not None:
            self.refuse(obj, path, "is a weak reference that is dead or calls back")
        o = self.value(target, path)
        node = self.nodes[o[0]]["t"] if type(o) is list and o[0] is not None else "object"
        if node not in ("tensor", "object", "module"):
            self.refuse(obj, path, f"is a weak reference to a {type(target).__qualname__}")
        return {"o": o}

    def tokenizer(self, obj: Any, path: str) -> Node:
        text, files = tokenizer.take_apart(obj)
        node: Node = {"asset": self.asset("tokenizer.json", text)}
        if files:
            node["files"] = [self.asset(name, data) for name, data in files.items()]
        return node

    def token(self, obj: Any, path: str) -> Node:
        flags = [obj.single_word, obj.lstrip, obj.rstrip, obj.normalized, obj.special]
        return {"v": [obj.content, *flags]}


_EXACT: dict[type, tuple[str, Callable[[Walker, Any, str], Node]]] = {
    list: ("list", Walker.list_),
    tuple: ("tuple", Walker.list_),
    set: ("set", Walker.set_),
    frozenset: ("frozenset", Walker.set_),
    dict: ("dict", Walker.dict_),
    collections.OrderedDict: ("ordered", Walker.dict_),
    collections.defaultdict: ("default", Walker.default),
    float: ("float", Walker.float_),
    complex: ("complex", Walker.complex_),
    bytes: ("bytes", Walker.bytes_),
    range: ("range", Walker.range_),
    slice: ("slice", Walker.slice_),
    datetime.date: ("time", Walker.time),
    datetime.time: ("time", Walker.time),
    datetime.datetime: ("time", Walker.time),
    datetime.timedelta: ("time", Walker.time),
    functools.partial: ("partial", Walker.partial),
    types.MethodType: ("method", Walker.method),
    weakref.ref: ("weakref", Walker.weakref),
}

_FACTORIES = tuple(getattr(builtins, name) for name in names.BUILTIN_TYPES)
_CALLABLE = frozenset({"function", "method", "class"})


def _is_scalar(obj: Any) -> bool:
    """Whether JSON gives it back as it is."""
    cls = type(obj)
    if cls is int:
        return bool(obj.bit_length() <= _MAX_INT_BITS)
    return cls is str or cls is bool or obj is None or (cls is float and math.isfinite(obj))


def is_plain(obj: Any) -> bool:
    """Whether a list or dictionary is nothing but JSON scalars under string keys."""
    if type(obj) is dict:
        if not all(type(key) is str for key in obj):
            return False
        obj = obj.values()
    return all(map(_is_scalar, obj))
