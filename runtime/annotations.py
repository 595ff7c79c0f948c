"""Annotations to nodes: which schema and which reader a Python type gets.

Knows no functions, codecs or HTTP. pydantic, numpy and torch are not imported: an annotation of
theirs exists only where the author's code has imported them.
"""

import collections.abc
import dataclasses
import enum
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zerowake.runtime.arrays import array_annotation
from zerowake.runtime.errors import BadResult, DeclarationError, InvalidInput
from zerowake.runtime.jsontext import encode_json, encode_text, parse_json
from zerowake.runtime.nodes import (
    ANY,
    SCALARS,
    Member,
    Misfit,
    Node,
    array_node,
    choice_node,
    enum_node,
    map_node,
    object_node,
    spelled_node,
    tuple_node,
    union_node,
)

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")  # in the name of a schema

SUPPORTED = (
    "None, bool, int, float, str, bytes, list, tuple, set, dict with str keys, unions, Literal, Enum, "
    "dataclasses, TypedDict, pydantic models, numpy arrays, torch tensors, datetime, date, time, UUID, "
    "Decimal, Path, Any"
)

_ARRAYS: dict[Any, tuple[Callable[[list[Any]], Any], bool]] = {
    list: (list, False),
    collections.abc.Sequence: (list, False),
    collections.abc.MutableSequence: (list, False),
    collections.abc.Collection: (list, False),
    collections.abc.Iterable: (list, False),
    set: (set, True),
    collections.abc.Set: (set, True),
    collections.abc.MutableSet: (set, True),
    frozenset: (frozenset, True),
}
_MAPS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named value of an object. default: MISSING where there is none to show in the schema."""

    annotation: Any
    required: bool
    default: Any


class Builder:
    """Builds the nodes of one codec; named types are built once, so they may refer to themselves.

    where: names the parameter in errors. output: schemas describe what is sent, which for models and
    fields with defaults is not what is read.
    """

    def __init__(self, where: str = "", *, output: bool = False) -> None:
        self._where = [where] if where else []
        self._output = output
        self._definitions: dict[str, dict[str, Any]] = {}
        self._named: dict[Any, Node] = {}

    def schema(self, node: Node) -> dict[str, Any]:
        """The schema of ``node`` with the definitions that it refers to."""
        return {**node.schema, **({"$defs": self._definitions} if self._definitions else {})}

    def unwrap(self, annotation: Any) -> Any:
        """Without NewType, Annotated, Required and NotRequired, which say nothing about the value.

        A generic alias (``type Pair[T] = ...``, and NDArray since numpy 2.5) is filled in.
        """
        while True:
            if _is_alias(_origin(annotation)):
                arguments = typing.get_args(annotation)
                annotation = _origin(annotation).__value__[arguments]
            elif isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            elif _origin(annotation) in (typing.Annotated, typing.Required, typing.NotRequired):
                annotation = typing.get_args(annotation)[0]
            else:
                return annotation

    def node(self, annotation: Any) -> Node:
        annotation = self.unwrap(annotation)
        try:
            known = SCALARS.get(annotation) or self._named.get(annotation)
        except TypeError:  # unhashable, as Literal[[]] is
            known = None
        if known is not None:
            return known
        arguments = typing.get_args(annotation)
        origin = _origin(annotation) or annotation
        if origin in (typing.Union, types.UnionType):
            return union_node([self.node(argument) for argument in arguments])
        if origin is typing.Literal:
            return self._literal(annotation, arguments)
        if origin in _ARRAYS:
            make, unique = _ARRAYS[origin]
            return array_node(self._argument(arguments), make, unique=unique)
        if origin is tuple:
            if len(arguments) == 2 and arguments[1] is ...:
                return array_node(self.node(arguments[0]), tuple)
            if annotation is tuple or annotation is typing.Tuple:  # noqa: UP006
                return array_node(ANY, tuple)
            return tuple_node([self.node(argument) for argument in arguments])
        if origin in _MAPS:
            return self._map(annotation, arguments)
        try:
            node = array_annotation(annotation)
        except TypeError as error:
            raise self._unsupported(annotation, str(error)) from None
        return node or self._class(annotation)

    def object(
        self,
        title: str,
        parameters: Mapping[str, Parameter],
        construct: Callable[[dict[str, Any]], Any],
    ) -> Node:
        members = {}
        for name, parameter in parameters.items():
            self._where.append(f"{title}({name})")
            node = self.node(parameter.annotation)
            self._where.pop()
            schema = _with_default(node.schema, parameter.default)
            node = Node(schema, node.decode, node.wanted, node.types)
            members[name] = Member(node, parameter.required)
        return object_node(title, members, construct)

    def _class(self, annotation: Any) -> Node:
        if _is_alias(annotation):
            return self._define(
                annotation, annotation.__name__, lambda: self.node(annotation.__value__)
            )
        if not isinstance(annotation, type) or typing.get_args(annotation):
            raise self._unsupported(annotation)
        pydantic = sys.modules.get("pydantic")
        if pydantic is not None and issubclass(annotation, pydantic.BaseModel):
            return self._model(annotation)
        if spelled := spelled_node(annotation):
            return spelled
        if issubclass(annotation, enum.Enum):
            values = [member.value for member in annotation]
            return enum_node(annotation, self._scalars(annotation, values))
        name = annotation.__name__
        if dataclasses.is_dataclass(annotation):
            return self._define(annotation, name, lambda: self._dataclass(annotation))
        if issubclass(annotation, dict) and hasattr(annotation, "__required_keys__"):
            return self._define(annotation, name, lambda: self._typed_dict(annotation))
        raise self._unsupported(annotation)

    def _define(self, key: Any, name: str, build: Callable[[], Node]) -> Node:
        """A named type: its schema goes to $defs, and what lies inside it may refer to it."""
        label = self._label(name)
        cell: list[Node] = []
        reference = {"$ref": f"#/$defs/{label}"}
        self._definitions[label] = {}  # holds the label while the type is built
        self._named[key] = Node(reference, lambda value: cell[0].decode(value), name)
        built = build()
        cell.append(built)
        self._definitions[label] = built.schema
        self._named[key] = Node(reference, built.decode, built.wanted, built.types)
        return self._named[key]

    def _label(self, name: str) -> str:
        label = base = _UNFIT.sub("_", name)
        number = 1
        while label in self._definitions:
            number += 1
            label = f"{base}_{number}"
        return label

    def _dataclass(self, cls: type[Any]) -> Node:
        hints = self._hints(cls)
        parameters = {}
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            # A factory is not asked: what it makes (an id, the time) may differ from run to run,
            # and the schema is part of the snapshot's identity.
            missing = dataclasses.MISSING
            defaulted = field.default is not missing or field.default_factory is not missing
            parameters[field.name] = Parameter(
                hints[field.name], self._output or not defaulted, field.default
            )

        def construct(made: dict[str, Any]) -> Any:
            try:
                return cls(**made)
            except InvalidInput as error:
                raise Misfit(str(error)) from error
            except ValueError as error:  # the author's own check in __post_init__
                raise Misfit(_faults(error)) from error

        return self.object(cls.__name__, parameters, construct)

    def _typed_dict(self, cls: Any) -> Node:
        members = {}
        for name, hint in self._hints(cls).items():
            self._where.append(f"{cls.__name__}({name})")
            required = name in cls.__required_keys__
            # Under ``from __future__ import annotations`` the class itself misses these marks.
            if _origin(hint) in (typing.Required, typing.NotRequired):
                required = _origin(hint) is typing.Required
            members[name] = Member(self.node(hint), required)
            self._where.pop()
        return object_node(cls.__name__, members, lambda made: made)

    def _model(self, cls: Any) -> Node:
        """A pydantic model: its schema and its validators are its own."""
        known = self._named.get(cls)
        if known is not None:
            return known
        label = self._label(cls.__name__)
        try:
            schema = cls.model_json_schema(
                mode="serialization" if self._output else "validation",
                ref_template=f"#/$defs/{label}.{{model}}",
            )
        except Exception as error:
            raise self._unsupported(cls, f"pydantic has no schema for it: {error}") from error
        for name, inner in schema.pop("$defs", {}).items():
            self._definitions[f"{label}.{name}"] = inner
        self._definitions[label] = schema

        def decode(value: Any) -> Any:
            try:
                # From text, not from the parsed value: strict models take "2024-01-01" for a date
                # and an array for a tuple only where they know that they read JSON.
                return cls.model_validate_json(encode_text(value))
            except InvalidInput as error:
                raise Misfit(str(error)) from error
            except ValueError as error:
                raise Misfit(_faults(error)) from error

        node = Node({"$ref": f"#/$defs/{label}"}, decode, f"an object ({cls.__name__})")
        self._named[cls] = node
        return node

    def _literal(self, annotation: Any, values: tuple[Any, ...]) -> Node:
        plain = [value.value if isinstance(value, enum.Enum) else value for value in values]
        return choice_node(self._scalars(annotation, plain), values.__getitem__)

    def _scalars(self, annotation: Any, values: list[Any]) -> list[Any]:
        for value in values:
            if value is not None and type(value) not in (bool, int, float, str):
                raise self._unsupported(annotation, f"{value!r} is no JSON scalar")
        if not values:
            raise self._unsupported(annotation, "it has no values")
        return values

    def _argument(self, arguments: tuple[Any, ...]) -> Node:
        return self.node(arguments[0]) if arguments else ANY

    def _map(self, annotation: Any, arguments: tuple[Any, ...]) -> Node:
        if not arguments:
            return map_node(ANY)
        if self.unwrap(arguments[0]) is not str:
            raise self._unsupported(annotation, "the names in a JSON object are str")
        return map_node(self.node(arguments[1]))

    def _hints(self, cls: Any) -> dict[str, Any]:
        try:
            return typing.get_type_hints(cls, include_extras=True)
        except (NameError, TypeError, SyntaxError) as error:
            raise self._unsupported(
                cls, f"{error}; define what its annotations name at the top of the module"
            ) from error

    def _unsupported(self, annotation: Any, reason: str = "") -> DeclarationError:
        name = annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
        return DeclarationError(
            f"{': '.join(self._where)}: the annotation {name} has no JSON form"
            f"{f' ({reason})' if reason else ''}; supported are {SUPPORTED}"
        )


def _origin(annotation: Any) -> Any:
    return typing.get_origin(annotation)


def _is_alias(annotation: Any) -> bool:
    """Whether it was made by ``type X = ...`` (Python 3.12) or typing_extensions."""
    return type(annotation).__name__ == "TypeAliasType"


def _with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    """``schema`` that documents the default, where JSON can spell it."""
    if default is dataclasses.MISSING:
        return schema
    try:
        return {**schema, "default": parse_json(encode_json(default))}
    except BadResult:
        return schema


def _faults(error: ValueError) -> list[tuple[tuple[str | int, ...], str]]:
    """A validator's own words: each of pydantic's errors with its place, or the message."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return [((), str(error))]
    validation: Any = error
    details = validation.errors(include_url=False, include_context=False, include_input=False)
    return [(tuple(detail["loc"]), str(detail["msg"])) for detail in details]
