"""``zerowake.snapshot.arrays``: lists, numpy arrays and tensors to memory and back."""

import ctypes
import gc
import sys
import weakref
from typing import Any

import numpy
import pytest
import torch
from support import run_python

from zerowake.snapshot.arrays import Kind, WrongPrecision, give, is_array, kind_of, span, take
from zerowake.snapshot.strided import Array, contiguous_strides


def back(taken: Array) -> Any:
    """What lies in memory that was taken, as lists."""
    return give(taken, Kind.LIST)


@pytest.mark.parametrize(
    "value, dtype, ndim",
    [
        (3, "int64", 0),
        (2.5, "float32", 0),
        ([], "float32", 1),
        ([[1, 2], [3, 4]], "int64", 2),
        ([[1.5, 2], [3, 4]], "float64", 2),
        ([[[1], [2]]], "int8", 3),
        ([[], []], "int64", 2),
        ([[[]], [[]]], "int64", 3),
        ([True, False], "bool", 1),
        ([0, 255], "uint8", 1),
    ],
)
def test_lists_come_back_as_they_were(value: Any, dtype: str, ndim: int) -> None:
    taken = take(value, dtype, ndim)
    assert (taken.dtype, len(taken.shape)) == (dtype, ndim)
    assert taken.strides == contiguous_strides(taken.shape)
    assert back(taken) == value


def test_tuples_and_ints_for_floats_are_taken() -> None:
    assert back(take(((1, 2), [3, 4]), "float32", 2)) == [[1.0, 2.0], [3.0, 4.0]]
    assert back(take([True, 2], "int64", 1)) == [1, 2]
    assert back(take([1, 0], "bool", 1)) == [True, False]
    assert back(take([numpy.float32(0.5), numpy.int64(2)], "float32", 1)) == [0.5, 2.0]


@pytest.mark.parametrize(
    "value, dtype, ndim, said",
    [
        ([[1, 2], [3]], "int64", 2, "unequal lengths at dimension 1"),
        ([], "int64", 2, "an empty list of 1 dimensions; wanted 2"),
        ([[]], "int64", 3, "an empty list of 2 dimensions; wanted 3"),
        ([[1, 2], 3], "int64", 2, "mixed at dimension 1"),
        ([1, 2], "int64", 2, "1 dimensions; wanted 2"),
        ([[1]], "int64", 1, "more than 1 dimensions; wanted 1"),
        (5, "int64", 1, "0 dimensions; wanted 1"),
        ([1.0], "int64", 1, "int64: .*float"),
        ([1.0], "bool", 1, "float"),
        ([2], "bool", 1, "true and false"),
        ([2**63], "int64", 1, "int64"),
        ([-1], "uint8", 1, "uint8"),
        ([128], "int8", 1, "int8"),
        ([10**400], "float64", 1, "float64"),
        (["1"], "float32", 1, "float32"),
        ([None], "float32", 1, "float32"),
        ("12", "int64", 1, "at dimension 0"),
        ({1: 2}, "int64", 1, "at dimension 0"),
        (None, "int64", 1, "0 dimensions; wanted 1"),
        ([1.0], "bfloat16", 1, "lists have no form as bfloat16"),
    ],
)
def test_what_no_list_can_be_is_refused(value: Any, dtype: str, ndim: int, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        take(value, dtype, ndim)


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6.0).reshape(2, 3).T,
        numpy.arange(12.0).reshape(4, 3)[::2],
        numpy.arange(4.0)[::-1].reshape(2, 2),
        numpy.broadcast_to(numpy.float64(2), (2, 3)),
        numpy.arange(6, dtype=">i4").reshape(2, 3),
        numpy.ones((2, 3), dtype=numpy.float16),
        numpy.zeros((0, 3)),
        numpy.zeros((3, 0)),
        numpy.frombuffer(bytearray(9), "f4", offset=1).reshape(1, 2),
    ],
)
def test_numpy_arrays_are_made_dense_and_converted(value: Any) -> None:
    taken = take(value, "float32", 2)
    assert taken.shape == value.shape and taken.strides == contiguous_strides(value.shape)
    assert taken.address % 4 == 0 and back(taken) == value.tolist()
    numpy.testing.assert_array_equal(give(taken, Kind.NUMPY), value)


def test_numpy_scalars_and_read_only_arrays() -> None:
    assert back(take(numpy.int32(7), "int64", 0)) == 7
    fixed = numpy.arange(3)
    fixed.flags.writeable = False
    taken = take(fixed, "int64", 1)
    assert taken.address == fixed.__array_interface__["data"][0]  # used where it lies
    assert span(taken) == (0, 2)


@pytest.mark.parametrize(
    "value, dtype",
    [
        (numpy.array([1.5]), "int64"),
        (numpy.array([1]), "bool"),
        (numpy.array([1j]), "float32"),
        (numpy.array(["a"]), "float32"),
        (numpy.array([1.0]), "bfloat16"),
        (numpy.array([object()]), "float32"),
        (torch.tensor([1.5]), "int64"),
        (torch.tensor([2]), "bool"),
        (torch.tensor([1j]), "float32"),
    ],
)
def test_nothing_is_cut_off_quietly(value: Any, dtype: str) -> None:
    with pytest.raises(TypeError):
        take(value, dtype, 1)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(12.0).view(4, 3)[1::2],
        torch.ones(1, 3).expand(2, 3),
        torch.ones(2, 3, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 3)) * 2,
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.int16),
        torch.zeros(0, 3),
    ],
)
def test_tensors_are_made_dense_and_converted(value: torch.Tensor) -> None:
    taken = take(value, "float32", 2)
    assert back(taken) == value.tolist()
    given = give(taken, Kind.TORCH)
    assert not given.requires_grad and torch.equal(given, value.detach().float())


@pytest.mark.parametrize(
    "value, wanted",
    [("float64", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")],
)
def test_a_tensor_of_another_precision_is_the_original_modules(value: str, wanted: str) -> None:
    with pytest.raises(WrongPrecision, match=f"values of torch.{value}; wanted {wanted}"):
        take(torch.ones(2, dtype=getattr(torch, value)), wanted, 1)


@pytest.mark.parametrize(
    "value, dtype, said",
    [
        (torch.tensor([2**32 + 1]), "int32", "4294967297 of torch.int64"),
        (torch.tensor([257, -1]), "uint8", "-1 of torch.int64"),
        (torch.tensor([5, 2**63 + 5], dtype=torch.uint64), "int64", "9223372036854775813 of"),
        (torch.tensor([60_000], dtype=torch.uint16), "int16", "60000 of torch.uint16"),
        (numpy.array([2**32 + 1]), "int32", "4294967297 of int64"),
        (numpy.array([2**63 + 5], dtype=numpy.uint64), "int64", "9223372036854775813 of uint64"),
        (numpy.array([1, 70_000], dtype=">i4"), "int16", "70000 of >i4"),
        (numpy.uint8(200), "int8", "200 of uint8"),
    ],
)
def test_integers_do_not_wrap_around(value: Any, dtype: str, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        take(value, dtype, value.ndim)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([7], dtype=torch.uint64),
        torch.tensor([-7, 7]),
        torch.zeros(0, dtype=torch.int64),
        numpy.array([7], dtype=numpy.uint64),
        numpy.zeros(0, dtype=numpy.int64),
    ],
)
def test_integers_that_fit_a_narrower_type(value: Any) -> None:
    assert back(take(value, "int16", 1)) == value.tolist()


def test_a_masked_array_is_refused() -> None:
    with pytest.raises(TypeError, match="masked"):
        take(numpy.ma.array([1.0, 2.0], mask=[0, 1]), "float32", 1)


def test_tensors_that_are_conjugated_or_negated_only_in_name() -> None:
    imaginary = torch.conj(torch.tensor([1 + 2j, 3 - 4j])).imag
    assert imaginary.is_neg()
    assert back(take(imaginary, "float32", 1)) == [-2.0, 4.0]


def test_a_bfloat16_tensor_keeps_its_bits() -> None:
    value = torch.tensor([1.0, 3.14159], dtype=torch.bfloat16)
    taken = take(value, "bfloat16", 1)
    assert taken.address == value.data_ptr()
    assert torch.equal(give(taken, Kind.TORCH), value)
    with pytest.raises(TypeError, match="no form as a list"):
        give(taken, Kind.LIST)


def test_a_tensor_without_memory_is_refused() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        take(torch.ones(2, device="meta"), "float32", 1)


@pytest.mark.parametrize("value", [numpy.ones((2, 2)), torch.ones(2, 2), [[1.0]]])
def test_a_wrong_rank_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="wanted 3"):
        take(value, "float32", 3)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (2, 0, 3), (0, 0)])
@pytest.mark.parametrize("kind", Kind)
def test_results_without_elements(shape: tuple[int, ...], kind: Kind) -> None:
    given = give(Array(0, "float32", shape, contiguous_strides(shape), None), kind)
    if kind is Kind.LIST:
        assert given == torch.zeros(shape).tolist()
    else:
        assert tuple(given.shape) == shape


def test_strides_of_a_size_of_one_mean_nothing() -> None:
    memory = torch.arange(3.0)
    column = Array(memory.data_ptr(), "float32", (3, 1), (1, 3), memory)
    assert back(column) == [[0.0], [1.0], [2.0]]
    with pytest.raises(ValueError, match="not dense"):
        back(Array(memory.data_ptr(), "float32", (1, 2), (1, 2), memory))


@pytest.mark.parametrize("kind", [Kind.NUMPY, Kind.TORCH])
def test_memory_lives_as_long_as_results_do(kind: Kind) -> None:
    class Memory(ctypes.Structure):
        _fields_ = (("numbers", ctypes.c_float * 4),)

    owner = Memory((1.0, 2.0, 3.0, 4.0))
    address, end = ctypes.addressof(owner), weakref.ref(owner)
    given = give(Array(address, "float32", (2, 2), (2, 1), owner), kind)
    view = given[1]
    del owner, given
    gc.collect()
    assert end() is not None and view.tolist() == [3.0, 4.0]
    del view
    gc.collect()
    assert end() is None


def test_lists_keep_nothing() -> None:
    memory = numpy.ones(4, numpy.float32)
    end = weakref.ref(memory)
    given = give(Array(memory.ctypes.data, "float32", (4,), (1,), memory), Kind.LIST)
    del memory
    assert end() is None and given == [1.0] * 4


def test_the_most_particular_kind_wins() -> None:
    assert kind_of([[1], numpy.ones(1), torch.ones(1)]) is Kind.TORCH
    assert kind_of([[1], numpy.float32(1)]) is Kind.NUMPY
    assert kind_of([[1], 2]) is kind_of([]) is Kind.LIST


@pytest.mark.parametrize(
    "value, wanted", [([1], True), ([], False), (1, False), ("ab", False), (torch.ones(1), True)]
)
def test_what_could_be_an_array(value: Any, wanted: bool) -> None:
    assert is_array(value) is wanted


def test_span() -> None:
    for value in (
        [[3, -1], [2, 0]],
        numpy.array([[3, -1], [2, 0]]),
        torch.tensor([[3, -1], [2, 0]]),
    ):
        assert span(take(value, "int64", 2)) == (-1, 3)


def test_neither_numpy_nor_torch_is_imported() -> None:
    said = run_python(
        """
        import sys
        from zerowake.snapshot.arrays import Kind, give, take
        assert give(take([[1, 2]], "int64", 2), Kind.LIST) == [[1, 2]]
        print({"numpy", "torch"} & set(sys.modules))
        """
    ).stdout
    assert said == "set()\n"
    assert "torch" in sys.modules  # as it would be found, were it imported
