"""Conditions on sizes that a compiled library takes for granted, as text: ``s1 % 2 == 0``.

torch.export writes them down where a ``forward`` has branched on a shape. They come with a form, so
only sums of sizes are read: no attribute, no other name.
"""

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

Condition = Callable[[Mapping[str, int]], bool]

_FUNCTIONS = {"max": max, "min": min, "abs": abs}
_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call),
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.cmpop),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod),
)


def in_words(text: str, inputs: Iterable[tuple[str, Sequence[int | str]]]) -> str:
    """``text`` with the author's words for sizes, ``ids.shape[1]``; inputs: names and shapes."""
    places: dict[str, str] = {}
    for argument, shape in inputs:
        for dim, size in enumerate(shape):
            if isinstance(size, str):
                places.setdefault(size, f"{argument}.shape[{dim}]")
    return re.sub(r"\w+", lambda found: places.get(found[0], found[0]), text)


def parse(text: str, names: Collection[str]) -> Condition:
    """Whether sizes, by name, meet it. Raises ValueError for what is no condition on ``names``."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        raise ValueError(f"a condition {text!r:.200}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        known = isinstance(node, _NODES)
        if isinstance(node, ast.Name):
            known = node.id in (_FUNCTIONS if id(node) in called else names)
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and not node.keywords
        elif isinstance(node, ast.Constant):
            known = type(node.value) in (int, float)
        if not known:
            raise ValueError(f"a condition {text!r:.200}")
    code = compile(tree, "<condition>", "eval")

    def is_met(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {}, **_FUNCTIONS}, dict(sizes)))
        except ZeroDivisionError:
            return False

    return is_met
