"""``zerowake.snapshot.listed``: what is hashed is what is used."""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.listed import Listed


def library(path: Path, answer: int) -> Path:
    """A shared library whose ``answer`` returns that."""
    source = f"int answer(void) {{ return {answer}; }}".encode()
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, check=True)
    return path


def listed(path: Path, most: int = 1 << 20) -> Listed:
    return Listed(path, hashlib.sha256(path.read_bytes()).hexdigest(), most)


@pytest.mark.parametrize("mode", [0o644, 0o666])  # the second: others may write to it
def test_what_was_checked_is_loaded(tmp_path: Path, mode: int) -> None:
    path = library(tmp_path / "one.so", 1)
    path.chmod(mode)
    found = listed(path)
    with found.loadable() as place:
        os.replace(library(tmp_path / "two.so", 2), path)  # between check and loading
        assert ctypes.CDLL(place).answer() == 1
    with pytest.raises(UnusableForm, match="does not have the digest"), found.loadable():
        pass


def test_what_others_write_into_it_is_not_loaded(tmp_path: Path) -> None:
    path = library(tmp_path / "one.so", 3)
    path.chmod(0o666)
    with listed(path).loadable() as place:
        path.write_bytes(b"nothing")
        assert ctypes.CDLL(place).answer() == 3


def test_two_libraries_are_not_taken_for_one(tmp_path: Path) -> None:
    """The loader goes by names, and the second has the first one's descriptor."""
    answers, numbers = [], set()
    for answer in (4, 5):
        with listed(library(tmp_path / f"{answer}.so", answer)).loadable() as place:
            numbers.add(place.rpartition("/")[2])
            answers.append(ctypes.CDLL(place).answer())
    assert answers == [4, 5] and len(numbers) == 1


def test_a_mapping_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "constants.bin"
    path.write_bytes(b"1234")
    found = listed(path)
    mapped = found.mapped()
    assert mapped is not None and bytes(mapped) == b"1234"
    path.write_bytes(b"1235")
    with pytest.raises(UnusableForm, match="does not have the digest"):
        found.mapped()
    path.unlink()
    with pytest.raises(UnusableForm, match="is missing"):
        found.mapped()
    path.touch()
    assert listed(path).mapped() is None


def test_a_mapping_is_hashed_once_while_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "constants.bin"
    path.write_bytes(b"1234")
    found, hashed = listed(path), []
    monkeypatch.setattr(Listed, "_compare", lambda self, digest: hashed.append(digest))
    for _ in range(3):
        assert found.mapped()
    assert hashed == [found.sha256]
    os.utime(path, (1, 1))
    assert found.mapped() and len(hashed) == 2


def test_more_than_there_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "constants.bin"
    path.write_bytes(b"1234")
    for use in (listed(path, 3).check, listed(path, 3).mapped):
        with pytest.raises(UnusableForm, match="4 bytes; expected at most 3"):
            use()
