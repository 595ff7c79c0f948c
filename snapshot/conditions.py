"""Conditions on sizes that a compiled library takes for granted, as text: ``s1 % 2 == 0``.

torch.export writes them down where a ``forward`` has branched on a shape, and Inductor where it has
taken a size for a constant. They come with a form, so they are read as arithmetic, never run as Python.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

Condition = Callable[[Mapping[str, int]], bool]
_Value = Callable[[Mapping[str, int]], Any]

_LONGEST = 2000  # characters: parsing nests as deeply as the text
_HIGHEST = 8  # power
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
# Names, and how many arguments they take: at least, at most.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, float]] = {
    "max": (max, 2, math.inf),
    "min": (min, 2, math.inf),
    **{name: (made, 1, 1) for name, made in (("abs", abs), ("int", int), ("float", float))},
    **{f"math.{name}": (getattr(math, name), 1, 1) for name in ("trunc", "floor", "ceil")},
}


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
    wrong = ValueError(f"a condition {text!r:.200}")
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise wrong
    try:
        value = _read(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        raise wrong from None

    def is_met(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(value(sizes))
        except ArithmeticError:
            return False

    return is_met


def _read(node: ast.expr, names: Collection[str]) -> _Value:
    """What a part of a condition is for given sizes. Raises ValueError for any other Python."""

    def read(*nodes: ast.expr) -> list[_Value]:
        return [_read(each, names) for each in nodes]

    match node:
        case ast.Constant(value=number) if type(number) in (int, float):
            return lambda sizes: number
        case ast.Name(id=name) if name in names:
            return lambda sizes: sizes[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            (one,) = read(operand)
            return lambda sizes: not one(sizes)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            (one,) = read(operand)
            return lambda sizes: -one(sizes)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            if not 0 <= power <= _HIGHEST:
                raise ValueError
            (one,) = read(left)
            return lambda sizes: one(sizes) ** power
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            first, second = read(left, right)
            operation = _BINARY[type(op)]
            return lambda sizes: operation(first(sizes), second(sizes))
        case ast.BoolOp(op=op, values=values):
            parts, joined = read(*values), all if isinstance(op, ast.And) else any
            return lambda sizes: joined(part(sizes) for part in parts)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
            first, second = read(left, right)
            compared = _COMPARED[type(op)]
            return lambda sizes: compared(first(sizes), second(sizes))
        case ast.Compare(left=left, ops=ops, comparators=more) if len(ops) > 1:
            chain = [left, *more]
            pairs = read(
                *(ast.Compare(chain[at], [op], [chain[at + 1]]) for at, op in enumerate(ops))
            )
            return lambda sizes: all(pair(sizes) for pair in pairs)
        case ast.Call(func=func, args=args, keywords=[]):
            function, least, most = _FUNCTIONS.get(ast.unparse(func), (None, 0, 0))
            if function is None or not least <= len(args) <= most:
                raise ValueError
            parts = read(*args)
            return lambda sizes: function(*(part(sizes) for part in parts))
    raise ValueError
