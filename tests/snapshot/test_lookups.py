"""Row numbers that modules look up: which are arguments, and how those that are computed are checked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zerowake.snapshot.errors import CannotCompile
from zerowake.snapshot.lookups import bounds, guard

aten = torch.ops.aten
TABLE = torch.arange(40.0).reshape(10, 4)
FEW = torch.ones(2, 3, dtype=torch.int64)


class Does(nn.Module):
    def __init__(self, does: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, ids: torch.Tensor) -> tuple[Any, ...]:
        return (self.does(ids),)


def exported(does: Callable[[torch.Tensor], Any], ids: torch.Tensor = FEW) -> Any:
    sizes = dict.fromkeys(range(ids.ndim), torch.export.Dim.AUTO)
    program = torch.export.export(Does(does), (ids,), dynamic_shapes=(sizes,), strict=False)
    return program.module(check_guards=False)


def run(graph: Any, ids: torch.Tensor) -> Any:
    return torch.fx.Interpreter(graph).run(ids, enable_io_processing=False)


def flat(ids: torch.Tensor) -> torch.Tensor:
    return ids.reshape(-1)


ONES = torch.ones(6, 4)


@pytest.mark.parametrize(
    "does, last, first",
    [
        (lambda ids: TABLE[ids], 9, -10),
        (lambda ids: TABLE[ids + 2], 7, -12),
        (lambda ids: TABLE[:, ids + ids], 1, -2),
        (lambda ids: TABLE[torch.tensor([True] * 9 + [False])][ids], 8, -9),
        (lambda ids: TABLE[ids, torch.zeros_like(ids)], 9, -10),
        (lambda ids: TABLE[None, torch.zeros_like(ids), ids], 3, -4),
        (lambda ids: F.embedding(ids - 1, TABLE), 10, 1),
        (lambda ids: F.embedding((ids > 0).cumsum(1) + ids, TABLE), 8, 0),
        (lambda ids: TABLE.index_select(0, flat(ids) * 2), 4, 0),
        (lambda ids: TABLE.gather(-2, ids[:, :1].expand(-1, 4) + 0), 9, 0),
        (lambda ids: torch.take(TABLE, ids), 39, -40),
        (lambda ids: torch.zeros(10).put(ids, ONES[:, 0].view(2, 3)), 9, -10),
        (lambda ids: torch.zeros(10, 4).scatter(0, ids - 1, 1.0), 10, 1),
        (lambda ids: torch.zeros(10, 4).scatter_add(0, ids - 1, ONES), 10, 1),
        (lambda ids: torch.zeros(10).scatter_reduce(0, flat(ids + 1), ONES[:, 0], "sum"), 8, -1),
        (lambda ids: torch.zeros(10).index_put((ids,), torch.ones(())), 9, -10),
        (lambda ids: torch.zeros(10, 4).index_add(0, flat(ids + 1), ONES), 8, -1),
        (lambda ids: torch.zeros(10, 4).index_copy(0, flat(ids + 1), ONES), 8, -1),
        (lambda ids: torch.zeros(10).index_fill(0, flat(ids), 1.0), 9, -10),
    ],
)
def test_row_numbers_that_are_computed_are_checked(
    does: Callable[[torch.Tensor], Any], last: int, first: int
) -> None:
    graph = exported(does)
    lines = guard(graph)
    assert set(lines) == {"`return (self.does(ids),)`"}
    for row, further in ((first, -1), (last, 1)):
        ids = FEW.clone()
        ids[0, 0] = row
        result, wrong = run(graph, ids)
        assert torch.equal(result, does(ids)) and wrong.tolist() == [False] * len(lines)
        for outside in (row + further, 10**12 * further):
            ids[0, 0] = outside
            with pytest.raises((IndexError, RuntimeError)):
                does(ids)
            _result, wrong = run(graph, ids)  # a row that exists instead
            assert wrong.any()


def test_a_table_may_be_the_row_numbers_themselves() -> None:
    graph = exported(lambda ids: ids.gather(0, ids - 1))
    assert len(guard(graph)) == 1
    result, wrong = run(graph, FEW)
    assert torch.equal(result, FEW) and not wrong
    result, wrong = run(graph, FEW + 7)
    assert torch.equal(result, FEW + 7) and wrong


def test_what_is_bounded_before_the_call_is_not_checked_again() -> None:
    table = nn.Embedding(7, 4)
    graph = exported(lambda ids: table(ids.unsqueeze(0)) + table(torch.arange(ids.shape[1])))
    assert guard(graph) == []
    assert list(bounds(graph).values()) == [7, 7]


@pytest.mark.parametrize(
    "before, after, is_same",
    [
        (torch.int32, torch.int64, True),
        (torch.uint8, torch.int32, True),
        (torch.int64, torch.int32, False),  # 2**32 + 1 becomes 1
        (torch.int64, torch.int8, False),
        (torch.float32, torch.int64, False),
        (torch.bool, torch.int64, False),
    ],
)
def test_a_conversion_keeps_row_numbers_where_the_type_has_all(
    before: torch.dtype, after: torch.dtype, is_same: bool
) -> None:
    graph = exported(lambda ids: F.embedding(ids.to(after).to(torch.int64), TABLE), FEW.to(before))
    assert list(bounds(graph).values()) == ([10] if is_same else [])
    assert len(guard(graph)) == (not is_same)


@pytest.mark.parametrize(
    "does",
    [
        lambda ids: TABLE[:2, :3].clone()[ids > 0],  # a mask
        lambda ids: ids.select(1, 2),
        lambda ids: ids.select(1, ids.shape[1] - 1),
        lambda ids: F.mse_loss(TABLE[0], TABLE[1]) + ids,
        lambda ids: F.embedding_bag(ids, TABLE),
        lambda ids: torch.take_along_dim(TABLE, ids[:, :1], 0),
        lambda ids: ids.sort(1).indices,
    ],
)
def test_what_needs_no_check(does: Callable[[torch.Tensor], Any]) -> None:
    assert guard(exported(does)) == []


@pytest.mark.parametrize(
    "does, said",
    [
        (lambda ids: TABLE[ids[0, 0]], "takes its place from a tensor's values"),
        (
            lambda ids: F.nll_loss(TABLE[:2].log_softmax(1), ids[:, 0]),
            "does not check its target",
        ),
        (lambda ids: aten._unsafe_index(TABLE, [ids]), "does not check its indices"),
        (
            lambda ids: torch.cond(
                ids.sum() > 3, lambda i: TABLE[i], lambda i: TABLE[i + 1], (ids,)
            ),
            "looks up rows in a branch or a loop",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused(does: Callable[[torch.Tensor], Any], said: str) -> None:
    graph = exported(does)
    with pytest.raises(CannotCompile, match=said):
        guard(graph)


def test_the_line_is_the_modules_and_not_torchs() -> None:
    table = nn.Embedding(7, 4)
    (line,) = guard(exported(lambda ids: table(ids + 1)))
    assert line == "`return (self.does(ids),)`"
