"""``zerowake.snapshot.restore``: what is not there, and ``wake``."""

import os
from pathlib import Path

import pytest
from workshop import freeze_source

from zerowake.snapshot import code
from zerowake.snapshot.errors import SnapshotNotFound, WakeFailed
from zerowake.snapshot.restore import restore, wake_up
from zerowake.snapshot.store import open_snapshot


def test_not_a_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound, match="zerowake freeze"):
        open_snapshot(tmp_path)
    with pytest.raises(SnapshotNotFound):
        open_snapshot(tmp_path / "none")


def test_wake_errors_say_so(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import os
        class App:
            def load(self): self.x = 1
            def wake(self):
                self.y = 2
                if "FAIL_WAKE" in os.environ: raise OSError("no database")
            def predict(self, item): return [self.x, self.y]
        """,
    )
    assert made.restored.y == 2
    files = code.load_code(made.snapshot, trusted=frozenset(), code_dir=None)
    restored = restore(made.snapshot, files).object
    assert not hasattr(restored, "y")
    os.environ["FAIL_WAKE"] = "1"
    try:
        with pytest.raises(WakeFailed, match=r"wake\(\) of 'app' failed: OSError: no database"):
            wake_up(restored, "app")
    finally:
        del os.environ["FAIL_WAKE"]
