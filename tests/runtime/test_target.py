"""``zerowake.runtime.target``: a function's source is found without running any of it."""

import sys
from pathlib import Path

import pytest

from zerowake.runtime.errors import TargetError
from zerowake.runtime.target import parse_target

FILES = {
    "raising/__init__.py": "raise RuntimeError('imported')",
    "raising/app.py": "",
    "raising/inner/__init__.py": "raise RuntimeError('imported')",
    "raising/inner/app.py": "",
    "bare/inner/app.py": "",
    "alone.py": "",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("raising", "raising/__init__.py"),
        ("raising.app", "raising/app.py"),
        ("raising.inner", "raising/inner/__init__.py"),
        ("raising.inner.app", "raising/inner/app.py"),
        ("bare.inner.app", "bare/inner/app.py"),
        ("alone", "alone.py"),
    ],
)
def test_a_module_is_found_and_its_packages_are_not_imported(
    root: Path, module: str, file: str
) -> None:
    target = parse_target(f"{module}:Name")
    assert target.entry == root / file and target.root == root
    assert target.qualified == f"{module}:Name"
    assert not sys.modules.keys() & {"raising", "bare", "alone"}


@pytest.mark.parametrize(
    "module", ["raising.none", "raising.none.app", "alone.app", "bare.inner", "none", "sys", "a-b"]
)
def test_a_module_without_a_source_file(root: Path, module: str) -> None:
    with pytest.raises(TargetError, match=f"{module} has no source file on the path"):
        parse_target(f"{module}:Name")


@pytest.mark.parametrize("module", ["raising..app", ".app", "raising."])
def test_no_module(root: Path, module: str) -> None:
    with pytest.raises(TargetError):
        parse_target(f"{module}:Name")


def test_a_file_in_the_current_directory_is_suggested(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "nearby.py").touch()
    monkeypatch.chdir(root / "folder")
    with pytest.raises(TargetError, match=r"did you mean nearby.py:Name\?"):
        parse_target("nearby:Name")
