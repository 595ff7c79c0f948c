"""``zerowake.runtime.framework`` where functions-framework is not installed.

With it: ``tests/adapters/test_functions_framework.py``.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from zerowake.runtime import framework
from zerowake.runtime.errors import DeclarationError, TargetError
from zerowake.runtime.target import load_function

SIGNATURE = framework.SIGNATURE


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """``module("name", "source")``: it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(SIGNATURE, raising=False)

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_what_looks_like_one_before_it_runs(module: Callable[[str, str], str]) -> None:
    plain = module("plain_one", "raise RuntimeError")
    named = module("named_one", "import functions_framework\nraise RuntimeError")
    assert not framework.looks_like_one(plain, {})
    assert framework.looks_like_one(plain, {SIGNATURE: "http"})
    assert framework.looks_like_one(named, {})
    assert not framework.looks_like_one("math", {})  # has no source
    assert not framework.looks_like_one("no_such_module", {})


def test_a_plain_function_is_told_all_that_it_could_be(
    module: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("undeclared", "def hello(request): return 'x'\nclass Hello: pass\n")
    for _ in range(2):
        with pytest.raises(DeclarationError, match=SIGNATURE):
            load_function(f"{name}:hello")
        monkeypatch.setenv(SIGNATURE, "http")  # and the package is not there
    with pytest.raises(DeclarationError) as refused:
        load_function(f"{name}:Hello")
    assert SIGNATURE not in str(refused.value)


def test_the_package_that_is_missing_is_named(module: Callable[[str, str], str]) -> None:
    name = module("wants_it", "import functions_framework\n")
    with pytest.raises(TargetError, match=r"named 'functions_framework'.*; pip install f"):
        load_function(f"{name}:hello")


def test_our_own_functions_are_ours_whatever_is_set(
    module: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNATURE, "http")
    source = (
        "# not of functions_framework\nimport zerowake\n@zerowake.function\ndef f(x): return x\n"
    )
    assert load_function(f"{module('our_own', source)}:f").kind == "handler"
