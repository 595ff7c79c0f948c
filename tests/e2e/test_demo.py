"""The demo of the README, from end to end, on the real model."""

import re
import subprocess
import sys
from pathlib import Path

from support import PATIENCE_S, ROOT

from zerowake.snapshot.form import find_form
from zerowake.snapshot.store import open_snapshot


def test_the_demo_shows_every_depth_and_leaves_nothing_running() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 3,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for part in ("384 numbers", "prewarmed ", "zygote ", "cold ", "base zygote", "predict"):
        assert part in run.stdout
    # The example is what README and the deployment files say of it: it runs without torch.
    (path,) = re.findall(r"-> (.*)", run.stdout)
    assert find_form(open_snapshot(Path(path))).torch_free
