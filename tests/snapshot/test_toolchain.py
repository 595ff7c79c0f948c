"""``zerowake.snapshot.toolchain``: what is kept of it, with the compiler of this machine."""

import os
from pathlib import Path

import pytest
from torch._inductor import codecache, cpu_vec_isa
from torch._inductor.cpu_vec_isa import VecAVX2, VecISA

from zerowake.snapshot import toolchain
from zerowake.snapshot.toolchain import remembered

GOOD, BAD = 'extern "C" void here() {}', "here"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code that was built."""
    codes: list[str] = []
    check = VecISA.check_build

    def counted(isa: VecISA, code: str) -> bool:
        codes.append(code)
        return check(isa, code)

    monkeypatch.setattr(VecISA, "check_build", counted)
    return codes


def test_what_works_is_seen_once_and_what_does_not_each_time(
    tmp_path: Path, checked: list[str]
) -> None:
    for _ in range(2):
        with remembered(tmp_path / "new"):
            assert VecAVX2().check_build(GOOD) and not VecAVX2().check_build(BAD)
    assert checked == [GOOD, BAD, BAD]
    assert VecAVX2().check_build(GOOD) and checked[3:] == [GOOD]


def test_headers_are_kept_once_they_are_whole(tmp_path: Path) -> None:
    before = codecache._HEADER_DIR

    def header(name: str) -> Path:
        return Path(codecache._HEADER_DIR, f"{name}.h.gch")

    with remembered(tmp_path):
        header("one").write_text("1")
        assert list(tmp_path.glob("*.gch")) == []
    with pytest.raises(KeyboardInterrupt), remembered(tmp_path):
        header("half").write_text("2")
        raise KeyboardInterrupt
    with remembered(tmp_path):
        assert header("one").read_text() == "1" and not header("half").exists()
    assert before == codecache._HEADER_DIR
    assert [file.name for file in tmp_path.iterdir()] == ["one.h.gch"]


def test_the_oldest_headers_go(tmp_path: Path) -> None:
    for place in range(6):
        with remembered(tmp_path):
            header = Path(codecache._HEADER_DIR, f"{place}.gch")
            header.touch()
            os.utime(header, (place, place))  # the clock of a file system may stand still meanwhile
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{n}.gch" for n in range(2, 6)]


def test_this_torch_is_known() -> None:
    assert toolchain._has(codecache, toolchain._OF_CODECACHE)
    assert toolchain._has(cpu_vec_isa, toolchain._OF_ISA)


def test_with_another_torch_each_form_begins_anew(
    tmp_path: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(codecache, "_HEADER_LOCK_DIR")
    for _ in range(2):
        with remembered(tmp_path / "new"):
            assert VecAVX2().check_build(GOOD)
    assert checked == [GOOD] * 2 and not (tmp_path / "new").exists()


def test_with_another_class_of_instructions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(VecISA, "check_build")
    with remembered(tmp_path / "new"):
        assert not (tmp_path / "new").exists()
