"""What a module returns, as a structure of results: taken apart when it is compiled, put together at each call.

The structure is JSON (a pytree, docs/format.md section 8): ``{"t": "dict", "v": {...}}`` and the like,
with the places of results as leaves. Knows no tensor and no library.
"""

from collections.abc import Callable, Iterator
from typing import Any

from zerowake.snapshot.errors import CannotCompile, UnusableForm


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


def take_apart(value: Any, tensor: type, results: list[Any]) -> Any:
    """The structure of ``value``; each ``tensor`` in it is appended to ``results``.

    Raises CannotCompile for anything but tensors in containers.
    """
    if isinstance(value, tensor):
        results.append(value)
        return len(results) - 1
    if value is None:
        return None
    if isinstance(value, dict):  # a ModelOutput of transformers is one too
        if odd := [key for key in value if not isinstance(key, str)]:
            raise CannotCompile(
                f"a module returns a dictionary with a key {odd[0]!r:.80}; wanted str"
            )
        kind = "dict" if type(value) is dict else "output"
        return {"t": kind, "v": {k: take_apart(v, tensor, results) for k, v in value.items()}}
    if type(value) in (tuple, list):
        return {"t": type(value).__name__, "v": [take_apart(v, tensor, results) for v in value]}
    raise CannotCompile(
        f"a module returns a {type(value).__qualname__}; wanted tensors in containers"
    )


def put_together(tree: Any, result: Callable[[int], Any]) -> Any:
    """A value of the structure ``tree``; ``result`` gives its leaves by their places.

    Raises UnusableForm where ``tree`` is no structure.
    """
    match tree:
        case int(place):
            return result(place)
        case None:
            return None
        case {"t": "output", "v": fields}:
            return Output({name: put_together(each, result) for name, each in fields.items()})
        case {"t": "dict", "v": fields}:
            return {name: put_together(each, result) for name, each in fields.items()}
        case {"t": "tuple", "v": items}:
            return tuple(put_together(each, result) for each in items)
        case {"t": "list", "v": items}:
            return [put_together(each, result) for each in items]
    raise UnusableForm(f"a form has an output {tree!r:.80}")


def places(tree: Any) -> Iterator[int]:
    """The leaves of a structure."""
    if isinstance(tree, int):
        yield tree
    elif isinstance(tree, dict):
        inside = tree["v"]
        for each in inside.values() if isinstance(inside, dict) else inside:
            yield from places(each)
