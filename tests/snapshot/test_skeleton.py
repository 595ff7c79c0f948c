"""``zerowake.snapshot.skeleton``: pruning, and what needs torch."""

from typing import Any

import pytest

from zerowake.snapshot import skeleton


def test_pruning_leaves_out_what_only_the_module_needed() -> None:
    full = skeleton.Skeleton(
        root=[4],
        nodes=[
            {"t": "tensor", "i": 0},
            {"t": "module", "c": 0, "s": {}, "p": {"w": [0]}},
            {"t": "list", "v": [[3], 1]},
            {"t": "class", "c": 1},
            {"t": "object", "c": 2, "s": {"net": [1], "again": [1], "rest": [2]}},
        ],
        early=[1, 2],
        names=[("class", "torch.nn:Linear"), ("class", "app:Kept"), ("class", "app:App")],
    )
    small = skeleton.prune(full, {1: "net"})
    assert [node["t"] for node in small.nodes] == ["unused", "compiled", "list", "class", "object"]
    assert small.early == [2] and small.root == [4] and not small.needs_torch
    assert small.names == [("", ""), ("class", "app:Kept"), ("class", "app:App")]
    assert full.needs_torch and full.nodes[1]["t"] == "module"  # as it was
    assert skeleton.prune(full, {}).needs_torch


def test_what_is_part_of_a_module_that_stays() -> None:
    full = skeleton.Skeleton(
        root=[5],
        nodes=[
            {"t": "module", "c": 0, "s": {}},
            {"t": "module", "c": 0, "s": {}, "m": {"inner": [0]}},
            {"t": "module", "c": 0, "s": {}},
            {"t": "list", "v": [[2]]},
            {"t": "module", "c": 0, "s": {"kept": [3]}},
            {"t": "object", "c": 0, "s": {"a": [0], "b": [1], "c": [2], "d": [4], "e": [6]}},
            {"t": "module", "c": 0, "s": {}},
        ],
        early=[],
        names=[("class", "torch.nn:Linear")],
    )
    within = skeleton.within_modules
    assert within(full, {0: "a", 2: "c", 6: "e"}) == {"a", "c"}
    assert within(full, {0: "a", 1: "b", 6: "e"}) == set()
    assert within(full, {4: "d", 1: "b"}) == set()


@pytest.mark.parametrize(
    "state, said",
    [
        ({"table": [0]}, "self.table is a tensor"),
        ({"a": 1, "rest": [2]}, "self.rest['b'][1] is a numpy array"),
        ({"call": [3]}, "self.call[0] is a tensor"),
        ({"deep": [4], "again": [4]}, "self.deep.kind is a torch.dtype"),
        ({"itself": [7], "net": [6]}, None),
    ],
)
def test_what_of_an_object_needs_torch_is_named(state: dict[str, Any], said: str | None) -> None:
    nodes: list[dict[str, Any]] = [
        {"t": "tensor", "i": 0},
        {"t": "list", "v": ["x", [5]]},
        {"t": "dict", "s": {"b": [1]}},
        {"t": "partial", "f": [6], "a": [[0]], "k": {}},
        {"t": "object", "c": 0, "s": {"kind": [8]}},
        {"t": "array", "i": 1, "dtype": "<f4", "shape": [1]},
        {"t": "compiled", "v": "net"},
        {"t": "object", "c": 0, "s": state},
        {"t": "dtype", "v": "float32"},
    ]
    assert skeleton.torch_at(skeleton.Skeleton([7], nodes, [7], [])) == said
