"""``zerowake.snapshot.buffers``: memoryviews, ``array.array`` and the like, taken and given."""

import array
import ctypes
import gc
import mmap
import weakref
from typing import Any

import numpy
import pytest
import torch
from support import run_python

from zerowake.snapshot.arrays import Kind, as_tensor, give, is_array, kind_of, span, take
from zerowake.snapshot.strided import Array, contiguous_strides


def back(taken: Array) -> Any:
    return give(taken, Kind.LIST)


def view(values: Any, dtype: str) -> memoryview:
    return memoryview(numpy.array(values, dtype))


@pytest.mark.parametrize(
    "value, dtype, wanted",
    [
        (array.array("q", [3, -1]), "int64", [3, -1]),
        (array.array("l", [3, -1]), "int32", [3, -1]),
        (array.array("B", [0, 255]), "float32", [0.0, 255.0]),
        (array.array("d", [0.5]), "float32", [0.5]),
        (memoryview(bytearray(8)).cast("f", (2, 1)), "float32", [[0.0], [0.0]]),
        (memoryview(bytearray(4)).cast("f", ()), "float32", 0.0),
        (view([[1.5, -2.0]], "float16"), "float32", [[1.5, -2.0]]),
        (view([2**63 - 1], "uint64"), "int64", [2**63 - 1]),
        (view([[True], [False]], "bool"), "bool", [[True], [False]]),
        (view([True, False], "bool"), "float32", [1.0, 0.0]),
        ((ctypes.c_float * 2 * 2)((1, 2), (3, 4)), "float32", [[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_numbers_in_buffers(value: Any, dtype: str, wanted: Any) -> None:
    taken = take(value, dtype, memoryview(value).ndim)
    assert taken.dtype == dtype and taken.strides == contiguous_strides(taken.shape)
    assert back(taken) == wanted
    assert is_array(value) and kind_of([value, [1]]) is Kind.BUFFER


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6.0).reshape(2, 3).T,
        numpy.arange(24.0).reshape(4, 3, 2)[::-2, :, 1],
        numpy.arange(4.0)[::-1].reshape(2, 2)[:, ::-1],
        numpy.broadcast_to(numpy.float64(2), (2, 3)),
        numpy.arange(6, dtype=">i4").reshape(2, 3),
        numpy.arange(6, dtype=">f8").reshape(2, 3)[::-1],
        numpy.zeros(3, "i1,f4")["f1"].reshape(3, 1),  # 5 bytes from one to the next
        numpy.frombuffer(bytearray(9), "f4", offset=1).reshape(1, 2),  # at an odd address
        numpy.frombuffer(bytes(8), "f4").reshape(1, 2),
        numpy.zeros((0, 3), "f4"),
        numpy.zeros((3, 0), "i8"),
    ],
)
def test_layouts_in_buffers(value: Any) -> None:
    for dtype in ("float32", "float64"):
        taken = take(memoryview(value), dtype, 2)
        assert taken.shape == value.shape and back(taken) == value.tolist()
        assert taken.address % 4 == 0
    assert torch.equal(as_tensor(memoryview(value)), torch.tensor(value.tolist()).to(
        as_tensor(memoryview(value)).dtype).reshape(value.shape))  # fmt: skip


def test_memory_is_used_where_it_lies_and_held_meanwhile() -> None:
    value = array.array("f", [1.0, 2.0])
    taken = take(value, "float32", 1)
    assert taken.address == value.buffer_info()[0]
    with pytest.raises(BufferError):
        value.append(3.0)  # which would move it
    del taken
    value.append(3.0)


def test_what_may_not_be_written_to_is_copied() -> None:
    fixed = bytes(8)
    taken = take(memoryview(fixed).cast("q"), "int64", 1)
    ctypes.c_int64.from_address(taken.address).value = 7
    assert fixed == bytes(8)
    as_tensor(memoryview(fixed).cast("q"))[0] = 7
    assert fixed == bytes(8)


def test_views_of_what_its_owner_has_dropped() -> None:
    memory = bytearray(array.array("q", [5, 6]).tobytes())
    value = memoryview(memory).cast("q")
    taken = take(value, "int64", 1)
    value.release()
    del memory
    gc.collect()
    assert back(taken) == [5, 6] and span(taken) == (5, 6)


@pytest.mark.parametrize(
    "value, dtype, said",
    [
        (view([1.5], "float32"), "int64", "int64: .*float"),
        (view([2], "int64"), "bool", "true and false"),
        (view([2**63], "uint64"), "int64", "int64"),
        (view([70_000], "int32"), "int16", "int16"),
        (view([1j], "complex64"), "float32", "format 'Zf'; wanted numbers"),
        (view([1], "i1,f4"), "float32", "format 'T"),
        (view([b"ab"], "S2"), "float32", "format '2s'"),
        (memoryview(b"a").cast("c"), "uint8", "format 'c'"),
        (array.array("u", "a"), "int32", "format"),
        (view([1.0], "float32"), "bfloat16", "no form as bfloat16"),
        (b"abcd", "uint8", "cast"),
        (bytearray(4), "uint8", "cast"),
    ],
)
def test_other_buffers_are_refused(value: Any, dtype: str, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        take(value, dtype, 1)


def test_a_wrong_rank_and_a_view_that_was_released() -> None:
    with pytest.raises(ValueError, match="1 dimensions; wanted 2"):
        take(array.array("f", [1.0]), "float32", 2)
    gone = memoryview(bytearray(4))
    gone.release()
    with pytest.raises(ValueError, match="released"):
        take(gone, "uint8", 1)
    closed = mmap.mmap(-1, 8)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        take(closed, "uint8", 1)


def test_bytes_that_are_no_bool() -> None:
    taken = take(memoryview(bytearray([0, 1, 2])).cast("?"), "bool", 1)
    assert ctypes.string_at(taken.address, 3) == b"\0\1\1"


@pytest.mark.parametrize("value", [b"ab", bytearray(2), "ab", {}, 3, None])
def test_what_is_no_array(value: Any) -> None:
    assert not is_array(value)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 0, 3), (1,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_results_are_memoryviews(shape: tuple[int, ...], dtype: str) -> None:
    memory = numpy.ones(shape, dtype)
    found = Array(memory.ctypes.data, dtype, shape, contiguous_strides(shape), memory)
    given = give(found, Kind.BUFFER)
    assert type(given) is memoryview and given.shape == shape and not given.readonly
    assert numpy.asarray(given).dtype == memory.dtype
    if memory.size:
        assert given.tolist() == memory.tolist()


def test_they_keep_the_memory() -> None:
    class Memory(ctypes.Structure):
        _fields_ = (("numbers", ctypes.c_float * 2),)

    owner = Memory((1.0, 2.0))
    end = weakref.ref(owner)
    given = give(Array(ctypes.addressof(owner), "float32", (2,), (1,), owner), Kind.BUFFER)
    part = given[1:]
    del owner, given
    gc.collect()
    assert end() is not None and part.tolist() == [2.0]
    part.release()
    gc.collect()
    assert end() is None


def test_half_precision_has_no_form() -> None:
    with pytest.raises(TypeError, match="no form as a buffer; use numpy or torch"):
        give(Array(0, "bfloat16", (0,), (1,), None), Kind.BUFFER)


def test_neither_numpy_nor_torch_is_imported() -> None:
    said = run_python(
        """
        import array, sys
        from zerowake.snapshot.arrays import Kind, give, take
        assert not {name for name in sys.modules if name.endswith(("dlpack", "buffers"))}
        found = give(take(array.array("f", [1.0, 2.0]), "float32", 1), Kind.BUFFER)
        found = give(take(give(take(found, "float64", 1), Kind.DLPACK), "float32", 1), Kind.DLPACK)
        print(list(found), {"numpy", "torch"} & set(sys.modules))
        """
    ).stdout
    assert said == "[1.0, 2.0] set()\n"
