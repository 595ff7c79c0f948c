"""``zerowake.snapshot.fingerprint`` and ``installed_torch``: what they tell without importing torch."""

from pathlib import Path

import pytest
import torch
from support import run_python

from zerowake.snapshot import fingerprint, installed_torch
from zerowake.snapshot.errors import UnusableForm


def test_the_fingerprint_tells_torch_processor_and_threads_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = fingerprint.fingerprint_id()
    assert fingerprint.fingerprint()["torch"] == str(torch.__version__)
    monkeypatch.setattr(fingerprint, "_torch", lambda: "9.9")
    other = fingerprint.fingerprint_id()
    monkeypatch.setattr(fingerprint, "_cpu", lambda: "another")
    third = fingerprint.fingerprint_id()
    monkeypatch.setattr(fingerprint, "THREADS", "2")  # code for as many and no others
    assert len({here, other, third, fingerprint.fingerprint_id()}) == 4


def test_the_installed_torch_is_found_and_not_imported() -> None:
    found = run_python(
        """
        import sys
        from zerowake.snapshot import installed_torch
        print(installed_torch.library(), installed_torch.version(), "torch" in sys.modules)
        """
    ).stdout.split()
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    assert found == [str(library), str(torch.__version__), "False"]


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_torch, "_folder", lambda: None)
    assert installed_torch.library() is None and installed_torch.version() is None
    fingerprint._torch.cache_clear()
    with pytest.raises(UnusableForm, match="torch is not installed"):
        fingerprint.fingerprint()
