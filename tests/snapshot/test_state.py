"""``zerowake.snapshot.state``: what is remembered, and where."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zerowake.snapshot import state
from zerowake.snapshot.errors import SnapshotError


def test_state_directory(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    path = state.state_dir(env)
    assert path == tmp_path / "zerowake" and path.stat().st_mode & 0o777 == 0o700
    assert state.state_dir({**env, "ZEROWAKE_STATE": str(tmp_path / "s")}) == tmp_path / "s"
    path.chmod(0o720)
    with pytest.raises(SnapshotError, match="chmod go-w"):
        state.state_dir(env)
    with pytest.raises(SnapshotError, match="is no digest"):
        state.record_trust("../../x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_state_directory_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(SnapshotError, match="belongs to uid 12345"):
        state.state_dir({"ZEROWAKE_STATE": str(tmp_path)})


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="set ZEROWAKE_STATE"):
        state.state_dir({"ZEROWAKE_STATE": str(tmp_path / "file" / "state")})


def test_records_from_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "state"))
    digest = f"sha256:{0:064}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: state.record_verified(digest, [[n]]), range(400)))
    assert len(list((tmp_path / "state" / "verified").iterdir())) == 1


def test_where_nothing_can_be_remembered_snapshots_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "file" / "state"))
    digest = "sha256:" + 64 * "a"
    state.record_verified(digest, [])
    assert not state.is_verified(digest, [])
    assert not state.is_trusted(digest, frozenset())
    assert state.is_trusted(digest, frozenset((digest,)))
    with pytest.raises(state.NoState):
        state.record_trust(digest)
