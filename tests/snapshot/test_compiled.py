"""``zerowake.snapshot.compiled``: what a compiled module takes, with a library that compiles nothing."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from zerowake.snapshot.compiled import CompiledModule
from zerowake.snapshot.form import Input, ModuleForm
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
        constants={},
    )
    return CompiledModule(form, Echo())  # type: ignore[arg-type]


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
    with pytest.raises(TypeError, match=said):
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
