"""Modules that ``predict`` or ``wake`` use otherwise than by calls: each stays the author's own, and only it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import zerowake

USES = {
    "looked_at": "predict looks at the class of self.looked_at",
    "read": "predict reads self.read.in_features",
    "hooked": "predict reads self.hooked.register_forward_hook",
    "generates": "predict reads self.generates.generate",
    "copied": "predict reads self.copied.__deepcopy__",
    "woken": "wake reads self.woken.register_forward_hook",
}


@pytest.fixture(scope="module")
def compiling(
    frozen: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The snapshot with its form, and what was said."""
    path = tmp_path_factory.mktemp("uses") / "snapshot"
    shutil.copytree(frozen("uses.py:Uses"), path)
    run = zerowake("compile", path)
    assert run.returncode == 0, run.stderr
    return path, run.stderr


@pytest.mark.parametrize("name", USES)
def test_it_is_told_how_it_is_used(compiling: tuple[Path, str], name: str) -> None:
    _path, said = compiling
    (line,) = (line for line in said.splitlines() if f"self.{name}" in line and "original" in line)
    assert f"{USES[name]}; a compiled module is only called" in line


def test_the_module_beside_them_is_compiled_and_all_answer_as_before(
    compiling: tuple[Path, str],
) -> None:
    path, _said = compiling
    (file,) = path.glob("compiled/*/form.json")
    assert [each["path"] for each in json.loads(file.read_bytes())["modules"]] == ["called"]
    verified = zerowake("verify", path)
    assert "compiled: the proof is right (largest error " in verified.stdout, verified.stderr
