"""``zerowake.snapshot.publish``: a directory appears whole, once, or not at all."""

import threading
from pathlib import Path

import pytest

from zerowake.snapshot import publish as publishing
from zerowake.snapshot.publish import publish, staged, write_file


def _sound(path: Path) -> bool:
    return (path / "a" / "b").read_bytes() != b"broken"


def _publish(out: Path, data: bytes) -> None:
    with staged(out) as staging:
        write_file(staging / "a" / "b", data)
        publish(staging, out / "final", _sound)


def test_what_is_published_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    _publish(tmp_path / "new" / "out", b"1")
    assert [p.name for p in (tmp_path / "new" / "out").iterdir()] == ["final"]
    assert (tmp_path / "new" / "out" / "final").stat().st_mode & 0o777 == 0o755


def test_the_first_stays_unless_it_is_broken(tmp_path: Path) -> None:
    for data, there in ((b"broken", b"broken"), (b"1", b"1"), (b"2", b"1")):
        _publish(tmp_path, data)
        assert (tmp_path / "final" / "a" / "b").read_bytes() == there
        assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_has_the_name_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchanges: bool
) -> None:
    if not exchanges:  # a file system that cannot
        monkeypatch.setattr(publishing, "_exchange", lambda one, two: False)
    final = tmp_path / "final"
    if kind == "directory":
        _publish(tmp_path, b"broken")
    elif kind == "file":
        final.touch()
    else:
        final.symlink_to("nowhere")
    with staged(tmp_path) as staging:
        write_file(staging / "a", b"1")
        publish(staging, final, lambda old: False)
    assert (final / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_the_name_is_never_missing(tmp_path: Path) -> None:
    _publish(tmp_path, b"broken")
    final, seen, ended = tmp_path / "final", set[bool](), threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.add((final / "a" / "b").exists())

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(20):
        with staged(tmp_path) as staging:
            write_file(staging / "a" / "b", b"1")
            publish(staging, final, lambda old: False)
    ended.set()
    looking.join()
    assert seen == {True}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), staged(tmp_path) as staging:
        write_file(staging / "a", b"")
        write_file(staging / "a", b"")
    assert list(tmp_path.iterdir()) == []
