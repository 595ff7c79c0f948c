"""A skeleton into objects: one pass over its nodes.

Knows no file and no torch (``weights`` makes what needs it). Takes the node table at its word,
because ``skeleton_parser`` has checked it; checks once more what only an import can tell: that a
name is a class of the kind that the node claims. An object of the author's or a model library's is
made by ``object.__new__`` and its plain state: no ``__init__``, ``__reduce__``, ``__setstate__`` or
property setter runs.
"""

import base64
import collections
import datetime
import functools
import importlib
import json
import pathlib
import sys
import weakref
from collections.abc import Callable
from typing import Any

from zerowake.snapshot import names, tokenizer
from zerowake.snapshot.errors import DamagedSnapshot, SnapshotError
from zerowake.snapshot.skeleton import Skeleton

Node = dict[str, Any]


def import_names(skeleton: Skeleton, own: frozenset[str]) -> list[Any]:
    """What each of the skeleton's names stands for, its module imported."""
    found: list[Any] = []
    for kind, name in skeleton.names:
        if not name:  # pruned
            found.append(None)
            continue
        module_name = name.partition(":")[0]
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            if module_name in own:
                raise
            raise SnapshotError(
                f"the snapshot needs {name}, and importing {module_name} failed: {error}; install "
                "the library in the version that the manifest's environment names"
            ) from error
        found.append(names.look_up(name, kind, own, module))
    return found


class Builder:
    """``classes``: what ``import_names`` gave; ``asset(path)``: a file's bytes; ``more``: how kinds
    of nodes that need torch or numpy are made."""

    def __init__(
        self,
        skeleton: Skeleton,
        classes: list[Any],
        asset: Callable[[str], bytes],
        more: "dict[str, Make]",
    ) -> None:
        self.skeleton = skeleton
        self.classes = classes
        self.asset = asset
        self.make = {**_MAKE, **more}
        self.objects: list[Any] = [None] * len(skeleton.nodes)

    def build(self) -> Any:
        """The root object. Raises SnapshotError when a node does not fit the classes here."""
        nodes, objects, make = self.skeleton.nodes, self.objects, self.make
        early = frozenset(self.skeleton.early)
        index = -1
        try:
            for index in early:
                objects[index] = self._shell(nodes[index])
            for index, node in enumerate(nodes):
                shell = objects[index] if index in early else None
                objects[index] = make[node["t"]](self, node, shell)
        except SnapshotError:
            raise
        except Exception as error:
            raise SnapshotError(
                f"node {index} of the skeleton ({nodes[index]['t']}) cannot be rebuilt: "
                f"{type(error).__name__}: {error}; are the libraries those of the manifest's "
                "environment?"
            ) from error
        return self.value(self.skeleton.root)

    def value(self, value: Any) -> Any:
        return self.objects[value[0]] if value.__class__ is list else value

    def values(self, values: list[Any]) -> list[Any]:
        objects = self.objects
        return [objects[v[0]] if v.__class__ is list else v for v in values]

    def by_key(self, state: dict[str, Any]) -> dict[str, Any]:
        objects = self.objects
        return {k: objects[v[0]] if v.__class__ is list else v for k, v in state.items()}

    def state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Attributes; their names interned, as attribute access expects."""
        objects, intern = self.objects, sys.intern
        return {intern(k): objects[v[0]] if v.__class__ is list else v for k, v in state.items()}

    def _shell(self, node: dict[str, Any]) -> Any:
        kind = node["t"]
        if kind in ("object", "module"):
            return object.__new__(self.classes[node["c"]])
        if kind == "default":
            return collections.defaultdict(_factory(node))
        return _EMPTY[kind]()

    def plain(self, node: dict[str, Any], shell: Any) -> Any:
        if "v" in node:
            return node["v"].copy()  # the skeleton may be built again
        return json.loads(self.asset(node["asset"]))

    def list_(self, node: dict[str, Any], shell: Any) -> Any:
        if shell is None:
            return self.values(node["v"])
        shell.extend(self.values(node["v"]))
        return shell

    def tuple_(self, node: dict[str, Any], shell: Any) -> Any:
        return tuple(self.values(node["v"]))

    def set_(self, node: dict[str, Any], shell: Any) -> Any:
        shell = set() if shell is None else shell
        shell.update(self.values(node["v"]))
        return shell

    def frozenset_(self, node: dict[str, Any], shell: Any) -> Any:
        return frozenset(self.values(node["v"]))

    def dict_(self, node: dict[str, Any], shell: Any) -> Any:
        shell = self._shell(node) if shell is None else shell
        if "s" in node:
            shell.update(self.by_key(node["s"]))
        else:
            shell.update(zip(self.values(node["k"]), self.values(node["v"]), strict=True))
        return shell

    def namedtuple(self, node: dict[str, Any], shell: Any) -> Any:
        cls = self.classes[node["c"]]
        if len(node["v"]) != len(cls._fields):
            raise DamagedSnapshot(
                f"{cls.__qualname__} has {len(cls._fields)} fields, the skeleton "
                f"holds {len(node['v'])}; its code is not what was frozen"
            )
        return tuple.__new__(cls, self.values(node["v"]))

    def float_(self, node: dict[str, Any], shell: Any) -> Any:
        return float(node["v"])

    def complex_(self, node: dict[str, Any], shell: Any) -> Any:
        return complex(float(node["v"][0]), float(node["v"][1]))

    def bytes_(self, node: dict[str, Any], shell: Any) -> Any:
        return base64.b64decode(node["v"]) if "v" in node else self.asset(node["asset"])

    def range_(self, node: dict[str, Any], shell: Any) -> Any:
        return range(*node["v"])

    def slice_(self, node: dict[str, Any], shell: Any) -> Any:
        return slice(*self.values(node["v"]))

    def path(self, node: dict[str, Any], shell: Any) -> Any:
        return pathlib.Path(node["v"])

    def time(self, node: dict[str, Any], shell: Any) -> Any:
        if node["c"] == "timedelta":
            return datetime.timedelta(*node["v"])
        return getattr(datetime, node["c"]).fromisoformat(node["v"])

    def enum(self, node: dict[str, Any], shell: Any) -> Any:
        return self.classes[node["c"]].__members__[node["v"]]

    def object_(self, node: dict[str, Any], shell: Any) -> Any:
        cls = self.classes[node["c"]]
        obj = object.__new__(cls) if shell is None else shell
        state = self.state(node["s"])
        for slot in names.slots(cls):
            if slot in state:
                _slot(cls, slot).__set__(obj, state.pop(slot))
        if state:
            vars(obj).update(state)
        return obj

    def named(self, node: dict[str, Any], shell: Any) -> Any:
        return self.classes[node["c"]]

    def partial(self, node: dict[str, Any], shell: Any) -> Any:
        keywords = self.by_key(node["k"])
        return functools.partial(self.value(node["f"]), *self.values(node["a"]), **keywords)

    def method(self, node: dict[str, Any], shell: Any) -> Any:
        owner = self.value(node["o"])
        for base in type(owner).__mro__:
            if node["v"] in vars(base):
                return vars(base)[node["v"]].__get__(owner)
        raise DamagedSnapshot(f"{type(owner).__qualname__} has no method {node['v']!r}")

    def weakref(self, node: dict[str, Any], shell: Any) -> Any:
        return weakref.ref(self.value(node["o"]))

    def tokenizer(self, node: dict[str, Any], shell: Any) -> Any:
        files = [self.asset(path) for path in node.get("files", [])]
        return tokenizer.put_together(self.asset(node["asset"]), files)

    def token(self, node: dict[str, Any], shell: Any) -> Any:
        from tokenizers import AddedToken

        content, single_word, lstrip, rstrip, normalized, special = node["v"]
        return AddedToken(
            content,
            single_word=single_word,
            lstrip=lstrip,
            rstrip=rstrip,
            normalized=normalized,
            special=special,
        )


def _factory(node: dict[str, Any]) -> Any:
    name = node["f"]
    return None if name is None else getattr(__import__("builtins"), name)


def _slot(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    raise AssertionError(name)  # names.slots found it there


_EMPTY: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "ordered": collections.OrderedDict,
    "set": set,
}

Make = Callable[[Builder, Node, Any], Any]

_MAKE: dict[str, Make] = {
    "plain": Builder.plain,
    "list": Builder.list_,
    "tuple": Builder.tuple_,
    "set": Builder.set_,
    "frozenset": Builder.frozenset_,
    "dict": Builder.dict_,
    "ordered": Builder.dict_,
    "default": Builder.dict_,
    "namedtuple": Builder.namedtuple,
    "float": Builder.float_,
    "complex": Builder.complex_,
    "bytes": Builder.bytes_,
    "range": Builder.range_,
    "slice": Builder.slice_,
    "path": Builder.path,
    "time": Builder.time,
    "enum": Builder.enum,
    "object": Builder.object_,
    "class": Builder.named,
    "function": Builder.named,
    "partial": Builder.partial,
    "method": Builder.method,
    "weakref": Builder.weakref,
    "tokenizer": Builder.tokenizer,
    "token": Builder.token,
    "unused": lambda builder, node, shell: None,
}
