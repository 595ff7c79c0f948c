"""``zerowake.snapshot.eager``: modules that take lists and arrays."""

import array
import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lenders import Only

from zerowake.snapshot.eager import accept_arrays

PATIENCE_S = 60.0


class Wait(torch.nn.Module):
    """Doubles, after the events that it is told of."""

    def forward(
        self, x: torch.Tensor, ours: threading.Event, theirs: threading.Event
    ) -> torch.Tensor:
        ours.set()
        assert theirs.wait(PATIENCE_S)
        return x * 2


def test_each_thread_is_answered_in_the_kind_that_it_gave() -> None:
    target = SimpleNamespace(model=Wait())
    accept_arrays(target)
    answers: dict[str, Any] = {}
    list_began, list_ended, tensor_began = (threading.Event() for _ in range(3))

    def ask(name: str, x: Any, ours: threading.Event, theirs: threading.Event) -> None:
        answers[name] = target.model(x, ours, theirs)
        if name == "list":
            list_ended.set()

    threads = [
        threading.Thread(target=ask, args=("list", [1.0], list_began, tensor_began)),
        threading.Thread(target=ask, args=("tensor", torch.ones(1), tensor_began, list_ended)),
    ]
    threads[0].start()
    assert list_began.wait(PATIENCE_S)
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers["list"] == [2.0] and torch.equal(answers["tensor"], torch.tensor([2.0]))


def test_a_copy_of_a_module_takes_lists_too() -> None:
    target = SimpleNamespace(model=torch.nn.Identity())
    accept_arrays(target)
    assert copy.deepcopy(target.model)([1.0]) == [1.0]


def test_buffers_and_arrays_of_other_libraries() -> None:
    target = SimpleNamespace(model=torch.nn.Identity(), twice=torch.nn.Linear(2, 2).eval())
    accept_arrays(target)
    rows = memoryview(array.array("d", [1.0, 2.0])).cast("B").cast("d", (1, 2))
    wanted = target.twice([[1.0, 2.0]])
    found = target.twice(rows)  # of float64, as a list's numbers
    assert isinstance(found, memoryview) and found.tolist() == wanted
    lent = target.twice(Only(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)))
    assert lent.__dlpack_device__() == (1, 0) and torch.from_dlpack(lent).tolist() == wanted
    assert target.twice(lent)[0][:] == target.twice(wanted)[0]  # the next module's argument
    assert target.model(array.array("B", [7])) == b"\7"  # whole numbers as they are
    elsewhere = Only(torch.ones(1))
    elsewhere.__dlpack_device__ = lambda: (2, 0)  # type: ignore[method-assign]
    with pytest.raises(BufferError, match="copy it to the CPU"):
        target.model(elsewhere)


def test_what_is_read_only_is_not_written_to() -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.zero_()

    target = SimpleNamespace(model=Zero())
    accept_arrays(target)
    fixed = b"\1\2"
    assert target.model(memoryview(fixed)).tolist() == [0, 0] and fixed == b"\1\2"
