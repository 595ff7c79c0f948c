"""``zerowake.snapshot.output``: structures of results, taken apart and put together."""

import json
from collections import OrderedDict
from typing import Any

import pytest

from zerowake.snapshot.errors import CannotCompile, UnusableForm
from zerowake.snapshot.output import Output, places, put_together, take_apart


@pytest.mark.parametrize(
    "value",
    [1.5, None, (1.0, [2.0, None]), {"a": 1.0, "b": {"c": (2.0,)}}, [], {}, (1.0, 1.0)],
)
def test_a_structure_comes_back(value: Any) -> None:
    results: list[Any] = []
    tree = json.loads(json.dumps(take_apart(value, float, results)))
    assert list(places(tree)) == list(range(len(results)))
    back = put_together(tree, results.__getitem__)
    assert back == value and type(back) is type(value)


def test_other_dictionaries_become_objects_with_named_fields() -> None:
    results: list[Any] = []
    tree = take_apart(OrderedDict(logits=1.0, rows=2.0), float, results)
    back = put_together(tree, results.__getitem__)
    assert isinstance(back, Output)
    assert back.logits == back["logits"] == back[0] == 1.0 and back[:2] == [1.0, 2.0]
    with pytest.raises(AttributeError):
        _ = back.nothing


@pytest.mark.parametrize("value", [{1.0}, (1.0, 5), "text"])
def test_what_is_no_structure_of_results(value: Any) -> None:
    with pytest.raises(CannotCompile, match="wanted tensors in containers"):
        take_apart(value, float, [])


@pytest.mark.parametrize("value", [{1: 1.0}, OrderedDict({("a",): 1.0}), [{"a": {None: 1.0}}]])
def test_keys_are_text(value: Any) -> None:
    with pytest.raises(CannotCompile, match=r"with a key .*; wanted str"):
        take_apart(value, float, [])


@pytest.mark.parametrize("tree", ["x", [0], {"t": "set", "v": [0]}, {}])
def test_a_tree_that_is_none(tree: Any) -> None:
    with pytest.raises(UnusableForm, match="has an output"):
        put_together(tree, str)
