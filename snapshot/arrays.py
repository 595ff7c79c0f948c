"""What a module is given and gives back: torch tensors, numpy arrays or nested lists.

A compiled module takes and returns memory (``strided.Array``); this file turns the author's kinds
into that and back. numpy and torch are used where the author has imported them, never imported.
"""

import array
import ctypes
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import chain
from typing import Any

from zerowake.snapshot.strided import ELEMENTS, Array, contiguous_strides, same_layout

_CODES = {
    "float64": "d",
    "float32": "f",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint8": "B",
    "bool": "b",
}
_SMALLEST_LARGEST = {
    **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}


class WrongRank(ValueError):
    """A value has another number of dimensions than is wanted."""


class WrongPrecision(TypeError):
    """A tensor has another floating dtype, of which the wanted one holds less."""


class Kind(StrEnum):
    """Which kind of arrays a call was given, and is answered with."""

    TORCH = "torch"
    NUMPY = "numpy"
    LIST = "list"


def kind_of(values: Iterable[Any]) -> Kind:
    """The most particular kind among ``values``: tensors before numpy arrays before lists."""
    kinds = {_kind(value) for value in values}
    return next(kind for kind in Kind if kind in kinds or kind is Kind.LIST)


def is_array(value: Any) -> bool:
    """Whether a module could compute with it: a tensor, an array, or a list that is not empty."""
    return _kind(value) is not Kind.LIST or (isinstance(value, list | tuple) and bool(value))


def take(value: Any, dtype: str, ndim: int) -> Array:
    """``value`` as dense memory of ``dtype``, converted and copied only where it must be.

    Raises WrongRank or WrongPrecision, and TypeError or ValueError for what has no such form.
    """
    match _kind(value):
        case Kind.TORCH:
            torch = sys.modules["torch"]
            wanted = getattr(torch, dtype)
            _refuse_loss(torch.can_cast(value.dtype, wanted), value, dtype)
            # A module computes in the dtype of its tensors, or refuses that; arrays and lists are
            # converted for it.
            if value.is_floating_point() and torch.promote_types(value.dtype, wanted) != wanted:
                raise WrongPrecision(f"values of {value.dtype}; wanted {dtype}")
            if value.numel() and _may_wrap(str(value.dtype).removeprefix("torch."), dtype):
                # what torch has no smallest of, uint64, is read as int64 of the same bits
                same = torch.int64 if value.dtype == torch.uint64 else value.dtype
                whole = value.detach().view(same).to(torch.int64)
                low, high = whole.min().item(), whole.max().item()
                if low < 0 and value.dtype == torch.uint64:
                    high = low + (1 << 64)
                    low = 0
                _refuse_wrap(low, high, value.dtype, dtype)
            plain = value.detach().resolve_conj().resolve_neg()  # or the memory has another sign
            tensor = plain.to("cpu", wanted).contiguous()
            made = Array(
                tensor.data_ptr(), dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor
            )
        case Kind.NUMPY:
            numpy = sys.modules["numpy"]
            if "numpy.ma" in sys.modules and isinstance(value, numpy.ma.MaskedArray):
                raise TypeError("a masked array; fill it before: array.filled(value)")
            _refuse_loss(numpy.can_cast(value.dtype, dtype, "same_kind"), value, dtype)
            if value.size and _may_wrap(value.dtype.name, dtype):
                _refuse_wrap(value.min().item(), value.max().item(), value.dtype, dtype)
            dense = numpy.ascontiguousarray(value, dtype)
            address = dense.__array_interface__["data"][0]
            shape = tuple(numpy.shape(value))
            made = Array(address, dtype, shape, contiguous_strides(shape), dense)
        case Kind.LIST:
            made = _from_lists(value, dtype, ndim)
    if len(made.shape) != ndim:
        raise WrongRank(f"{len(made.shape)} dimensions; wanted {ndim}")
    return made


def span(taken: Array) -> tuple[float, float]:
    """The smallest and the largest value of an array that ``take`` made; it is not empty."""
    owner = taken.owner
    if isinstance(owner, array.array):
        return min(owner), max(owner)
    return owner.min().item(), owner.max().item()


def give(found: Array, kind: Kind) -> Any:
    """An array as ``kind``; tensors and numpy arrays use its memory, lists copy it."""
    if not same_layout(found.shape, found.strides, contiguous_strides(found.shape)):
        raise ValueError(f"a result of shape {found.shape} is not dense: strides {found.strides}")
    itemsize, element = ELEMENTS[found.dtype]
    if kind is Kind.LIST:
        if element is None:
            raise TypeError(f"a result of {found.dtype} has no form as a list; use numpy or torch")
        flat = (element * found.count).from_address(found.address)[:] if found.count else []
        return _nested(flat, found.shape)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if not found.count:  # neither makes an array of a buffer without bytes
        if kind is Kind.NUMPY:
            return numpy.empty(found.shape, found.dtype)  # type: ignore[union-attr]
        return torch.empty(found.shape, dtype=getattr(torch, found.dtype))  # type: ignore[union-attr]
    memory = (ctypes.c_char * (itemsize * found.count)).from_address(found.address)
    # The owner lives as long as whoever looks at the memory.
    memory.owner = found.owner  # type: ignore[attr-defined]
    if kind is Kind.NUMPY:
        return numpy.frombuffer(memory, found.dtype).reshape(found.shape)  # type: ignore[union-attr]
    dtype = getattr(torch, found.dtype)
    return torch.frombuffer(memory, dtype=dtype).reshape(found.shape)  # type: ignore[union-attr]


def _refuse_loss(fits: bool, value: Any, dtype: str) -> None:
    """Fractions must not be cut off quietly; lists refuse that by themselves."""
    if not fits:
        raise TypeError(f"values of {value.dtype}; wanted {dtype}")


def _may_wrap(found: str, wanted: str) -> bool:
    """Whether integers of one type can lie past the ends of another."""
    if found not in _SMALLEST_LARGEST or wanted not in _SMALLEST_LARGEST:
        return False
    (low, high), (least, most) = _SMALLEST_LARGEST[found], _SMALLEST_LARGEST[wanted]
    return low < least or high > most


def _refuse_wrap(low: int, high: int, found: Any, wanted: str) -> None:
    """What lies past one end of ``wanted`` would come out quietly at its other end."""
    least, most = _SMALLEST_LARGEST[wanted]
    if low < least or high > most:
        value = low if low < least else high
        raise TypeError(f"{value} of {found}; wanted {wanted}, {least} to {most}")


def _kind(value: Any) -> Kind:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return Kind.TORCH
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return Kind.NUMPY
    return Kind.LIST


def _from_lists(value: Any, dtype: str, ndim: int) -> Array:
    shape: list[int] = []
    rows: Sequence[Any] = [value]
    for _ in range(ndim):
        sizes = {len(row) if isinstance(row, list | tuple) else -1 for row in rows}
        numbers = sizes == {-1} and all(isinstance(row, int | float) for row in rows)
        if numbers or (value is None and ndim):
            raise WrongRank(f"{len(shape)} dimensions; wanted {ndim}")
        if not sizes:
            raise ValueError(f"an empty list of {len(shape)} dimensions; wanted {ndim}")
        if len(sizes) != 1 or -1 in sizes:
            what = "lists of unequal lengths" if -1 not in sizes else "numbers and lists, mixed"
            raise ValueError(f"{what} at dimension {len(shape)}; wanted {ndim} dimensions")
        shape.append(sizes.pop())
        rows = list(chain.from_iterable(rows))
    if rows and all(isinstance(row, list | tuple) for row in rows):
        raise WrongRank(f"more than {ndim} dimensions; wanted {ndim}")
    if dtype not in _CODES:
        raise TypeError(f"lists have no form as {dtype}; use numpy or torch")
    if dtype == "bool" and not {0, 1}.issuperset(rows):  # any other byte is no bool
        raise TypeError("wanted only true and false, or 1 and 0")
    try:
        memory = array.array(_CODES[dtype], rows)
    except (TypeError, OverflowError) as error:
        raise TypeError(f"wanted {ndim} dimensions of {dtype}: {error}") from None
    address, _count = memory.buffer_info()
    return Array(address, dtype, tuple(shape), contiguous_strides(shape), memory)


def _nested(flat: list[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]
