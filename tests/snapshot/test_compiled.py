"""Compiled forms: what compiles and what says why not, what a form must be before it is used."""

import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from support import run_python
from torch import nn

from zerowake.runtime.forms import FormName, choose
from zerowake.snapshot import compile, conditions, proof, skeleton, state
from zerowake.snapshot import form as forms
from zerowake.snapshot.compile import Calls, compile_module, recorded
from zerowake.snapshot.errors import CannotCompile, ProofFailed, UnusableForm
from zerowake.snapshot.store import open_snapshot

# ---- what is compiled, and what is not


class Target:
    def __init__(self, module: Any) -> None:
        self.net = module


def record(module: nn.Module, *calls: tuple[Any, ...] | dict[str, Any]) -> Calls:
    target = Target(module.eval())
    (found,) = recorded(target)
    with torch.inference_mode():  # as predict runs
        for call in calls:
            target.net(**call) if isinstance(call, dict) else target.net(*call)
    return found


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
        (Branches(), [(X,)], "self.net does not export: .*[Dd]ata"),
        (Counts(), [(X,)], "the forward of self.net writes into module.seen"),
        (Overwrites(), [(X,)], "the forward of self.net writes into"),
        (Gives(abs), [], "self.net is not called on the probe"),
        (Gives(abs), [(X, X)], r"self.net is called with \*args"),
        (Gives(abs), [{"x": X, "k": 1}], r"self.net is called with \*\*options"),
        (Gives(abs), [(X,), {"x": X, "scale": 2.0}], "called in different ways"),
        (Gives(abs), [(X,), {"x": X, "scale": X}], "called in different ways"),
        (Gives(abs), [{"x": X, "scale": {"a": 1}}], r"self.net\(scale=...\) is a dict"),
        (Gives(lambda x: {x}), [(X,)], "returns a set; wanted tensors in containers"),
        (Gives(lambda x: (x, 5)), [(X,)], "returns a int"),
        (Gives(lambda x: x.shape), [(X,)], "returns a Size"),
    ],
)
def test_what_stands_against_compiling_is_said(
    tmp_path: Path, module: nn.Module, calls: list[Any], said: str
) -> None:
    import re

    assert re.search(said, refusal(module, tmp_path, *calls))
    assert not any(tmp_path.glob("*.so"))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    calls = record(nn.Dropout(), (X,))
    calls.module.train()
    with pytest.raises(CannotCompile, match="in training mode; call eval"):
        compile_module(calls, tmp_path, None)


def test_a_recorder_can_only_be_called() -> None:
    calls = record(nn.Linear(3, 2))
    for read in (lambda: calls.weight, lambda: calls.eval(), lambda: hasattr(calls, "config")):
        with pytest.raises(CannotCompile, match=r"predict reads self.net\.\w+; a compiled module"):
            read()
    with pytest.raises(TypeError):
        calls(X, X, X)


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
    monkeypatch.setattr(compile, "_try_ones", lambda *given: None)
    monkeypatch.setattr(compile, "_Trial", lambda *given: Mock(right=[]))


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
    module = Gives(abs)
    calls = record(module, {"x": X[:1], "scale": 1})
    calls.is_probe = False
    calls(X, scale=2)
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


@pytest.mark.parametrize(
    "text",
    ["a.b == 1", "__import__('os') == 1", "a[0] == 1", "c == 1", "a == 'x'", "a ==", "max == 1"],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="a condition"):
        conditions.parse(text, ["a", "b"])


def test_conditions() -> None:
    assert conditions.parse("max(a, 2) // b >= 1 and not a % 2", "ab")({"a": 4, "b": 2})
    assert not conditions.parse("a // (b - 1) == 3", "ab")({"a": 4, "b": 1})


# ---- calls that the library does not take


@pytest.fixture(scope="module")
def said_of_shapes(compiled: Callable[[str], Path]) -> "subprocess.CompletedProcess[str]":
    """One process serves all tests of what the original answers: it imports torch late."""
    return run_python(
        """
        import json, sys
        from pathlib import Path
        from zerowake.runtime import process
        from zerowake.runtime.imported import import_function
        from zerowake.snapshot.form import find_form
        from zerowake.snapshot.store import open_snapshot
        snapshot = open_snapshot(Path(sys.argv[1]))
        imported = import_function(snapshot, trusted=(snapshot.digest,))
        restored = imported.restore(form=find_form(snapshot))
        apart = imported.restore(form=find_form(snapshot), fall_back=False).object
        target, told = restored.object, {}
        process.set_threads(1)
        batch = target.predict([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.5, 5.0]])
        told["batch"] = [batch, "torch" in sys.modules, restored.eager_calls()]
        long, even = [1.0] * 20, [1.0, 2.0]
        for module in (target.branches, apart.branches):
            module._form.fixed.update(scale=1.0)
        calls = {
            "even": lambda m: m([even]),
            "long": lambda m: m([long]),
            "rank": lambda m: m([[even]]),
            "scale": lambda m: m([even + [3.0]], scale=2.0),
            "scales": lambda m: m([even + [3.0]], scale=[2.0, 2.0, 1.0]),
            "options": lambda m: m([even + [3.0]], more=1.0),
            "wrong": lambda m: m([["a", "b", "c"]]),
            "fails": lambda m: m([even], scale=[[1.0] * 7]),
            "taken": lambda m: m([[1.0, 2.0, 3.0]]),
        }
        for name, call in calls.items():
            for module, suffix in ((target.branches, ""), (apart.branches, " alone")):
                try:
                    told[name + suffix] = call(module)
                except Exception as error:
                    told[name + suffix] = f"{type(error).__name__}: {error}"
        import numpy, torch
        found = target.branches(numpy.ones((2, 4), "float32"))
        told["numpy"] = [type(found).__name__, found.tolist()]
        with torch.inference_mode(False), torch.enable_grad():
            found = target.branches(torch.ones(2, 4))
        told["torch"] = [type(found).__name__, found.tolist(), found.requires_grad]
        told["threads"] = torch.get_num_threads()
        told["calls"] = restored.eager_calls()
        target.couples._original = lambda: 1 / 0
        try:
            target.couples([[[1.0]]])
        except ValueError as error:
            told["not here"] = str(error)
        eager = imported.restore().object
        told["eager"] = [eager.predict([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.5, 5.0]])]
        for name in ("even", "long", "rank", "scale", "options", "taken"):
            told["eager"].append(calls[name](eager.branches))
        told["weight"] = eager.branches.weight.item()
        print(json.dumps(told))
        """,
        compiled("shapes.py:Shapes"),
    )


def test_a_batch_of_several_is_compiled_though_one_example_was_given(
    told: dict[str, Any],
) -> None:
    batch, torch_is_there, eager_calls = told["batch"]
    assert not torch_is_there and eager_calls == 0
    for found, wanted in zip(batch, told["eager"][0], strict=True):
        assert found["coupled"] == pytest.approx(wanted["coupled"], rel=1e-5)
        assert found["branches"] == pytest.approx(wanted["branches"], rel=1e-5)


def test_the_original_answers_what_the_library_does_not_take(told: dict[str, Any]) -> None:
    names = ("even", "long", "rank", "scale", "options", "taken")
    for name, wanted in zip(names, told["eager"][1:], strict=True):
        found = torch.tensor(told[name])
        assert found.shape == torch.tensor(wanted).shape
        assert torch.allclose(found, torch.tensor(wanted))
    assert told["scales"][0] == pytest.approx([x * told["weight"] for x in (2.0, 4.0, 3.0)])
    assert told["numpy"] == ["ndarray", [[pytest.approx(1 + told["weight"])] * 4] * 2]
    assert told["torch"] == ["Tensor", told["numpy"][1], False]
    assert told["threads"] == 1  # as they were set before torch was there


def test_what_it_raises_goes_to_the_caller(told: dict[str, Any]) -> None:
    assert told["wrong"] == told["wrong alone"] and told["wrong"].startswith(
        "TypeError: branches: x"
    )
    assert told["fails"].startswith("RuntimeError: The size of tensor")
    assert "division by zero" in told["not here"] and "add an example" in told["not here"]
    assert told["not here"].startswith("couples: x: more than 2 dimensions; wanted 2; the original")


def test_without_the_original_such_calls_fail(told: dict[str, Any]) -> None:
    for name in ("even", "long", "rank", "scale", "scales", "options", "fails"):
        assert told[f"{name} alone"].startswith("NotTaken: branches"), told
    assert "the compiled form takes 1 to 16" in told["long alone"]
    assert "x.shape[1]=2; the compiled form takes those with (x.shape[1] % 2)" in told["even alone"]
    assert told["taken alone"] == told["taken"]


def test_it_is_told_once_and_counted(
    told: dict[str, Any], said_of_shapes: "subprocess.CompletedProcess[str]"
) -> None:
    (line,) = [line for line in said_of_shapes.stderr.splitlines() if "branches" in line]
    assert "% 2" in line and "add an example like this one and freeze again" in line
    assert told["calls"] == 9


@pytest.fixture(scope="module")
def told(said_of_shapes: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said_of_shapes.stdout)
    return found


# ---- what a form must be before it is used


@pytest.fixture
def copy(compiled: Callable[[str], Path], tmp_path: Path) -> Path:
    """Ours to spoil: a snapshot with its form."""
    path = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), path)
    return path


def form_file(snapshot: Path) -> Path:
    (found,) = snapshot.glob("compiled/*/form.json")
    return found


def reason(snapshot: Path, *trusted: str) -> str:
    chosen = choose(open_snapshot(snapshot), trusted, "cpu")
    assert chosen.name is FormName.EAGER and chosen.compiled is None and chosen.needs_torch
    return chosen.reason


def rewrite(snapshot: Path, change: Callable[[Any], Any]) -> str:
    """Change form.json and everything that vouches for it; its digest."""
    file = form_file(snapshot)
    plain = json.loads(file.read_bytes())
    changed = change(plain)
    file.write_text(json.dumps(plain if changed is None else changed))
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    state.record_trust(digest)
    return digest


def test_a_good_form_is_chosen(copy: Path) -> None:
    chosen = choose(open_snapshot(copy), (), "cpu")
    assert chosen.name is FormName.TORCH_FREE and not chosen.needs_torch and chosen.reason == ""
    assert choose(open_snapshot(copy), (), "cuda").reason == "compiled forms are for the CPU"


def test_without_a_form(copy: Path) -> None:
    shutil.rmtree(copy / "compiled")
    assert "it has no compiled form; `zerowake compile` makes one" in reason(copy)


def test_a_form_for_another_machine(copy: Path) -> None:
    form_file(copy).parent.rename(copy / "compiled" / "0123456789abcdef")
    assert "for other machines, torch versions or devices" in reason(copy)


def test_the_fingerprint_tells_torch_and_processor_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = forms.fingerprint_id()
    assert forms.fingerprint()["torch"] == str(torch.__version__)
    monkeypatch.setattr(forms, "_torch", lambda: "9.9")
    other = forms.fingerprint_id()
    monkeypatch.setattr(forms, "_cpu", lambda: "another")
    assert len({here, other, forms.fingerprint_id()}) == 3


def test_a_form_that_nobody_vouches_for(copy: Path) -> None:
    file = form_file(copy)
    file.write_bytes(file.read_bytes() + b"\n")
    said = reason(copy)
    assert "was not compiled by this user on this machine" in said
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in said
    assert choose(open_snapshot(copy), (digest,), "cpu").name is FormName.TORCH_FREE


@pytest.mark.parametrize("name", ["text.so", "constants.bin"])
def test_a_file_that_was_changed(copy: Path, name: str) -> None:
    file = form_file(copy).with_name(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert f"{name} does not have the digest that form.json names" in reason(copy)


def test_files_missing_or_too_many(copy: Path) -> None:
    (form_file(copy).parent / "more.so").touch()
    assert "more.so is not listed in form.json" in reason(copy)
    (form_file(copy).parent / "more.so").unlink()
    form_file(copy).with_name("image.so").unlink()
    assert "image.so" in reason(copy)


def test_a_form_of_another_snapshot(copy: Path) -> None:
    rewrite(copy, lambda plain: plain.update(snapshot="sha256:" + "0" * 64))
    assert "belongs to another snapshot" in reason(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 99}',
        b'{"format": 2, "modules": [], "torch_free": true, "error": 0}',
        b'{"format": 2, "modules": [], "torch_free": true, "error": 0, "snapshot": "x", "files": 1}',
    ],
)
def test_a_form_file_that_is_none(copy: Path, data: bytes) -> None:
    form_file(copy).write_bytes(data)
    assert "form.json" in reason(copy)


def test_a_form_file_that_is_a_directory(copy: Path) -> None:
    form_file(copy).unlink()
    (next((copy / "compiled").iterdir()) / "form.json").mkdir()
    assert reason(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.update(library="../../evil.so"),
        lambda module: module.update(library="/evil.so"),
        lambda module: module["inputs"][0].update(dtype="complex64"),
        lambda module: module["inputs"][0].update(shape=["a", "b"]),
        lambda module: module.update(signature=[["x", "NO_KIND", []]]),
        lambda module: module.update(signature=[["not a name", "POSITIONAL_ONLY", []]]),
        lambda module: module.update(ranges=5),
        lambda module: module.update(guards=["__import__('os')"]),
        lambda module: module["constants"].update(x=["float33", [1], [1], 0]),
        lambda module: module["constants"].update(x=["float32", [-1], [1], 0]),
        lambda module: module["constants"].update(x=["float32", [1, 1], [1], 0]),
        lambda module: module.pop("output"),
    ],
)
def test_a_field_that_is_not_as_it_should_be(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite(copy, lambda plain: [change(plain["modules"][0]), plain][1])
    assert "form.json does not hold a form" in reason(copy)


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "wrong shape": (
        lambda text: text["constants"]["positions.weight"].__setitem__(1, [600, 4]),
        "the library wants float32 (600, 4)",
    ),
    "wrong strides": (
        lambda text: text["constants"]["positions.weight"].__setitem__(2, [1, 6]),
        "with strides (1, 6)",
    ),
    "wrong dtype": (
        lambda text: text["constants"]["positions.weight"].__setitem__(0, "int32"),
        "the library wants float32",
    ),
    "a constant less": (
        lambda text: text["constants"].pop("positions.weight"),
        "which nothing holds",
    ),
    "past the end": (
        lambda text: text["constants"]["positions.weight"].__setitem__(3, 10**6),
        "constants.bin ends before a constant",
    ),
    "before the start": (
        lambda text: text["constants"]["positions.weight"].__setitem__(3, -64),
        "constants.bin ends before a constant",
    ),
    "one input more": (
        lambda text: text["inputs"].append(text["inputs"][0]),
        "takes 1 inputs, not 2",
    ),
    "no such module": (lambda text: text.update(path="audio"), "the object has no module 'audio'"),
    "another library": (lambda text: text.update(library="image.so"), "which nothing holds"),
    "an output too many": (lambda text: text.update(output=7), "output"),
    "fixed, and no such argument": (lambda text: text.update(fixed={"z": 1}), "z"),
    "an input that is no argument": (lambda text: text["inputs"][0].update(name="z"), "z"),
}


def test_a_form_that_lies_is_found_out_before_it_runs(copy: Path, tmp_path: Path) -> None:
    """Each by somebody whom the operator trusts, and all in one process: none of them ends it."""
    copies = []
    for place, (lie, _said) in enumerate(LIES.values()):
        other = tmp_path / str(place)
        shutil.copytree(copy, other)
        rewrite(other, lambda plain, lie=lie: [lie(plain["modules"][0]), plain][1])
        copies.append(other)
    said = run_python(
        """
        import sys
        from pathlib import Path
        from zerowake.snapshot import compiled, form
        from zerowake.snapshot.errors import UnusableForm
        from zerowake.snapshot.mapping import map_file
        from zerowake.snapshot.store import open_snapshot
        for path in sys.argv[1:]:
            snapshot = open_snapshot(Path(path))
            mapped = [map_file(snapshot.path / s.file, s.nbytes) for s in snapshot.manifest.segments]
            try:
                compiled.load(form.find_form(snapshot), snapshot, mapped)
                print("it was loaded")
            except UnusableForm as error:
                print(str(error).replace("\\n", " "))
        """,
        *copies,
    ).stdout.splitlines()
    for (name, (_lie, wanted)), line in zip(LIES.items(), said, strict=True):
        assert wanted in line, name


# ---- the pieces


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


def evidence(answer: Any) -> proof.Proof:
    return proof.Proof([[b"1"]], [[[json.dumps(answer).encode()]]], [[]])


def found(answer: Any) -> list[proof.Answers]:
    return [[[json.dumps(answer).encode()]]]


@pytest.mark.parametrize(
    "old, new, error",
    [
        (1.0, 1.0, 0.0),
        (1.0, 1.1, 0.1 / 1.1),
        ([1.0, 0.0], [0.0, 1.0], 1.0),
        ([3.0, 4.0], [4.0, 3.0], 1 - 24 / 25),
        ([1.0, 2.0], [2.0, 4.0], 0.5),  # the same direction, and not the same
        ([0.1], [0.9], 8 / 9),
        ([1.0], [-1.0], 2.0),
        ([0.0, 0.0], [3.0, 4.0], 5.0),
        ({"a": [[1.0, 1.0], [1.0, 1.0]]}, {"a": [[1.0, 1.0], [1.0, 0.0]]}, 1 - 1 / math.sqrt(2)),
        ("same", "same", 0.0),
    ],
)
def test_distance(old: Any, new: Any, error: float) -> None:
    assert proof.distance(evidence(old), found(new)) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    "old, new",
    [
        ("cat", "dog"),
        (True, False),
        (1.0, None),
        ([1.0, 2.0], [1.0]),
        ([1.0], 1.0),
        ({"a": 1}, {"b": 1}),
        (["a"], ["b"]),
        ([1.0], ["x"]),
    ],
)
def test_what_is_no_number_must_be_the_same(old: Any, new: Any) -> None:
    with pytest.raises(ProofFailed):
        proof.distance(evidence(old), found(new))
    with pytest.raises(ProofFailed, match="asked"):
        proof.distance(evidence(old), [])


def test_unsteady_fields_count_for_nothing() -> None:
    unsteady = proof.Proof([[b"1"]], [[[b'{"a": 1, "b": 2}']]], [["items[0].a"]])
    assert proof.distance(unsteady, found({"a": 5, "b": 2})) == 0.0


def test_a_compiled_module_that_is_not_there(compiled: Callable[[str], Path]) -> None:
    snapshot = open_snapshot(compiled("nets.py:Nets"))
    with pytest.raises(UnusableForm, match="no module"):
        forms.module_node(snapshot, "forget")
