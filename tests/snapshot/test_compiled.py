"""``zerowake.snapshot.compiled``: what a compiled module takes, calls that it does not, mixtures."""

import copy
import inspect
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_python, zerowake

from zerowake.snapshot.compiled import CompiledModule, NotTaken
from zerowake.snapshot.form import Input, ModuleForm
from zerowake.snapshot.state import state_dir
from zerowake.snapshot.strided import Array


class Echo:
    """Returns its inputs."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays)


def forward(x: Any, *more: Any, scale: Any = None, **kw: Any) -> None: ...


@pytest.fixture
def module() -> CompiledModule:
    form = ModuleForm(
        path="net",
        library="net.so",
        signature=inspect.signature(forward),
        fixed={"scale": None},
        inputs=(Input("x", "float32", ("a",)),),
        ranges={"a": (1, None)},
        output=0,
        lookups=(),
        guards={},
        constants={},
    )
    return CompiledModule(form, Echo(), None)  # type: ignore[arg-type]


def test_it_is_called_with_its_signature(module: CompiledModule) -> None:
    assert module([1.0, 2.0]) == module(x=[1.0, 2.0], scale=None) == [1.0, 2.0]


@pytest.mark.parametrize(
    "args, kwargs, said",
    [
        (([5.0],), {}, "net: it was compiled without more"),
        ((), {"temperature": 9}, "net: it was compiled without kw"),
        ((), {"scale": 2.0}, r"net\(scale=2.0\): it was compiled for scale=None"),
        ((), {"scale": [1.0, 2.0]}, "it was compiled for scale=None"),
    ],
)
def test_other_arguments_are_not_ignored(
    module: CompiledModule, args: Any, kwargs: Any, said: str
) -> None:
    with pytest.raises(NotTaken, match=said):
        module([1.0], *args, **kwargs)


def test_it_can_only_be_called(module: CompiledModule) -> None:
    for touch in (
        lambda: module.weight,
        lambda: setattr(module, "temperature", 3.0),
    ):
        with pytest.raises(AttributeError, match=r"can only be called; net\.\w+ needs the module"):
            touch()
    assert not hasattr(module, "_private")
    with pytest.raises(AttributeError):
        copy.copy(module)


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
                    if name == "fails" and not suffix:
                        told["context"] = repr(error.__context__)
        import numpy, torch
        found = target.branches(numpy.ones((2, 4), "float32"))
        told["numpy"] = [type(found).__name__, found.tolist()]
        with torch.inference_mode(False), torch.enable_grad():
            found = target.branches(torch.ones(2, 4))
        told["torch"] = [type(found).__name__, found.tolist(), found.requires_grad]
        told["threads"] = torch.get_num_threads()
        told["calls"] = restored.eager_calls()
        object.__setattr__(target.couples, "_original", lambda: 1 / 0)
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
    assert told["context"] == "None"  # else the log would show both
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


# ---- modules of which some compile


@pytest.fixture(scope="module")
def mixture(frozen: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The snapshot, what was said while it was compiled, and its answers in both forms."""
    path = tmp_path_factory.mktemp("mixture") / "snapshot"
    shutil.copytree(frozen("mixture.py:Mixture"), path)
    made = zerowake("compile", path)
    assert made.returncode == 0, made.stderr
    told = run_python(
        """
        import json, sys
        from pathlib import Path
        from zerowake.runtime.imported import import_function
        from zerowake.snapshot.form import find_form
        from zerowake.snapshot.store import open_snapshot
        snapshot = open_snapshot(Path(sys.argv[1]))
        imported = import_function(snapshot, trusted=(snapshot.digest,))
        form = find_form(snapshot)
        restored, told = imported.restore(form=form), {}
        target, eager = restored.object, imported.restore().object
        import torch
        torch.set_grad_enabled(False)
        told["types"] = {name: type(each).__name__ for name, each in vars(target).items()}
        told["part"] = target.unused.inner is target.read
        told["library"] = sorted(each.path for each in form.modules)
        told["same"], told["calls"] = [], []
        for shape in [(4, 3, 8, 9), (5, 3, 8, 9), (2, 3, 10, 9), (2, 3, 8, 12), (6, 2, 8, 9)]:
            x, before = torch.randn(shape), restored.eager_calls()
            pairs = zip(target.sizes(x).values(), eager.sizes(x).values(), strict=True)
            told["same"].append(all(torch.allclose(a, b, atol=1e-5) for a, b in pairs))
            told["calls"].append(restored.eager_calls() - before)
        told["since"] = [
            target.since(torch.tensor([1.7e9 + 0.25], dtype=torch.float64)).tolist(),
            str(target.since(torch.tensor([5.0])).dtype),
            str(target.sizes(torch.ones(2, 3, 8, 9, dtype=torch.float64))["scaled"].dtype),
        ]
        told["answers"] = target.predict(3) == eager.predict(3)
        print(json.dumps(told))
        """,
        path,
    )
    return made.stderr + made.stdout, json.loads(told.stdout), path


def test_what_does_not_compile_stays_the_authors_own(mixture: Any) -> None:
    said, told, path = mixture
    assert told["types"] == {
        "sizes": "CompiledModule",
        "since": "CompiledModule",
        "resized": "Resized",
        "read": "Inner",
        "unused": "Outer",
    }
    assert told["part"] and told["library"] == ["since", "sizes"] and told["answers"]
    assert "self.resized uses operators that only torch itself can call" in said
    assert "predict reads self.read.factor; a compiled module is only called" in said
    assert "self.unused is not called on the probe" in said
    assert "it still needs torch: self.re" in said
    names = {file.name for file in path.glob("compiled/*/*")}
    assert names == {"form.json", "constants.bin", "since.so", "sizes.so"}


def test_sizes_that_the_library_is_not_right_for_go_to_the_original(mixture: Any) -> None:
    _said, told, _path = mixture
    assert told["same"] == [True] * 5
    # An odd count takes the other branch; Inductor has taken height and width for constants.
    assert told["calls"] == [0, 1, 1, 1, 0]


def test_float64_stays_float64(mixture: Any) -> None:
    _said, told, _path = mixture
    assert told["since"] == [[0.25], "torch.float64", "torch.float64"]


def test_the_compiler_leaves_nothing_in_the_state_directory(mixture: Any) -> None:
    assert not (state_dir() / "inductor").exists()
