"""Arrays of other libraries by DLPack (https://dmlc.github.io/dlpack/latest/), in and out.

Reads both kinds of capsules and lends memory as either; the CPU's only. Knows neither numpy nor torch.
"""

import array
import ctypes
import functools
from ctypes import (
    CFUNCTYPE,
    POINTER,
    PYFUNCTYPE,
    Structure,
    addressof,
    byref,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)
from typing import Any

from zerowake.snapshot.buffers import LETTERS, bytes_of, packed
from zerowake.snapshot.strided import ELEMENTS, Array, contiguous_strides

_CPU = (1, 0)  # device, and which one of them
_ELSEWHERE = {2: "CUDA", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}
_MAJOR, _MINOR = 1, 0
_READ_ONLY, _IS_COPIED = 1, 2
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
_CODES = {name: code for code, name in _KINDS.items()}
_BOOL = 6
_MOST_DIMENSIONS = 64  # of a memoryview


class _Type(Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class _Tensor(Structure):  # DLTensor
    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype", _Type),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):  # DLManagedTensor
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))


class _Versioned(Structure):  # DLManagedTensorVersioned
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


def _forever(value: Any) -> Any:
    """What C may still call or read while Python takes its modules apart."""
    ctypes.pythonapi.Py_IncRef(py_object(value))
    return value


_NAMES: dict[type[Structure], tuple[bytes, bytes]] = {
    _Versioned: (_forever(b"dltensor_versioned"), _forever(b"used_dltensor_versioned")),
    _Managed: (_forever(b"dltensor"), _forever(b"used_dltensor")),
}
_UNUSED = tuple(name for name, _used in _NAMES.values())
_api = ctypes.pythonapi
_is_valid = PYFUNCTYPE(c_int, py_object, c_char_p)(("PyCapsule_IsValid", _api))
_pointer = PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_rename = PYFUNCTYPE(c_int, py_object, c_char_p)(("PyCapsule_SetName", _api))
_capsule = PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", _api))
# The same of a capsule that is just being freed, which must not be counted as an object again.
_was_valid = PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_last_pointer = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))
_Deleter = CFUNCTYPE(None, c_void_p)


class _Borrowed:
    """A tensor that was handed over to us: with this object it is given back, once."""

    __slots__ = ("_deleter", "_managed")

    def __init__(self, managed: int, deleter: int | None) -> None:
        self._managed, self._deleter = managed, deleter

    def __del__(self, as_deleter: Any = _Deleter) -> None:
        if self._deleter:
            as_deleter(self._deleter)(self._managed)


def borrow(value: Any) -> Array:
    """The memory of ``value``, given back when the array is gone; copied where it is read-only.

    Raises BufferError for memory of another device, for anything but numbers that lie one by one,
    and for a capsule that cannot be used.
    """
    _check_device(value.__dlpack_device__()[0])
    try:
        capsule = value.__dlpack__(max_version=(_MAJOR, _MINOR))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = value.__dlpack__()
    kind = next((each for each in _NAMES if _is_valid(capsule, _NAMES[each][0])), None)
    if kind is None:
        raise BufferError(
            f"__dlpack__ of {type(value).__qualname__} gave no capsule with a tensor that is unused"
        )
    name, used = _NAMES[kind]
    address = _pointer(capsule, name)
    managed: Any = kind.from_address(address)
    read_only = False
    if kind is _Versioned:
        if managed.major != _MAJOR:  # unused, the capsule deletes it itself
            raise BufferError(f"a tensor of DLPack {managed.major}; wanted {_MAJOR}")
        read_only = bool(managed.flags & _READ_ONLY)
    _rename(capsule, used)
    found = _array(managed.tensor, _Borrowed(address, managed.deleter))
    if read_only:
        return packed(array.array("B", bytes_of(found)), found.dtype, found.shape)
    return found


def _check_device(device: int) -> None:
    if device != _CPU[0]:
        where = _ELSEWHERE.get(device, f"DLPack's number {device}")
        raise BufferError(
            f"an array in the memory of a device ({where}); copy it to the CPU before"
        )


def _array(tensor: Any, owner: _Borrowed) -> Array:
    _check_device(tensor.device)
    kind = tensor.dtype
    dtype = f"{_KINDS.get(kind.code)}{kind.bits}"
    if kind.code == _BOOL:
        dtype = "bool" if kind.bits == 8 else "None"
    if dtype not in LETTERS or kind.lanes != 1:
        raise BufferError(
            f"a tensor of DLPack type {kind.code}, {kind.bits} bits times {kind.lanes}; wanted "
            f"one of {', '.join(LETTERS)}"
        )
    ndim = tensor.ndim
    if not 0 <= ndim <= _MOST_DIMENSIONS:
        raise BufferError(f"a tensor of {ndim} dimensions; wanted 0 to {_MOST_DIMENSIONS}")
    shape = tuple(tensor.shape[:ndim]) if ndim else ()
    strides = tuple(tensor.strides[:ndim]) if ndim and tensor.strides else contiguous_strides(shape)
    found = Array((tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, owner)
    if min(shape, default=0) < 0 or (found.count and not tensor.data):
        raise BufferError(f"a tensor of shape {shape} at address {tensor.data or 0}")
    return found


# ---- lent to others

# Each tensor that was lent, by its address: it, its sizes and whose memory it is, until it is deleted.
_lent: dict[int, tuple[Structure, Any, Any]] = {}


def _give_back(managed: int, forget: Any = _lent.pop) -> None:
    forget(managed, None)


def _unused(
    capsule: int,
    forget: Any = _lent.pop,
    is_valid: Any = _was_valid,
    pointer: Any = _last_pointer,
    names: Any = _UNUSED,
) -> None:
    """A capsule ends; where nobody has used it, so does what it holds."""
    for name in names:
        if is_valid(capsule, name):
            forget(pointer(capsule, name), None)


_deleter, _destructor = _forever(_Deleter(_give_back)), _forever(_Deleter(_unused))


class _Lends:
    """The part of a result that speaks DLPack; the other part is an array of ctypes."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: str

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule with this memory, or with a copy of it. Raises BufferError for other devices."""
        if stream is not None or (dl_device is not None and tuple(dl_device) != _CPU):
            raise BufferError("a result lies in the CPU's memory, which has no streams")
        source: Any = self
        if copy:
            source = type(source).from_buffer_copy(self)
        kind = _Managed if max_version is None or max_version[0] < _MAJOR else _Versioned
        managed: Any = kind(deleter=ctypes.cast(_deleter, c_void_p).value)
        if kind is _Versioned:
            managed.major, managed.minor = _MAJOR, _MINOR
            managed.flags = _IS_COPIED if copy else 0
        ndim = len(self.shape)
        sizes = (c_int64 * (2 * ndim))(*self.shape, *contiguous_strides(self.shape))
        tensor = managed.tensor
        tensor.data, (tensor.device, tensor.device_id) = addressof(source), _CPU
        tensor.ndim, tensor.dtype = ndim, _type(self.dtype)
        tensor.shape = ctypes.cast(sizes, POINTER(c_int64))
        tensor.strides = ctypes.cast(byref(sizes, 8 * ndim), POINTER(c_int64))
        _lent[addressof(managed)] = managed, sizes, source
        destructor = ctypes.cast(_destructor, c_void_p).value
        return _capsule(addressof(managed), _NAMES[kind][0], destructor)


def lend(found: Array) -> Any:
    """A dense array as an object that speaks DLPack and offers its memory as a buffer.

    It has ``shape`` and ``dtype``, and can be indexed, as arrays of ctypes are.
    """
    kind = _result(found.dtype, found.shape)
    if not found.count:
        return kind()
    made = kind.from_address(found.address)
    made.owner = found.owner
    return made


@functools.lru_cache(maxsize=64)
def _result(dtype: str, shape: tuple[int, ...]) -> Any:
    # Of ctypes, because before Python 3.12 no class that is written in Python has a buffer.
    kind = ELEMENTS[dtype][1]
    for size in reversed(shape):
        kind = kind * size
    return type("Result", (_Lends, kind), {"dtype": dtype, "shape": shape})


def _type(dtype: str) -> _Type:
    if dtype == "bool":
        return _Type(_BOOL, 8, 1)
    name = dtype.rstrip("0123456789")
    return _Type(_CODES[name], int(dtype.removeprefix(name)), 1)
