"""Freezing as a whole: what is published, and that nothing half-made is."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from support import APPS, run_python, zerowake
from workshop import freeze_source, prove_here, recipe

from zerowake.snapshot import freeze as freezing
from zerowake.snapshot import manifest, publish, skeleton, state
from zerowake.snapshot.errors import DamagedSnapshot, FreezeError, ProofFailed
from zerowake.snapshot.freeze import freeze
from zerowake.snapshot.store import check_digests, open_snapshot, verify

TENSOR = "import torch\nself.t = torch.arange(1000.0)"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_fields_that_are_not_deterministic(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import itertools, random, time
        count = itertools.count()
        class App:
            def load(self): pass
            def predict(self, item):
                return {"id": next(count), "seeded": random.random(), "parts": [{"at": next(count)}]}
        """,
        cases=[[b"1"], [b"2", b"3"]],
    )
    assert "case 0 is not deterministic in items[0].id, items[0].parts[*].at" in made.notes[0]
    proof = json.loads((made.path / "proof.json").read_bytes())
    assert proof["cases"][0]["unsteady"] == ["items[0].id", "items[0].parts[*].at"]
    assert "seeded" in proof["cases"][0]["answers"][0][0]["text"]


def test_state_outside_self_does_not_come_back(tmp_path: Path) -> None:
    made, _ = recipe(
        tmp_path / "source",
        """
        class App:
            def load(self):
                self.kept = 1
            def predict(self, item):
                return {"outer": [getattr(self, "kept"), self.factor()]}
            def factor(self):
                return 1
        """,
    )
    answers = [[[b'{"outer": [1, 2]}']]]
    broken = freezing.Recipe(
        **{f: getattr(made, f) for f in made.__dataclass_fields__ if f != "prove"},
        prove=lambda path: answers,
    )
    with pytest.raises(ProofFailed, match=r"case 0, items\[0\]\.outer\[\*\].*answered 1, .* 2"):
        freeze(broken, tmp_path / "out")
    assert left_in(tmp_path / "out") == []


def test_a_failing_proof_leaves_nothing(tmp_path: Path) -> None:
    def die(path: Path) -> Any:
        assert (path / "manifest.json").exists()
        raise RuntimeError("the process died")

    with pytest.raises(RuntimeError):
        freeze_source(tmp_path, TENSOR, prove=die)
    assert left_in(tmp_path / "out") == []


def test_a_failing_probe_is_a_freeze_error(tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match=r"the probe failed: ZeroDivisionError"):
        freeze_source(
            tmp_path,
            """
            class App:
                def load(self): pass
                def predict(self, item): return 1 / 0
            """,
        )


def test_no_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(FreezeError, match=r"needs about \d+ bytes, 5000 are free"):
        freeze_source(tmp_path, TENSOR)
    assert left_in(tmp_path / "out") == []


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FreezeError, match="no space for the snapshot"):
        freeze_source(tmp_path, TENSOR)
    assert left_in(tmp_path / "out") == []


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "out" / ".zerowake-staging-dead"
    stale.mkdir(parents=True)
    (stale / "weights-00001.safetensors").write_bytes(b"x")
    seen: list[list[str]] = []

    def prove(path: Path) -> Any:
        with publish.staged(tmp_path / "out") as other:
            publish.remove_stale(tmp_path / "out")
            seen.append(left_in(tmp_path / "out"))
            assert other.exists() and path.exists()  # both are at work
        return prove_here(path)

    freeze_source(tmp_path, TENSOR, prove=prove)
    assert len(seen[0]) == 2 and stale.name not in seen[0]
    assert len(left_in(tmp_path / "out")) == 1


def test_an_existing_snapshot_is_kept(tmp_path: Path) -> None:
    first = freeze_source(tmp_path, TENSOR).path
    before = os.stat(first / "manifest.json").st_ino
    assert freeze_source(tmp_path, TENSOR).path == first
    assert os.stat(first / "manifest.json").st_ino == before


def test_names(tmp_path: Path) -> None:
    made, _ = recipe(tmp_path / "source", TENSOR)
    odd = freezing.Recipe(
        **{f: getattr(made, f) for f in made.__dataclass_fields__ if f != "name"}, name="a/b"
    )
    with pytest.raises(FreezeError, match="name is 'a/b'"):
        freeze(odd, tmp_path / "out")


def test_published_is_trusted_verified_and_public(tmp_path: Path) -> None:
    made = freeze_source(tmp_path, TENSOR)
    snapshot = open_snapshot(made.path)
    assert state.is_trusted(snapshot.digest, frozenset())
    assert snapshot.digest.removeprefix("sha256:").startswith(made.path.name.split("-")[1])
    assert made.path.stat().st_mode & 0o777 == 0o755
    assert snapshot.manifest.environment["threads"] >= 1


def test_verify(tmp_path: Path) -> None:
    made = freeze_source(tmp_path, TENSOR)
    snapshot = open_snapshot(made.path)
    done: list[int] = []
    verify(snapshot, prove_here, lambda stage, so_far, total: done.append(total - so_far))
    assert done[-1] == 0
    with pytest.raises(ProofFailed):
        verify(snapshot, lambda path: [[[b"2"]]])
    with open(made.path / "weights-00001.safetensors", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(DamagedSnapshot, match=r"block 0 of weights-00001\.safetensors is damaged"):
        verify(snapshot, prove_here)


def test_verification_is_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = freeze_source(tmp_path, TENSOR).snapshot
    hashed: list[object] = []
    check_digests(snapshot, lambda *progress: hashed.append(progress))
    assert hashed == []
    weights = snapshot.path / "weights-00001.safetensors"
    os.utime(weights)
    check_digests(snapshot, lambda *progress: hashed.append(progress))
    assert hashed != []
    hashed.clear()
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "another-user"))
    check_digests(snapshot, lambda *progress: hashed.append(progress))
    assert hashed != []


def test_weights_are_split_into_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing.layout.place, "__defaults__", (10_000,))
    made = freeze_source(
        tmp_path,
        "import torch\nself.ts = [torch.full((1000 + i,), float(i)) for i in range(9)]",
    )
    assert len(made.snapshot.manifest.segments) == 5
    assert [t[0].item() for t in made.restored.ts] == list(range(9))


def test_an_object_without_tensors(tmp_path: Path) -> None:
    made = freeze_source(tmp_path, "self.x = [1]")
    assert made.restored.x == [1] and made.snapshot.manifest.segments == ()


def test_restoring_starts_no_threads_and_plain_objects_need_no_torch(tmp_path: Path) -> None:
    tensors, plain = tmp_path / "tensors", tmp_path / "plain"
    tensors.mkdir()
    plain.mkdir()
    paths = []
    for folder, text in ((plain, "self.x = [1]"), (tensors, TENSOR)):
        paths.append(str(freeze_source(folder, text).path))
    source = f"""
import os, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from pathlib import Path
from zerowake.snapshot.code import load_code
from zerowake.snapshot.restore import restore
from zerowake.snapshot.store import open_snapshot
for path in {paths!r}:
    snapshot = open_snapshot(Path(path))
    code = load_code(snapshot, trusted=frozenset({{snapshot.digest}}), code_dir=None)
    print(restore(snapshot, code).object, {{'torch', 'numpy'}} & set(sys.modules))
    print(len(os.listdir('/proc/self/task')))
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", source], env=env, capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert lines[0].endswith("set()") and lines[1] == "1" and lines[3] == "1"


@pytest.mark.parametrize("target", ["zoo.py:Add", "zoo.py:Batched", "told.py:told"])
def test_what_holds_nothing_of_torch_is_frozen_without_it(tmp_path: Path, target: str) -> None:
    run_python(
        """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name in ("torch", "numpy"):
                    raise ImportError(f"{name} is asked for")

        sys.meta_path.insert(0, Missing())
        from zerowake.__main__ import main
        sys.argv[1:] = ["freeze", *sys.argv[1:], "--no-compile"]
        sys.exit(main())
        """,
        APPS / target,
        "--out",
        tmp_path,
    )
    (path,) = tmp_path.iterdir()
    made = open_snapshot(path)
    assert not made.skeleton.needs_torch and "threads" not in made.manifest.environment


def test_torch_that_load_has_imported_computes_with_as_many_threads_as_restored(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        from zerowake import function

        @function(threads=3, examples=[1])
        class App:
            def load(self):
                import torch
                self.weight = torch.ones(3)
            def predict(self, item: int) -> int:
                import torch
                return torch.get_num_threads()
        """)
    )
    run = zerowake(
        "freeze", tmp_path / "app.py:App", "--no-compile", "--out", tmp_path / "out", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert b'"text":"3"' in (path / "proof.json").read_bytes()


def test_without_a_probe_nothing_is_proven(tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match="no probe; give examples"):
        freeze_source(tmp_path, TENSOR, cases=[])
    made = freeze_source(tmp_path, TENSOR, cases=[], unproven=True)
    assert json.loads((made.path / "proof.json").read_text())["cases"] == []


def test_a_damaged_snapshot_is_replaced(tmp_path: Path) -> None:
    first = freeze_source(tmp_path, TENSOR).path
    with open(first / "proof.json", "r+b") as file:
        file.write(b"X")
    with open(first / "proof.json", "rb") as held:
        assert freeze_source(tmp_path, TENSOR).path == first
        assert held.read(1) == b"X"  # who has the old one open keeps it
    check_digests(open_snapshot(first), force=True)
    assert left_in(tmp_path / "out") == [first.name]


def test_freezes_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another freeze that cleans up may not take a directory for stale before it is locked, and
    the same snapshot may have been published in the meantime."""
    mkdtemp = tempfile.mkdtemp
    others: list[threading.Thread] = []

    def slow(**options: Any) -> str:
        made = mkdtemp(**options)
        monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
        others.append(threading.Thread(target=enter_and_leave))
        others[0].start()
        others[0].join(0.2)  # without a lock it is through by then, and ours is gone
        assert os.path.isdir(made)
        return made

    def enter_and_leave() -> None:
        with publish.staged(tmp_path / "out"):
            pass

    def prove(path: Path) -> Any:
        others[0].join()
        shutil.copytree(path, path.parent / published.name)
        return prove_here(path)

    published = freeze_source(tmp_path, TENSOR).path
    shutil.rmtree(published)
    monkeypatch.setattr(tempfile, "mkdtemp", slow)
    assert freeze_source(tmp_path, TENSOR, prove=prove).path == published
    assert left_in(tmp_path / "out") == [published.name]


def test_too_much_for_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "self.t = [[i] for i in range(100)]"
    monkeypatch.setattr(skeleton, "MAX_NODES", 50)
    with pytest.raises(FreezeError, match="consists of 102 objects"):
        freeze_source(tmp_path, source)
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "MAX_JSON_NBYTES", 1000)
    with pytest.raises(
        FreezeError, match=r"skeleton\.json would have .* Keep large data in arrays"
    ):
        freeze_source(tmp_path, source)


def test_short_reads_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read gives at most 2 GiB, whatever was asked for."""
    path = freeze_source(tmp_path, TENSOR).path
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 1000), at))
    snapshot = open_snapshot(path)
    check_digests(snapshot, force=True)
