"""``bench/gpu/first_result.py`` runs from end to end, tiny and on the CPU, and all its checks hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_dry_run(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    argv = [sys.executable, str(ROOT / "bench/gpu/first_result.py"), "--dry-run"]
    argv += ["--work", str(tmp_path), "--json", str(figures)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    conv, stack = json.loads(figures.read_text())
    assert (conv["kind"], stack["kind"]) == ("conv", "stack")
    for measured in (conv, stack):
        assert set(measured["checks"].values()) == {""}
        assert measured["exact"]
        ways = {"zerowake", "zerowake, forked", "safetensors", "torch.load"}
        assert {way for way, runs in measured["ways"].items() if runs} == ways
        anew_ms, kept_ms = measured["compiled_ms"]
        assert kept_ms < anew_ms and measured["checks"]["graphs are found"] == ""
    assert list(tmp_path.iterdir()) == [figures]  # nothing is left behind
