"""``zerowake.snapshot.eager``: modules that take lists and arrays."""

import copy
import threading
from types import SimpleNamespace
from typing import Any

import torch

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
