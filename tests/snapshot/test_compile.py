"""``zerowake.snapshot.calls`` and ``compile``: what compiles, and what is said of the rest."""

import array
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from recording import Target, record
from torch import nn

from zerowake.snapshot import compile, conditions
from zerowake.snapshot.arrays import Kind
from zerowake.snapshot.calls import recorded
from zerowake.snapshot.compile import compile_module
from zerowake.snapshot.eager import accept_arrays
from zerowake.snapshot.errors import CannotCompile

pytestmark = pytest.mark.usefixtures("toolchain")


def refusal(module: nn.Module, out: Path, *calls: tuple[Any, ...] | dict[str, Any]) -> str:
    with pytest.raises(CannotCompile) as caught:
        compile_module(record(module, *calls), out, None)
    return str(caught.value)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x + self.seen


class Overwrites(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Gives(nn.Module):
    """Returns whatever ``made`` makes of its input."""

    def __init__(self, made: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: torch.Tensor, *more: Any, scale: Any = None, **options: Any) -> Any:
        return self.made(x)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    "module, calls, said",
    [
        (
            Branches(),
            [(X,)],
            r"self.net does not export: test_compile.py:\d+ `return x \* 2 if x.sum\(\) > 0 else "
            r"x`: \w+: .*data-dependent.{,40}$",
        ),
        (Counts(), [(X,)], "the forward of self.net writes into module.seen"),
        (Overwrites(), [(X,)], "the forward of self.net writes into"),
        (Gives(abs), [], "self.net is not called on the probe"),
        (Gives(abs), [(X, X)], r"self.net is called with \*more"),
        (Gives(abs), [{"x": X, "k": 1}], r"self.net is called with \*\*options"),
        (Gives(abs), [(X,), {"x": X, "scale": 2.0}], "called in different ways"),
        (Gives(abs), [(X,), {"x": X, "scale": X}], "called in different ways"),
        (Gives(abs), [{"x": X, "scale": {"a": 1}}], r"self.net\(scale=...\) is a dict"),
        (Gives(lambda x: {x}), [(X,)], "returns a set; wanted tensors in containers"),
        (Gives(lambda x: (x, 5)), [(X,)], "returns a int"),
        (Gives(lambda x: x.shape), [(X,)], "returns a Size"),
        (Gives(lambda x: {1: x}), [(X,)], "returns a dictionary with a key 1; wanted str"),
    ],
)
def test_what_stands_against_compiling_is_said(
    tmp_path: Path, module: nn.Module, calls: list[Any], said: str
) -> None:
    assert re.search(said, refusal(module, tmp_path, *calls))
    assert not any(tmp_path.glob("*.so"))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    calls = record(nn.Dropout(), (X,))
    calls.module.train()
    with pytest.raises(CannotCompile, match="in training mode; call eval"):
        compile_module(calls, tmp_path, None)


def test_another_use_than_a_call_is_noted_and_done(tmp_path: Path) -> None:
    for use, said in [
        (lambda net: net[0].weight.shape == (2, 3), r"predict reads self.net\[0\]; a compiled"),
        (lambda net: len(net) == 1, "predict takes the length of self.net; a compiled"),
        (lambda net: len(list(net)) == 1, "predict iterates over self.net; a compiled"),
        (lambda net: isinstance(net, nn.Module), "predict looks at the class of self.net; a com"),
        (lambda net: str(net).startswith("Sequential("), "predict prints self.net; a compiled"),
        (lambda net: not net.training, "predict reads self.net.training; a compiled"),
        (lambda net: setattr(net, "mark", 1) is None, "predict sets self.net.mark; a compiled"),
    ]:
        target = Target(nn.Sequential(nn.Linear(3, 2)).eval())
        (calls,) = recorded(target)
        net = target.net
        assert torch.equal(net(X), calls.module(X)) and len(calls.seen) == 1
        with pytest.raises(TypeError):
            net(X, X, X)
        assert net and calls.other_use is None
        assert use(net)
        with pytest.raises(CannotCompile, match=said):
            compile_module(calls, tmp_path, None)


def test_buffers_on_the_probe() -> None:
    target = Target(nn.Identity())
    accept_arrays(target)
    (calls,) = recorded(target)
    target.net(memoryview(array.array("f", [1.0, 2.0])))
    names, _fixed = calls.arguments()
    ((found,),) = calls.tensors(names)
    assert calls.kind(names) is Kind.BUFFER and torch.equal(found, torch.tensor([1.0, 2.0]))


def test_a_module_under_two_names_is_one() -> None:
    target = Target(nn.Linear(3, 2))
    target.again = target.net  # type: ignore[attr-defined]
    (calls,) = recorded(target)
    assert target.net is target.again and calls.path == "net"  # type: ignore[attr-defined]


class Slots:
    __slots__ = ("net",)


@pytest.mark.parametrize("target", [None, Target(3), Slots(), {"net": nn.ReLU()}])
def test_an_object_without_a_module(target: Any) -> None:
    with pytest.raises(CannotCompile, match="no attribute that is a module"):
        recorded(target)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(9, 4), nn.Embedding(7, 4)

    def forward(self, ids: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        found = self.a(ids) + self.b(torch.arange(ids.shape[1]))
        return found + self.a.weight.index_select(0, more)[None, : ids.shape[1]]


def only_analysed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "_build", lambda *given: (Path(__file__), {}))
    monkeypatch.setattr(compile, "try_ones", lambda *given: None)
    trial = Mock(right=[], file=Path(__file__), weights={})
    monkeypatch.setattr(compile, "Trial", lambda *given: trial)


def test_sizes_and_values_that_are_row_numbers_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_analysed(monkeypatch)
    calls = record(
        Rows(),
        (torch.tensor([[1, 2, 3]]), torch.arange(4)),
        (torch.tensor([[1, 2], [3, 4]]), torch.arange(2)),
    )
    form = compile_module(calls, tmp_path, None)
    ids, more = form["inputs"]
    assert (ids["dtype"], ids["below"], more["below"]) == ("int64", 9, 9)
    batch, length = ids["shape"]
    assert form["ranges"][length] == (2, 7)
    assert form["ranges"][batch] == (1, None)


def test_a_module_that_takes_one_size_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_analysed(monkeypatch)
    form = compile_module(record(nn.Linear(3, 2), (X,)), tmp_path, None)
    assert form["inputs"][0]["shape"][1] == 3 and form["output"] == 0


@pytest.mark.parametrize(
    "made, said",
    [
        (["a.wrapper.cpp", "a.so", "k1.cubin"], r"files of unknown kinds: \['.cubin'\]"),
        (["a.so", "b.so"], "compiles to 2 libraries"),
        (["a.so", "a_extern_kernel_nodes.json"], "operators that only torch itself can call"),
        (["a.so", "a.wrapper.json"], "operators that only torch itself can call"),
    ],
)
def test_nothing_that_a_library_needs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str], said: str
) -> None:
    monkeypatch.setattr(torch._inductor, "aot_compile", lambda *given, **options: [*made, {}])
    with pytest.raises(CannotCompile, match=said):
        compile_module(record(nn.Linear(3, 2), (X,)), tmp_path, None)
    assert not any(tmp_path.iterdir())


class OneOfThemIsSpecial(nn.Module):
    """With one row it has another answer; with one column it is as with many."""

    def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        found = x.mean(1) + more.std(0)
        return found * 2 if x.shape[0] == 1 else found


def test_a_size_of_1_is_taken_where_it_is_tried_and_right(tmp_path: Path) -> None:
    form = compile_module(
        record(OneOfThemIsSpecial(), (torch.randn(3, 4), torch.randn(5))), tmp_path, None
    )
    (rows, columns), (count,) = (each["shape"] for each in form["inputs"])
    assert form["ranges"] == {rows: (2, None), columns: (1, None), count: (1, None)}


class Steps(nn.Module):
    """A loop over the columns is unrolled when it is exported."""

    def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return sum(x[:, at] for at in range(x.shape[1])) * more  # type: ignore[return-value]


def test_a_dimension_of_1_in_all_calls_is_tried_with_2(tmp_path: Path) -> None:
    form = compile_module(
        record(Steps(), (torch.randn(1, 3), torch.randn(1)), (torch.randn(1, 3), torch.randn(1))),
        tmp_path,
        None,
    )
    rows, columns = form["inputs"][0]["shape"]
    assert form["inputs"][1]["shape"] == [rows] and columns == 3
    assert form["ranges"] == {rows: (1, None)} and form["guards"] == []
    assert form["limits"] == "net(x: any x 3, more: any)"


class OneRow(nn.Module):
    """Another rule for one row than for several, and the probe has shown one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


class OnlyOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.copy_(x) if x.shape[0] != 1 else self.weight @ x.t()


@pytest.mark.parametrize(
    "module, limits", [(OneRow(), "net(x: 1 x any)"), (OnlyOne(), None)], ids=["rule", "raises"]
)
def test_what_the_probe_has_shown_stays_where_more_is_wrong(
    tmp_path: Path, module: nn.Module, limits: str | None
) -> None:
    form = compile_module(record(module, (torch.randn(1, 3),)), tmp_path, None)
    assert form["inputs"][0]["shape"][0] == 1 and form["limits"] == limits


def test_an_unasked_batch_that_is_called_otherwise_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_analysed(monkeypatch)
    target = Target(Gives(abs).eval())
    (calls,) = recorded(target)
    target.net(X[:1], scale=1)
    calls.is_probe = False
    target.net(X, scale=2)
    assert len(calls.seen) == len(calls.tried) == 1
    form = compile_module(calls, tmp_path, None)
    assert form["fixed"] == {"scale": 1}
    with pytest.raises(CannotCompile, match="different ranks"):
        compile_module(record(Gives(abs), (X,), (X[0],)), tmp_path, None)


@pytest.mark.parametrize(
    "branch, said",
    [
        (lambda x: x.shape[1] % 2 == 0, "x.shape[1] % 2"),
        (lambda x: x.shape[0] <= x.shape[1], "x.shape[0] <= x.shape[1]"),
        (lambda x: x.numel() <= 100, "<= 100"),
        (lambda x: x.shape[1] == 7, "x.shape[1] != 7"),
    ],
)
def test_a_branch_on_a_shape_is_a_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: Callable[..., bool], said: str
) -> None:
    only_analysed(monkeypatch)
    module = Gives(lambda x: x * 2 if branch(x) else x * 3)
    form = compile_module(record(module, (torch.randn(3, 8),)), tmp_path, None)
    (guard,) = form["guards"]
    names = form["inputs"][0]["shape"]
    is_met = conditions.parse(guard, names)
    for sizes in [(3, 8), (3, 7), (9, 8), (20, 8), (3, 9)]:
        example = torch.zeros(sizes)
        assert is_met(dict(zip(names, sizes, strict=True))) == (
            branch(example) == branch(torch.zeros(3, 8))
        )
    assert said in form["limits"]
