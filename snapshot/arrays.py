"""What a module is given and gives back: torch tensors, numpy arrays, buffers or nested lists.

A compiled module takes and returns memory (``strided.Array``); this file turns the author's kinds
into that and back. numpy and torch are used where the author has imported them, never imported;
other libraries' arrays come by DLPack (``dlpack``), ``array.array`` and the like as buffers
(``buffers``), both imported at the first of these.
"""

import array
import ctypes
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from types import NoneType
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
    DLPACK = "dlpack"  # of any other library; answered with an object that speaks it too
    BUFFER = "buffer"  # array.array, memoryview, ...; answered with a memoryview
    LIST = "list"


def kind_of(values: Iterable[Any]) -> Kind:
    """The most particular kind among ``values``, in the order of ``Kind``."""
    kinds = {_kind(value) for value in values}
    return next(kind for kind in Kind if kind in kinds or kind is Kind.LIST)


def is_array(value: Any) -> bool:
    """Whether a module could compute with it: a tensor, an array, or a list that is not empty."""
    return _kind(value) is not Kind.LIST or (isinstance(value, list | tuple) and bool(value))


def take(value: Any, dtype: str, ndim: int) -> Array:
    """``value`` as dense memory of ``dtype``, converted and copied only where it must be.

    Raises WrongRank or WrongPrecision, TypeError, ValueError or BufferError for what has no such
    form.
    """
    match kind := _kind(value):
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
            if not dense.flags.aligned:
                dense = dense.copy()
            address = dense.__array_interface__["data"][0]
            shape = tuple(numpy.shape(value))
            made = Array(address, dtype, shape, contiguous_strides(shape), dense)
        case Kind.DLPACK | Kind.BUFFER:
            made = _dense(_read(value, kind), dtype)
        case Kind.LIST:
            made = _from_lists(value, dtype, ndim)
    if len(made.shape) != ndim:
        raise WrongRank(f"{len(made.shape)} dimensions; wanted {ndim}")
    return made


def as_tensor(value: Any) -> Any:
    """Any kind as a tensor, in the dtype that it has; of numbers in lists torch chooses it.

    Uses the memory of ``value`` where torch can. Raises what torch and ``take`` do.
    """
    torch, kind = sys.modules["torch"], _kind(value)
    if kind not in (Kind.DLPACK, Kind.BUFFER):
        return torch.as_tensor(value)
    found = _read(value, kind)
    return _tensor(_dense(found, found.dtype))


def span(taken: Array) -> tuple[float, float]:
    """The smallest and the largest value of an array that ``take`` made; it is not empty."""
    owner = taken.owner
    if hasattr(owner, "item"):  # numpy's or torch's
        return owner.min().item(), owner.max().item()
    values = _flat(taken)
    return min(values), max(values)


def give(found: Array, kind: Kind) -> Any:
    """An array as ``kind``; lists copy its memory, all others use it and keep its owner."""
    if not same_layout(found.shape, found.strides, contiguous_strides(found.shape)):
        raise ValueError(f"a result of shape {found.shape} is not dense: strides {found.strides}")
    if kind is Kind.TORCH:
        return _tensor(found)
    if kind is Kind.NUMPY:
        numpy: Any = sys.modules["numpy"]
        if not found.count:  # it makes no array of a buffer without bytes
            return numpy.empty(found.shape, found.dtype)
        memory = _memory(found, numpy.dtype(found.dtype).itemsize)
        return numpy.frombuffer(memory, found.dtype).reshape(found.shape)
    if ELEMENTS.get(found.dtype, (0, None))[1] is None:
        what = "list" if kind is Kind.LIST else "buffer"
        raise TypeError(f"a result of {found.dtype} has no form as a {what}; use numpy or torch")
    if kind is Kind.LIST:
        return _nested(_flat(found), found.shape)
    from zerowake.snapshot import buffers, dlpack

    return (buffers.view_of if kind is Kind.BUFFER else dlpack.lend)(found)


def _tensor(found: Array) -> Any:
    torch: Any = sys.modules["torch"]
    dtype = getattr(torch, found.dtype)
    if not found.count:  # it makes no tensor of a buffer without bytes
        return torch.empty(found.shape, dtype=dtype)
    return torch.frombuffer(_memory(found, dtype.itemsize), dtype=dtype).reshape(found.shape)


def _memory(found: Array, itemsize: int) -> Any:
    memory = (ctypes.c_char * (itemsize * found.count)).from_address(found.address)
    # The owner lives as long as whoever looks at the memory.
    memory.owner = found.owner  # type: ignore[attr-defined]
    return memory


def _flat(found: Array) -> list[Any]:
    """The elements of a dense array."""
    element = ELEMENTS[found.dtype][1]
    return (element * found.count).from_address(found.address)[:] if found.count else []


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
    if isinstance(value, list | tuple | int | float | str | bytes | bytearray | NoneType):
        return Kind.LIST  # bytes are text or files more often than numbers
    if hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__"):
        return Kind.DLPACK
    try:
        memoryview(value)
    except (TypeError, BufferError):
        return Kind.LIST
    except ValueError:  # one that was released
        pass
    return Kind.BUFFER


def _read(value: Any, kind: Kind) -> Array:
    from zerowake.snapshot import buffers, dlpack

    return buffers.read(value) if kind is Kind.BUFFER else dlpack.borrow(value)


def _dense(found: Array, dtype: str) -> Array:
    """Memory of others as dense memory of ``dtype``: itself where it is that already."""
    from zerowake.snapshot import buffers

    dense = contiguous_strides(found.shape)
    if found.dtype != dtype or dtype == "bool":  # of which any byte but 0 and 1 is none
        return _packed(buffers.numbers_of(found), dtype, found.shape)
    aligned = found.address % buffers.itemsize(dtype) == 0
    if found.count and not (aligned and same_layout(found.shape, found.strides, dense)):
        return buffers.packed(array.array("B", buffers.bytes_of(found)), dtype, found.shape)
    return replace(found, strides=dense)


def _from_lists(value: Any, dtype: str, ndim: int) -> Array:
    if isinstance(value, bytes | bytearray):
        raise TypeError("bytes say neither shape nor type: memoryview(value).cast(format, shape)")
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
    return _packed(rows, dtype, shape)


def _packed(numbers: Sequence[Any], dtype: str, shape: Sequence[int]) -> Array:
    """Python's numbers as memory of ``dtype``."""
    if dtype not in _CODES:
        raise TypeError(f"lists have no form as {dtype}; use numpy or torch")
    if dtype == "bool" and not {0, 1}.issuperset(numbers):  # any other byte is no bool
        raise TypeError("wanted only true and false, or 1 and 0")
    try:
        memory = array.array(_CODES[dtype], numbers)
    except (TypeError, OverflowError) as error:
        raise TypeError(f"wanted {len(shape)} dimensions of {dtype}: {error}") from None
    address, _count = memory.buffer_info()
    return Array(address, dtype, tuple(shape), contiguous_strides(shape), memory)


def _nested(flat: list[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]
