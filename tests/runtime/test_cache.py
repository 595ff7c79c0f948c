"""``zerowake.runtime.cache``: what makes an earlier snapshot of a source stale, and what a new one takes."""

import importlib.metadata
from pathlib import Path

import pytest

from zerowake.runtime.cache import _what_runs, fingerprint
from zerowake.runtime.target import parse_target
from zerowake.snapshot import names


@pytest.mark.parametrize("library", names.LIBRARIES)
def test_another_version_of_a_library_makes_a_snapshot_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    (tmp_path / "app.py").touch()
    target = parse_target(f"{tmp_path}/app.py:Name")
    before, found = fingerprint(target), importlib.metadata.version
    assert before == fingerprint(target)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.0" if name == library else found(name)
    )
    assert before != fingerprint(target)


def test_only_where_something_may_be_compiled_is_that_announced(tmp_path: Path) -> None:
    source = tmp_path / "app.py"
    source.write_text("def hello(request): ...\nclass Model: ...\n")
    hello, model = (parse_target(f"{source}:{name}") for name in ("hello", "Model"))
    assert _what_runs(hello, True) == "its module is imported"
    assert _what_runs(model, True).startswith("load runs, and its modules are compiled")
    assert _what_runs(model, False) == "load runs"
    source.write_text("def broken(:")
    assert _what_runs(hello, False) == "load runs"
