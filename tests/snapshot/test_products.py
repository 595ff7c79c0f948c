"""``zerowake.snapshot.products``: products with weights, by code that Inductor generates."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import record
from torch import nn

from zerowake.snapshot import compile, products
from zerowake.snapshot.compile import compile_module

pytestmark = pytest.mark.usefixtures("toolchain")


class Product(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Sums(Product):
    """Inductor takes the sum for the bias of the product, and fails on its having no dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + x @ self.weight


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    class Kept(compile.Trial):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(compile, "Trial", Kept)
    return made


def packed(form: dict[str, Any]) -> list[str]:
    """Constants in blocks of a vector or more, as the generated code takes its weights."""
    return [name for name, (_, shape, *_) in form["constants"].items() if len(shape) == 3]


def test_weights_are_packed_and_right_for_any_number_of_rows(
    tmp_path: Path, trials: list[Any]
) -> None:
    torch.manual_seed(5)
    for place in range(2):  # the same program with other weights
        out = tmp_path / str(place)
        out.mkdir()
        module = nn.Linear(70, 33)
        form = compile_module(record(module, (torch.randn(9, 70),)), out, None)
        assert len(packed(form)) == 1 and len(trials) == place + 1
        assert all(trials[place].agrees([torch.randn(rows, 70)]) for rows in (2, 7, 8, 17, 300))


class Products(nn.Module):
    """Of all rows with each weight; with the last also of a number that is known when it is compiled."""

    def __init__(self, *weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [*(x @ weight for weight in self.weights), x[:4] @ self.weights[-1]]


@pytest.mark.parametrize("compiled_with", [1, 3])
def test_products_are_right_with_any_number_of_threads(
    tmp_path: Path, trials: list[Any], compiled_with: int
) -> None:
    """Many columns and few rows: they are parted between threads as well."""
    torch.manual_seed(6)
    before = torch.get_num_threads()
    torch.set_num_threads(compiled_with)
    try:
        module = Products(torch.randn(4096, 32) / 64)
        form = compile_module(record(module, (torch.randn(9, 4096),)), tmp_path, None)
        assert len(packed(form)) == 2
        for threads in (1, 2, 3, 4, 8):
            torch.set_num_threads(threads)
            assert all(trials[0].agrees([torch.randn(rows, 4096)]) for rows in (4, 6, 40))
    finally:
        torch.set_num_threads(before)


def test_this_torch_has_what_fixes_the_number_of_threads() -> None:
    from torch._inductor.codegen import cpp_gemm_template

    source = inspect.getsource(cpp_gemm_template)
    assert all(written in source for written in products._AT_RUN_TIME)
    assert "self.is_dynamic_M = " in source


@pytest.mark.parametrize(
    "weights, count",
    [
        (
            (
                torch.arange(3000.0).sin().view(100, 30)[20:84],
                torch.arange(1920.0).sin().view(30, 64).t(),
            ),
            3,
        ),
        ((torch.arange(3000.0).sin().view(30, 100)[:, 20:84].t(),), 0),  # not dense
    ],
)
def test_weights_that_are_part_of_a_memory(
    tmp_path: Path, trials: list[Any], weights: tuple[torch.Tensor, ...], count: int
) -> None:
    form = compile_module(record(Products(*weights), (torch.randn(5, 64),)), tmp_path, None)
    assert len(packed(form)) == count and len(trials) == 1
    assert trials[0].agrees([torch.randn(12, 64)])


def test_wrong_products_give_way(
    tmp_path: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_own_memory", lambda graph: True)  # Inductor's fault comes back
    weight = torch.randn(100, 30)[20:84]
    form = compile_module(record(Product(weight), (torch.randn(5, 64),)), tmp_path, None)
    assert len(trials) == 2 and not packed(form)
    assert trials[1].agrees([torch.randn(12, 64)])


def test_what_inductor_cannot_generate_is_compiled_without(
    tmp_path: Path, trials: list[Any]
) -> None:
    form = compile_module(record(Sums(torch.randn(64, 30)), (torch.randn(5, 64),)), tmp_path, None)
    assert not packed(form) and len(trials) == 1
    assert trials[0].agrees([torch.randn(12, 64)])


class Chosen(nn.Module):
    """Of no row, if none is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[x[:, 0] > 0]).sum(0)


class Quarter(Chosen):
    """Of no row, if there are fewer than four."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[: x.shape[0] // 4])


@pytest.mark.parametrize("kind", [Chosen, Quarter])
def test_products_of_no_rows_are_left_to_the_library(
    tmp_path: Path, trials: list[Any], kind: type[nn.Module]
) -> None:
    form = compile_module(record(kind(), (torch.ones(12, 8),), (torch.ones(9, 8),)), tmp_path, None)
    assert not packed(form)
    assert trials[-1].agrees([-torch.ones(7, 8)])


def test_shorter_numbers_are_left_to_the_library(tmp_path: Path) -> None:
    x = torch.randn(5, 64)
    calls = record(nn.Linear(64, 32), (x,))
    assert not packed(compile_module(calls, tmp_path, "bfloat16"))
    assert not packed(compile_module(record(nn.Linear(64, 32).half(), (x.half(),)), tmp_path, None))
