"""A snapshot to send through a network that misbehaves."""

import textwrap
from pathlib import Path

import pytest
from support import zerowake


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with 40 MB of weights: several parts."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "big.py").write_text(
        textwrap.dedent(
            """
            from zerowake import function

            @function(examples=[1])
            class Big:
                def load(self) -> None:
                    import torch

                    self.table = torch.arange(10_000_000, dtype=torch.float32)

                def predict(self, index: int) -> float:
                    return float(self.table[index])
            """
        )
    )
    run = zerowake("freeze", folder / "big.py:Big", "--out", folder / "out", "--no-compile")
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.splitlines()[-1])
