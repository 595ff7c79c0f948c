"""How one JSON value becomes one Python value: scalars, containers, objects, unions.

A ``Node`` is the JSON Schema of a value beside the function that reads it. Knows no annotations,
no arrays and no JSON text. A value that does not fit raises ``Misfit``, which gathers every fault
below it with its path, so that a caller sees all of them at once.
"""

import binascii
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

from zerowake.runtime.jsontext import MAX_NAME_NCHARS, Path

MAX_FAULTS = 50  # a reply that lists a million wrong numbers helps nobody
SHOWN_NCHARS = 40

ALL_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
_TYPE_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class Misfit(Exception):
    """A value does not fit: ``faults`` are (path below it, message)."""

    def __init__(self, faults: str | list[tuple[Path, str]]) -> None:
        super().__init__(faults)
        self.faults = [((), faults)] if isinstance(faults, str) else faults

    def under(self, step: str | int) -> list[tuple[Path, str]]:
        return [((step, *path), message) for path, message in self.faults]


@dataclass(frozen=True, slots=True)
class Node:
    """One place in a value.

    decode: from the parsed JSON value to the Python value; raises Misfit. wanted: what fits here,
    for messages. types: the JSON types that may fit, of "null", "boolean", "number", "string",
    "array", "object".
    """

    schema: dict[str, Any]
    decode: Callable[[Any], Any]
    wanted: str
    types: frozenset[str] = ALL_TYPES


@dataclass(frozen=True, slots=True)
class Member:
    """One field of an object; an absent optional one is left to its default."""

    node: Node
    required: bool = True


def shown(value: Any) -> str:
    """``value`` in a few words, for a message."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case str() if len(value) > SHOWN_NCHARS:
            return f"a string of {len(value)} characters"
        case str() | int() | float():
            text = repr(value)
            return text if len(text) <= SHOWN_NCHARS else f"{text[:SHOWN_NCHARS]}..."
        case list():
            return f"an array of {len(value)}"
        case _:
            return "an object"


def _misfit(wanted: str, value: Any) -> Never:
    raise Misfit(f"wanted {wanted}, found {shown(value)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known name is close to ``name``, else nothing."""
    import difflib  # only a mistake needs it

    if len(name) > MAX_NAME_NCHARS:  # the search takes seconds for a name of megabytes
        return ""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _scalar(schema: dict[str, Any], wanted: str, kind: str, decode: Callable[[Any], Any]) -> Node:
    return Node(schema, decode, wanted, frozenset({kind}))


def _exact(type_: type, wanted: str) -> Callable[[Any], Any]:
    def decode(value: Any) -> Any:
        if type(value) is type_:
            return value
        _misfit(wanted, value)

    return decode


def _int(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():  # JSON Schema counts 1.0 as an integer
        return int(value)
    _misfit("an integer", value)


def _float(value: Any) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    _misfit("a number in the range of a double", value)


def _text(wanted: str, schema: dict[str, Any], read: Callable[[str], Any]) -> Node:
    def decode(value: Any) -> Any:
        if type(value) is str:
            try:
                return read(value)
            except (ValueError, ArithmeticError):
                pass
        _misfit(wanted, value)

    return _scalar({"type": "string", **schema}, wanted, "string", decode)


def _base64(value: str) -> bytes:
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except binascii.Error as error:
        raise Misfit(f"wanted bytes in base64: {error}") from None


ANY = Node({}, lambda value: value, "anything")
NULL = _scalar({"type": "null"}, "null", "null", _exact(type(None), "null"))

SCALARS: dict[Any, Node] = {
    Any: ANY,
    object: ANY,
    None: NULL,
    type(None): NULL,
    bool: _scalar({"type": "boolean"}, "true or false", "boolean", _exact(bool, "true or false")),
    int: _scalar({"type": "integer"}, "an integer", "number", _int),
    float: _scalar({"type": "number"}, "a number", "number", _float),
    str: _scalar({"type": "string"}, "a string", "string", _exact(str, "a string")),
    bytes: _text("bytes in base64", {"contentEncoding": "base64"}, _base64),
}


# Standard types that are spelled as strings, by their names: importing them is left to the author.
_SPELLED: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "datetime.datetime": ("a date and time in ISO 8601", {"format": "date-time"}, "fromisoformat"),
    "datetime.date": ("a date in ISO 8601", {"format": "date"}, "fromisoformat"),
    "datetime.time": ("a time in ISO 8601", {"format": "time"}, "fromisoformat"),
    "uuid.UUID": ("a UUID", {"format": "uuid"}, None),
    "decimal.Decimal": ("a decimal number in a string", {}, None),
    "pathlib.Path": ("a path", {}, None),
    "pathlib._local.Path": ("a path", {}, None),  # its name in Python 3.13
}


def spelled_node(cls: type[Any]) -> Node | None:
    """The node for a standard type that JSON spells as a string; None for any other class."""
    found = _SPELLED.get(f"{cls.__module__}.{cls.__qualname__}")
    if found is None:
        return None
    wanted, schema, method = found
    read = getattr(cls, method) if method else cls

    def finite(value: str) -> Any:
        number = read(value)
        if not number.is_finite():  # Decimal takes NaN and Infinity
            raise ValueError(value)
        return number

    return _text(wanted, schema, finite if hasattr(cls, "is_finite") else read)


def choice_node(values: Sequence[Any], pick: Callable[[int], Any]) -> Node:
    """One of ``values`` (JSON scalars); ``pick`` makes the result from the index of the match."""
    wanted = "one of " + ", ".join(map(shown, values))

    def decode(value: Any) -> Any:
        for index, candidate in enumerate(values):
            if value == candidate and isinstance(value, bool) is isinstance(candidate, bool):
                return pick(index)
        _misfit(wanted, value)

    return Node({"enum": list(values)}, decode, wanted, frozenset(map(type_name, values)))


def type_name(value: Any) -> str:
    """The JSON type of a parsed value."""
    return _TYPE_NAMES[type(value)]


def enum_node(cls: type[enum.Enum], values: Sequence[Any]) -> Node:
    members = list(cls)
    node = choice_node(values, members.__getitem__)
    return Node({"title": cls.__name__, **node.schema}, node.decode, node.wanted, node.types)


def _made(elements: Iterable[tuple[str | int, Any]], make: Callable[[Any], Any]) -> list[Any]:
    """What ``make`` makes of each, given with its place. Raises Misfit with all their faults."""
    made: list[Any] = []
    faults: list[tuple[Path, str]] = []
    for place, element in elements:
        try:
            made.append(make(element))
        except Misfit as misfit:
            faults += misfit.under(place)
            if len(faults) >= MAX_FAULTS:
                break
    if faults:
        raise Misfit(faults)
    return made


def array_node(item: Node, make: Callable[[list[Any]], Any], *, unique: bool = False) -> Node:
    """An array of any length, made into what ``make`` returns (list, tuple, set ...)."""
    wanted = f"an array of {item.wanted}" if item is not ANY else "an array"
    schema: dict[str, Any] = {"type": "array", "items": item.schema}
    if unique:
        schema["uniqueItems"] = True

    def decode(value: Any) -> Any:
        if type(value) is not list:
            _misfit(wanted, value)
        made = make(_made(enumerate(value), item.decode))
        if unique and len(made) < len(value):
            raise Misfit("wanted each item once, found duplicates")
        return made

    return Node(schema, decode, wanted, frozenset({"array"}))


def tuple_node(items: Sequence[Node]) -> Node:
    """An array of exactly these items."""
    wanted = f"an array of {len(items)}: [{', '.join(item.wanted for item in items)}]"
    schema: dict[str, Any] = {"type": "array", "minItems": len(items), "maxItems": len(items)}
    if items:
        schema |= {"prefixItems": [item.schema for item in items], "items": False}

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            _misfit(wanted, value)
        readers = iter(items)
        return tuple(_made(enumerate(value), lambda element: next(readers).decode(element)))

    return Node(schema, decode, wanted, frozenset({"array"}))


def map_node(item: Node) -> Node:
    """An object with any names and one kind of value."""
    wanted = f"an object of {item.wanted}" if item is not ANY else "an object"

    def decode(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            _misfit(wanted, value)
        return dict(zip(value, _made(value.items(), item.decode), strict=True))

    schema = {"type": "object", "additionalProperties": item.schema}
    return Node(schema, decode, wanted, frozenset({"object"}))


def object_node(
    title: str, members: Mapping[str, Member], construct: Callable[[dict[str, Any]], Any]
) -> Node:
    """An object with these fields and no others; ``construct`` gets those that are present."""
    wanted = f"an object ({title})"

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            _misfit(wanted, value)
        made: dict[str, Any] = {}
        faults: list[tuple[Path, str]] = []
        for name, member in members.items():
            if name in value:
                try:
                    made[name] = member.node.decode(value[name])
                except Misfit as misfit:
                    faults += misfit.under(name)
            elif member.required:
                faults.append(((name,), f"required and missing; wanted {member.node.wanted}"))
        unknown = [name for name in value if name not in members] if len(value) > len(made) else []
        for name in unknown[:MAX_FAULTS]:
            known = ", ".join(members) or "none"
            faults.append(((name,), f"unknown field{nearest(name, members)}; known: {known}"))
        if faults:
            raise Misfit(faults)
        return construct(made)

    schema: dict[str, Any] = {
        "type": "object",
        "title": title,
        "properties": {name: member.node.schema for name, member in members.items()},
        "required": [name for name, member in members.items() if member.required],
        "additionalProperties": False,
    }
    return Node(schema, decode, wanted, frozenset({"object"}))


def union_node(choices: Sequence[Node]) -> Node:
    """The first of ``choices`` that fits, in the order in which the author wrote them."""
    wanted = " or ".join(choice.wanted for choice in choices)

    def decode(value: Any) -> Any:
        likely = [choice for choice in choices if type_name(value) in choice.types]
        for choice in likely:
            try:
                return choice.decode(value)
            except Misfit:
                if len(likely) == 1:  # it must have been meant: its own faults say more
                    raise
        _misfit(wanted, value)

    types = frozenset().union(*(choice.types for choice in choices))
    return Node({"anyOf": [choice.schema for choice in choices]}, decode, wanted, types)
