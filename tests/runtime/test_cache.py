"""``zerowake.runtime.cache``: what makes an earlier snapshot of a source stale."""

import importlib.metadata
from pathlib import Path

import pytest

from zerowake.runtime.cache import fingerprint
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
