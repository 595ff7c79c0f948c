"""The skeleton: how the objects of a snapshot are rebuilt, as a table of nodes.

Knows no torch and no object: ``dismantle`` makes one, ``skeleton_parser`` reads and checks one,
``rebuild`` makes objects of it. docs/format.md says what each kind of node means.

A value is a JSON scalar (itself) or ``[n]``, the object of node n. A node names only nodes before
it, or nodes in ``early``, which can exist empty before they are filled; so one pass builds all.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FILE = "skeleton.json"
ASSETS = "assets/"
MAX_NODES = 5_000_000

# What may stand in ``early``: containers that can be made empty and filled afterwards.
SHELLS = frozenset({"list", "dict", "ordered", "default", "set", "object", "module"})

# kind -> (fields it must have, fields it may have), beside "t"
KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    kind: (frozenset(must.split()), frozenset(may.split()))
    for kind, must, may in (
        ("plain", "", "v asset"),
        ("list", "v", ""),
        ("tuple", "v", ""),
        ("set", "v", ""),
        ("frozenset", "v", ""),
        ("dict", "", "s k v"),
        ("ordered", "", "s k v"),
        ("default", "f", "s k v"),
        ("namedtuple", "c v", ""),
        ("float", "v", ""),
        ("complex", "v", ""),
        ("bytes", "", "v asset"),
        ("range", "v", ""),
        ("slice", "v", ""),
        ("path", "v", ""),
        ("time", "c v", ""),
        ("enum", "c v", ""),
        ("dtype", "v", ""),
        ("device", "v", ""),
        ("size", "v", ""),
        ("tensor", "i", "v p g s"),
        ("array", "i dtype shape", "strides o ro"),
        ("scalar", "dtype v", ""),
        ("object", "c s", ""),
        ("module", "c s", "p b m n"),
        ("class", "c", ""),
        ("function", "c", ""),
        ("partial", "f a k", ""),
        ("method", "o v", ""),
        ("weakref", "o", ""),
        ("tokenizer", "asset", "files"),
        ("token", "v", ""),
    )
}

# kind -> the fields in which values stand
_VALUES = {
    **dict.fromkeys(("list", "tuple", "set", "frozenset", "namedtuple", "slice"), "v"),
    **dict.fromkeys(("dict", "ordered", "default"), "skv"),
    "tensor": "s",
    "object": "s",
    "module": "spbm",
    "partial": "fak",
    **dict.fromkeys(("method", "weakref"), "o"),
}

_OF_TORCH = frozenset({"tensor", "array", "scalar", "module", "dtype", "device", "size"})
_AS_TOLD = {
    "array": "numpy array",
    "scalar": "numpy number",
    **{kind: f"torch.{kind}" for kind in ("dtype", "device")},
    "size": "torch.Size",
}


class Skeleton(NamedTuple):
    """``early``: indices of nodes; ``names``: (kind, "module:qualname"); ``root``: a value."""

    root: Any
    nodes: list[dict[str, Any]]
    early: list[int]
    names: list[tuple[str, str]]

    @property
    def needs_torch(self) -> bool:
        """Whether a node is of a kind that only torch or numpy can make."""
        return not _OF_TORCH.isdisjoint(node["t"] for node in self.nodes)


def prune(skeleton: Skeleton, replaced: Mapping[int, str]) -> Skeleton:
    """The same table with ``{"t": "compiled", "v": path}`` in place of some nodes.

    What only those have needed is left out: nodes become ``{"t": "unused"}``, names empty.
    """
    nodes: list[dict[str, Any]] = [{"t": "unused"}] * len(skeleton.nodes)
    waiting = [skeleton.root[0]] if isinstance(skeleton.root, list) else []
    while waiting:
        index = waiting.pop()
        if nodes[index]["t"] != "unused":
            continue
        if index in replaced:
            nodes[index] = {"t": "compiled", "v": replaced[index]}
            continue
        nodes[index] = node = skeleton.nodes[index]
        waiting += [value[0] for _, value in _values(node) if isinstance(value, list)]
    used = {node["c"] for node in nodes if isinstance(node.get("c"), int)}
    return Skeleton(
        skeleton.root,
        nodes,
        [index for index in skeleton.early if nodes[index]["t"] in SHELLS],
        [name if place in used else ("", "") for place, name in enumerate(skeleton.names)],
    )


def within_modules(skeleton: Skeleton, replaced: Mapping[int, str]) -> set[str]:
    """Which of the nodes to be replaced are part of a module that stays: torch wants its own there."""
    pruned = prune(skeleton, replaced)
    waiting = [index for index, node in enumerate(pruned.nodes) if node["t"] == "module"]
    seen, found = set(waiting), set()
    while waiting:
        node = pruned.nodes[waiting.pop()]
        if node["t"] == "compiled":
            found.add(node["v"])
        inside = {value[0] for _, value in _values(node) if isinstance(value, list)} - seen
        seen |= inside
        waiting += inside
    return found


def torch_at(skeleton: Skeleton) -> str | None:
    """Where the object holds something that only torch can make: ``self.table is a tensor``."""
    waiting, seen = deque([("self", skeleton.root)]), set[int]()
    while waiting:
        path, value = waiting.popleft()
        if not isinstance(value, list) or value[0] in seen:
            continue
        seen.add(value[0])
        node = skeleton.nodes[value[0]]
        kind = node["t"]
        if kind in _OF_TORCH:
            return f"{path} is a {_AS_TOLD.get(kind, kind)}"
        place = "{}.{}" if kind in ("object", "module") else "{}[{!r}]"
        for key, inside in _values(node):
            waiting.append((path if key is None else place.format(path, key), inside))
    return None


def _values(node: dict[str, Any]) -> Iterator[tuple[str | int | None, Any]]:
    """The values that stand in a node, each with its key or place; None for one that stands alone."""
    for field in _VALUES.get(node["t"], ""):
        values = node.get(field, [])
        if field in "of":  # one value, where the others hold a list or an object of them
            yield None, values
        else:
            yield from values.items() if isinstance(values, dict) else enumerate(values)


def encode(skeleton: Skeleton) -> bytes:
    """JSON of one node a line, in the order of the table; keys of dictionaries keep their order."""
    lines = [_line({"t": node["t"], **node}) for node in skeleton.nodes]
    head = {"names": skeleton.names, "early": skeleton.early, "root": skeleton.root}
    return (_line(head)[:-1] + ',"nodes":[\n' + ",\n".join(lines) + "\n]}").encode("ascii")


def _line(plain: object) -> str:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)
