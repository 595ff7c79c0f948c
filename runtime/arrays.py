"""Numpy arrays and torch tensors as nested lists of numbers.

Imports neither: an annotation of theirs exists only where the author's code has imported them.
Knows no other annotations.
"""

import sys
import typing
from typing import Any

from zerowake.runtime.nodes import Misfit, Node, shown

_TYPES = frozenset({"array", "number", "boolean"})


def array_annotation(annotation: Any) -> Node | None:
    """The node for ndarray, NDArray[dtype] or Tensor; None for any other annotation."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    origin = typing.get_origin(annotation) or annotation
    if numpy is not None and origin is numpy.ndarray:
        return _numpy_node(numpy, annotation)
    if torch is not None and origin is torch.Tensor:
        return _torch_node(torch)
    return None


def _node(decode: Any, number: list[str], name: str) -> Node:
    # One level only: a schema that recurses to every number would make the gateway, which serves
    # every function, pay per element; the instance finds ragged and odd ones anyway.
    types = ["array", *number]
    schema = {
        "type": types,
        "items": {"type": types},
        "description": f"{name}: lists nested as deep as it has dimensions, all of a level equally long",
    }
    return Node(schema, decode, "nested lists of numbers", _TYPES)


def _numpy_node(numpy: Any, annotation: Any) -> Node:
    scalar = _scalar_type(annotation)
    fixed = None if _is_abstract(numpy, scalar) else numpy.dtype(scalar)
    kind = fixed.kind if fixed is not None else "?"
    if kind not in "?biuf":
        raise TypeError(f"an array of {fixed} has no numbers that JSON can spell")

    def decode(value: Any) -> Any:
        try:
            found = numpy.asarray(value)
        except (ValueError, OverflowError, RecursionError):
            raise Misfit(f"wanted nested lists of one shape, found {shown(value)}") from None
        if found.dtype.kind not in "biuf" and found.size:
            raise Misfit(f"wanted nested lists of numbers, found {_odd(value)}")
        if fixed is None:
            made = found
            if scalar is not None and not issubclass(found.dtype.type, scalar):
                raise Misfit(f"wanted numbers of kind {scalar.__name__}, found {found.dtype}")
        else:
            allowed = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[kind]
            if found.size and found.dtype.kind not in allowed:
                raise Misfit(f"wanted numbers of type {fixed}, found {found.dtype}")
            with numpy.errstate(over="ignore"):
                made = found.astype(fixed)
            if kind in "iu" and not (made == found).all():
                raise Misfit(f"wanted numbers in the range of {fixed}")
        if made.dtype.kind == "f" and not numpy.isfinite(made).all():
            raise Misfit(f"wanted finite numbers in the range of {made.dtype}")
        return made

    number = {"b": ["boolean"], "i": ["integer"], "u": ["integer"], "f": ["number"]}
    name = f"array of {fixed}" if fixed is not None else "array"
    return _node(decode, number.get(kind, ["number", "boolean"]), name)


def _torch_node(torch: Any) -> Node:
    def decode(value: Any) -> Any:
        try:
            made = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise Misfit(
                f"wanted nested lists of numbers of one shape, found {_odd(value)}"
            ) from None
        if made.is_floating_point() and not torch.isfinite(made).all():
            raise Misfit(f"wanted finite numbers in the range of {made.dtype}")
        return made

    return _node(decode, ["number", "boolean"], "tensor")


def _odd(value: Any) -> str:
    """The first thing in nested lists that is no number, or the whole."""
    level = [value]
    while level and all(isinstance(item, list) for item in level):
        level = [item for part in level for item in part]
    odd = next((item for item in level if not isinstance(item, int | float)), value)
    return shown(odd)


def _scalar_type(annotation: Any) -> Any:
    """``float32`` of ``ndarray[..., dtype[float32]]``; None where it is open."""
    arguments = typing.get_args(annotation)
    scalars = typing.get_args(arguments[1]) if len(arguments) == 2 else ()
    scalar = typing.get_origin(scalars[0]) or scalars[0] if scalars else None
    return scalar if isinstance(scalar, type) else None


def _is_abstract(numpy: Any, scalar: Any) -> bool:
    """Whether ``scalar`` is a family (np.floating) rather than a type that an array can have."""
    families = "generic number integer signedinteger unsignedinteger inexact floating"
    return scalar is None or scalar in [getattr(numpy, name) for name in families.split()]
