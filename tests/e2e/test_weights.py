"""Functions with weights: sharing the base, and a weights file that is cut off while it is served."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Gateway


@pytest.mark.parametrize("depth", ["prewarmed", "zygote", "cold"])
def test_a_weights_file_cut_off_while_it_is_served_is_quarantined(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path, depth: str
) -> None:
    path = frozen("linear.py:Linear")
    copy = tmp_path / path.name
    shutil.copytree(path, copy)
    gateway = launch(copy, frozen("zoo.py:Add"), "--depth", depth)
    weights = copy / "weights-00001.safetensors"
    os.truncate(weights, 4096)
    reply = gateway.call("linear", [1.0, 2.0])
    assert reply.status in (502, 503), reply.body
    again = gateway.call("linear", [1.0, 2.0])
    assert (again.status, again.json()["code"]) == (503, "function_failed")
    assert "quarantined" in again.json()["detail"]
    assert "quarantined" in gateway.function("linear")["reason"]
    assert gateway.call("add", {"a": 1}).json() == 1006


def test_answers_are_the_same_from_every_depth(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("linear.py:Linear"), "--depth", "cold")
    answers = set()
    for depth in ("prewarmed", "zygote", "cold"):
        assert gateway.sleep("linear", depth).status == 200
        reply = gateway.call("linear", [0.25, -3.0])
        assert reply.headers["zerowake-depth"] == depth
        answers.add(reply.json())
    assert len(answers) == 1


def test_only_functions_that_need_torch_are_forked_from_a_base_with_it(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("linear.py:Imports"), frozen("linear.py:Linear"), "--depth", "cold")
    assert gateway.call("imports", 1).json() is False
    assert gateway.call("linear", [1.0, 1.0]).status == 200
