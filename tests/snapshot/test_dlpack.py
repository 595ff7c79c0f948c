"""``zerowake.snapshot.dlpack``: tensors that other libraries lend, and that are lent to them."""

import ctypes
import gc
import weakref
from typing import Any

import numpy
import pytest
import torch
from lenders import Only

from zerowake.snapshot import dlpack
from zerowake.snapshot.arrays import Kind, as_tensor, give, is_array, kind_of, span, take
from zerowake.snapshot.strided import Array, contiguous_strides


class Raw:
    """A tensor made here, each of its fields as a test wants it; counts how often it is deleted."""

    def __init__(self, kind: Any = dlpack._Versioned, name: bytes = b"", **fields: Any) -> None:
        self.memory = (ctypes.c_float * 6)(0, 1, 2, 3, 4, 5)
        self.deleted: list[int] = []
        self.deleter = dlpack._Deleter(self.deleted.append)
        self.device = fields.get("device", 1)
        self.sizes = (ctypes.c_int64 * 2)(*fields.pop("shape", (2, 3)))
        strides = fields.pop("strides", None)
        self.strides = None if strides is None else (ctypes.c_int64 * 2)(*strides)
        self.managed = kind(deleter=ctypes.cast(self.deleter, ctypes.c_void_p).value)
        if kind is dlpack._Versioned:
            self.managed.major = fields.pop("major", 1)
            self.managed.flags = fields.pop("flags", 0)
        tensor = self.managed.tensor
        tensor.data, tensor.device, tensor.ndim = ctypes.addressof(self.memory), 1, 2
        tensor.shape = ctypes.cast(self.sizes, ctypes.POINTER(ctypes.c_int64))
        if self.strides is not None:
            tensor.strides = ctypes.cast(self.strides, ctypes.POINTER(ctypes.c_int64))
        tensor.dtype = dlpack._Type(*fields.pop("dtype", (2, 32, 1)))
        for field, value in fields.items():
            setattr(tensor, field, value)
        self.capsule = dlpack._capsule(
            ctypes.addressof(self.managed), name or dlpack._NAMES[kind][0], None
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule


def back(taken: Array) -> Any:
    return give(taken, Kind.LIST)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6.0).reshape(2, 3).T,
        numpy.arange(24).reshape(4, 3, 2)[::-2, :, 1],
        numpy.arange(4, dtype="u1")[::-1].reshape(2, 2)[:, ::-1],
        numpy.array([[True, False]]),
        numpy.zeros((0, 3), "f4"),
        numpy.zeros((3, 0), "i8"),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(12.0).view(4, 3)[1::2],
        torch.ones(1, 3).expand(2, 3),
        torch.ones(2, 3, dtype=torch.float16),
        torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16),
    ],
)
def test_arrays_of_other_libraries(value: Any, old: bool) -> None:
    only = Only(value, old)
    taken = take(only, "float32", 2)
    assert taken.shape == tuple(value.shape) and back(taken) == value.tolist()
    assert taken.strides == contiguous_strides(taken.shape)
    assert is_array(only) and kind_of([only, memoryview(b"")]) is Kind.DLPACK
    assert torch.equal(as_tensor(only), torch.as_tensor(value.copy()) if isinstance(
        value, numpy.ndarray) else value)  # fmt: skip


def test_memory_is_used_where_it_lies() -> None:
    value = numpy.arange(12, dtype="f4").reshape(4, 3)
    assert take(Only(value[1:]), "float32", 2).address == value[1:].ctypes.data
    scalar = take(Only(torch.tensor(7)), "int64", 0)
    assert back(scalar) == 7 and span(scalar) == (7, 7)


def test_what_may_not_be_written_to_is_copied() -> None:
    value = numpy.arange(3.0)
    value.flags.writeable = False
    taken = take(Only(value), "float64", 1)
    assert taken.address != value.ctypes.data and back(taken) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", [dlpack._Versioned, dlpack._Managed])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tensor_is_given_back_once(kind: Any, dtype: str) -> None:
    raw = Raw(kind)
    taken = take(raw, dtype, 2)
    assert raw.deleted == ([] if dtype == "float32" else [ctypes.addressof(raw.managed)])
    assert back(taken) == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    with pytest.raises(BufferError, match="no capsule with a tensor that is unused"):
        take(raw, dtype, 2)
    del taken
    gc.collect()
    assert raw.deleted == [ctypes.addressof(raw.managed)]


def test_a_producer_that_is_gone() -> None:
    value = numpy.full((50, 50), 3.0, "f4")
    end = weakref.ref(value)
    taken = take(Only(value), "float32", 2)
    del value
    gc.collect()
    assert end() is not None and span(taken) == (3.0, 3.0)
    del taken
    gc.collect()
    assert end() is None


def test_strides_and_an_offset() -> None:
    assert back(take(Raw(shape=(3, 2), strides=(1, 3)), "float32", 2)) == [[0, 3], [1, 4], [2, 5]]
    assert back(take(Raw(shape=(2, 2), byte_offset=8), "float32", 2)) == [[2, 3], [4, 5]]
    backwards = Raw(shape=(2, 3), strides=(-3, -1), byte_offset=20)
    assert back(take(backwards, "float32", 2)) == [[5, 4, 3], [2, 1, 0]]
    odd = Raw(shape=(1, 2), byte_offset=2)
    assert take(odd, "float32", 2).address % 4 == 0 and odd.deleted


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"device": 2}, r"memory of a device \(CUDA\); copy it to the CPU before"),
        ({"device": 99}, "number 99"),
        ({"major": 2}, "DLPack 2; wanted 1"),
        ({"name": b"tensor"}, "no capsule"),
        ({"name": b"used_dltensor_versioned"}, "no capsule"),
        ({"dtype": (5, 64, 1)}, "DLPack type 5, 64 bits times 1; wanted one of"),
        ({"dtype": (2, 32, 4)}, "bits times 4"),
        ({"dtype": (0, 4, 1)}, "4 bits"),
        ({"dtype": (6, 1, 1)}, "1 bits"),
        ({"ndim": 65}, "65 dimensions"),
        ({"ndim": -1}, "-1 dimensions"),
        ({"shape": (2, -1)}, r"shape \(2, -1\)"),
        ({"data": None}, "at address 0"),
    ],
)
def test_other_tensors_are_refused_and_given_back(fields: dict[str, Any], said: str) -> None:
    raw = Raw(**fields)
    with pytest.raises(BufferError, match=said):
        take(raw, "float32", 2)
    gc.collect()
    # Where the capsule was not used its own destructor does it.
    assert len(raw.deleted) == (0 if {"major", "name", "device"} & set(fields) else 1)


def test_a_tensor_without_elements_or_deleter() -> None:
    raw = Raw(shape=(0, 3), data=None)
    raw.managed.deleter = None
    assert back(take(raw, "float32", 2)) == []


def test_what_a_producer_raises() -> None:
    with pytest.raises(BufferError, match="require gradient"):
        take(Only(torch.ones(2, requires_grad=True)), "float32", 1)


# ---- lent to others


def lend(value: Any) -> Any:
    shape, dtype = value.shape, str(value.dtype)
    return give(
        Array(value.ctypes.data, dtype, shape, contiguous_strides(shape), value), Kind.DLPACK
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 0, 3), (1,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
def test_results_speak_dlpack_and_are_buffers(shape: tuple[int, ...], dtype: str) -> None:
    value = numpy.ones(shape, dtype)
    given = lend(value)
    assert (given.shape, given.dtype, given.__dlpack_device__()) == (shape, dtype, (1, 0))
    for found in (numpy.from_dlpack(given), numpy.asarray(given), numpy.asarray(memoryview(given))):
        assert found.dtype == dtype and numpy.array_equal(found, value)
    assert torch.equal(torch.from_dlpack(given), torch.tensor(value))
    assert kind_of([given]) is Kind.DLPACK  # for the next module
    assert back(take(given, dtype, len(shape))) == value.tolist()
    gc.collect()
    assert not dlpack._lent


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_capsules_of_both_kinds_keep_the_memory_until_they_are_given_back(version: Any) -> None:
    value = numpy.arange(4.0)
    end, given = weakref.ref(value), lend(value)
    capsule = given.__dlpack__(max_version=version)
    assert ("versioned" in repr(capsule)) == (version is not None and version >= (1, 0))
    del value, given
    gc.collect()
    assert end() is not None and len(dlpack._lent) == 1
    used = torch._C._from_dlpack(capsule)
    del capsule
    assert used[2:].tolist() == [2.0, 3.0]
    used[0] = 9.0
    assert end()[0] == 9.0  # type: ignore[index]
    del used
    gc.collect()
    assert end() is None and not dlpack._lent


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_that_nobody_uses_frees_what_it_holds(version: Any) -> None:
    value = numpy.arange(4.0)
    end, capsule = weakref.ref(value), lend(value).__dlpack__(max_version=version)
    del value
    assert end() is not None
    del capsule
    gc.collect()
    assert end() is None and not dlpack._lent


def test_copies_and_other_devices() -> None:
    value = numpy.arange(4.0)
    given = lend(value)
    found = numpy.from_dlpack(given, copy=True)
    found[0] = 5.0
    assert value[0] == 0.0
    for options in ({"dl_device": (2, 0)}, {"stream": 1}):
        with pytest.raises(BufferError, match="CPU"):
            given.__dlpack__(**options)


def test_results_are_indexed() -> None:
    given = lend(numpy.array([[1.0, 2.0], [3.0, 4.0]], "f4"))
    assert [list(row) for row in given] == [[1.0, 2.0], [3.0, 4.0]] and given[1][0] == 3.0
