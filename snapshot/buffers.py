"""Memory of other objects through Python's buffer protocol (PEP 3118), in and out.

Takes ``memoryview``, ``array.array`` and whatever else offers a buffer of numbers. Knows neither numpy
nor torch.
"""

import array
import ctypes
import struct
import sys
from collections.abc import Sequence
from ctypes import POINTER, PYFUNCTYPE, byref, c_char_p, c_int, c_ssize_t, c_void_p, py_object
from typing import Any

from zerowake.snapshot.strided import ELEMENTS, Array, contiguous_strides

_KINDS = {
    **dict.fromkeys("bhilqn", "int"),
    **dict.fromkeys("BHILQN", "uint"),
    **dict.fromkeys("efd", "float"),
    "?": "bool",
}
# dtype -> its letter in ``struct``; of bfloat16 the bits, which Python has no numbers for
LETTERS = {
    **{f"int{8 << place}": letter for place, letter in enumerate("bhiq")},
    **{f"uint{8 << place}": letter for place, letter in enumerate("BHIQ")},
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "bool": "?",
    "bfloat16": "H",
}
_OTHER_ORDER = (">", "!") if sys.byteorder == "little" else ("<",)


class _Buffer(ctypes.Structure):  # Py_buffer
    _fields_ = (
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", c_ssize_t),
        ("itemsize", c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", c_char_p),
        ("shape", POINTER(c_ssize_t)),
        ("strides", POINTER(c_ssize_t)),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    )


# Prototypes of our own: argtypes of ``pythonapi`` itself are shared with everybody in the process.
_api = ctypes.pythonapi
_get = PYFUNCTYPE(c_int, py_object, POINTER(_Buffer), c_int)(("PyObject_GetBuffer", _api))
_release = PYFUNCTYPE(None, POINTER(_Buffer))(("PyBuffer_Release", _api))
_view = PYFUNCTYPE(py_object, POINTER(_Buffer))(("PyMemoryView_FromBuffer", _api))
_FULL_READ_ONLY = 0x011C  # PyBUF_FULL_RO


def read(value: Any) -> Array:
    """The buffer of ``value``, held until the array is gone.

    It is used where it lies, but copied where it is read-only (a module may write into its input),
    big-endian, or its elements lie at odd addresses. Raises TypeError for anything but numbers,
    ValueError for a memoryview that was released.
    """
    view = memoryview(value)
    order, letter = view.format[:-1], view.format[-1:]
    if letter not in _KINDS or order not in ("", *"@=<>!"):
        raise TypeError(
            f"a buffer of format {view.format!r:.40}; wanted numbers, one of {' '.join(_KINDS)}"
        )
    kind = _KINDS[letter]
    dtype = kind if kind == "bool" else f"{kind}{8 * view.itemsize}"
    address = _address(view)
    assert view.shape is not None and view.strides is not None
    at = (address, *(step for size, step in zip(view.shape, view.strides, strict=True) if size > 1))
    swapped = order in _OTHER_ORDER
    if view.readonly or view.suboffsets or swapped or any(each % view.itemsize for each in at):
        raw = view.tobytes()
        if swapped:
            count = len(raw) // view.itemsize
            raw = struct.pack(f"={count}{letter}", *struct.unpack(f"{order}{count}{letter}", raw))
        return packed(array.array("B", raw), dtype, view.shape)
    strides = tuple(step // view.itemsize for step in view.strides)
    return Array(address, dtype, view.shape, strides, view)


def itemsize(dtype: str) -> int:
    """In bytes."""
    return struct.calcsize(f"={LETTERS[dtype]}")


def packed(memory: "array.array[Any]", dtype: str, shape: Sequence[int]) -> Array:
    """Memory of our own as a dense array."""
    return Array(memory.buffer_info()[0], dtype, tuple(shape), contiguous_strides(shape), memory)


def bytes_of(found: Array) -> bytes:
    """Its elements, row by row, whatever its strides."""
    if not found.count:
        return b""
    letter, ndim, size = LETTERS[found.dtype], len(found.shape), itemsize(found.dtype)
    whole = _Buffer(
        found.address, None, size * found.count, size, 1, ndim, letter.encode(),
        (c_ssize_t * ndim)(*found.shape),
        (c_ssize_t * ndim)(*(size * step for step in found.strides)),
    )  # fmt: skip
    return bytes(_view(byref(whole)).tobytes())  # ``whole`` outlives the view


def numbers_of(found: Array) -> Sequence[int | float]:
    """The same as Python's numbers; of bool only true and false, whatever lies there."""
    raw, letter = bytes_of(found), LETTERS[found.dtype]
    numbers = struct.unpack(f"={found.count}{letter}", raw)
    if found.dtype == "bfloat16":  # the upper half of a float32
        words = struct.pack(f"={found.count}I", *(bits << 16 for bits in numbers))
        return struct.unpack(f"={found.count}f", words)
    return numbers


def view_of(found: Array) -> memoryview:
    """A dense array as a memoryview of its memory, whose owner it keeps."""
    if not found.count:  # of several dimensions cast makes none
        kind = ELEMENTS[found.dtype][1]
        for size in reversed(found.shape):
            kind = kind * size
        return memoryview(kind())
    memory = (ctypes.c_char * (itemsize(found.dtype) * found.count)).from_address(found.address)
    memory.owner = found.owner  # type: ignore[attr-defined]
    return memoryview(memory).cast("B").cast(LETTERS[found.dtype], found.shape)  # type: ignore[call-overload,no-any-return]


def _address(view: memoryview) -> int:
    found = _Buffer()
    _get(view, byref(found), _FULL_READ_ONLY)
    try:
        return found.buf or 0
    finally:
        _release(byref(found))
