"""Every hostile snapshot is refused with its own reason, before anything of it is imported."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import make
from workshop import own_imports

from zerowake.snapshot import errors
from zerowake.snapshot.errors import DamagedSnapshot, ForbiddenClass, UnusableForm
from zerowake.snapshot.fingerprint import fingerprint_id
from zerowake.snapshot.form import find_form
from zerowake.snapshot.store import check_digests, open_snapshot

CORPUS = Path(__file__).parent / "corpus"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CORPUS / "expected.json").read_text())


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the corpus's code touches when it is imported."""
    path = tmp_path / "canary"
    monkeypatch.setenv("ZEROWAKE_CANARY", str(path))
    return path


def build(case: str, target: Path) -> Path:
    """The hostile snapshot: the good one with the case's files over it."""
    shutil.copytree(CORPUS / "good", target)
    for path in EXPECTED.get(case, {}).get("without", []):
        (target / path).unlink()
    if (CORPUS / case).is_dir():
        shutil.copytree(CORPUS / case, target, dirs_exist_ok=True)
    return target


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_is_refused(case: str, tmp_path: Path, canary: Path) -> None:
    expected = EXPECTED[case]
    path = build(case, tmp_path / "snapshot")
    before = set(sys.modules)
    if expected["stage"] == "open":
        with pytest.raises(errors.SnapshotError) as refusal:
            open_snapshot(path)
    else:
        snapshot = open_snapshot(path)
        with pytest.raises(errors.SnapshotError) as refusal:
            check_digests(snapshot, force=True)
    assert type(refusal.value).__name__ == expected["error"]
    assert expected["reason"] in str(refusal.value)
    if isinstance(refusal.value, DamagedSnapshot):
        assert str(refusal.value).count("; copy or freeze the snapshot again") == 1
        if [file.name for file in (CORPUS / case).glob("*")] == ["manifest.json"]:
            assert "manifest" in str(refusal.value)
    assert set(sys.modules) == before
    assert not canary.exists()


def test_the_corpus_is_what_its_generator_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "CORPUS", tmp_path / "corpus")
    make.main()
    there = {p.relative_to(CORPUS): p.read_bytes() for p in CORPUS.rglob("*") if p.is_file()}
    fresh = tmp_path / "corpus"
    assert there == {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()}


def test_the_good_one_is_good(canary: Path) -> None:
    """Otherwise the others might be refused for the wrong reason."""
    from zerowake.snapshot.code import load_code
    from zerowake.snapshot.restore import restore

    snapshot = open_snapshot(CORPUS / "good")
    check_digests(snapshot, force=True)
    with own_imports():
        code = load_code(snapshot, trusted=frozenset({snapshot.digest}), code_dir=None)
        app = restore(snapshot, code).object
    assert canary.exists()
    assert app.model.weight.tolist()[1] == [4, 5, 6, 7] and app.view.tolist()[0] == [20, 22, 24]
    assert app.array[0] == 16 and app.words == {"a": 1} and app.n == 1


def test_what_another_process_has_checked(tmp_path: Path) -> None:
    """Only the same digest stands for it, and files may have changed since."""
    good = open_snapshot(CORPUS / "good")
    again = open_snapshot(CORPUS / "good", checked=good.digest)
    assert (again.digest, again.manifest) == (good.digest, good.manifest)
    for part in ("root", "nodes", "early", "names"):
        assert getattr(again.skeleton, part) == getattr(good.skeleton, part)
    for case in ("name-eval", "truncated-weights", "flip-skeleton"):
        with pytest.raises(errors.SnapshotError):
            open_snapshot(build(case, tmp_path / case), checked=good.digest)


@pytest.mark.parametrize(
    "place", ["weights-00001.safetensors", "code/app.py", "assets", "compiled"]
)
def test_symbolic_links_are_refused(place: str, tmp_path: Path) -> None:
    path = build("good", tmp_path / "snapshot")
    if (path / place).exists():
        (path / place).rename(tmp_path / "moved")
    (path / place).symlink_to(tmp_path / "moved")
    with pytest.raises(DamagedSnapshot, match="symbolic link"):
        open_snapshot(path)


def test_a_link_put_in_later_is_refused(tmp_path: Path) -> None:
    path = build("good", tmp_path / "snapshot")
    snapshot = open_snapshot(path)
    (path / "proof.json").rename(tmp_path / "moved")
    (path / "proof.json").symlink_to(tmp_path / "moved")
    with pytest.raises(DamagedSnapshot, match="symbolic link"):
        check_digests(snapshot, force=True)


def test_directories_without_end_are_refused(tmp_path: Path) -> None:
    path = build("good", tmp_path / "snapshot")
    fd = os.open(path, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python recurses; the whole path would be too long to name
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(DamagedSnapshot, match="nested deeper than 16"):
        open_snapshot(path)
    subprocess.run(["rm", "-r", path], check=True)  # what pytest itself would stumble over


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = build("good", tmp_path / "snapshot")
    (path / os.fsdecode(b"assets/\xff")).touch()
    with pytest.raises(DamagedSnapshot, match="not listed") as refusal:
        open_snapshot(path)
    str(refusal.value).encode("utf-8")  # as the log and the HTTP reply do


def test_special_files_are_refused(tmp_path: Path) -> None:
    path = build("good", tmp_path / "snapshot")
    (path / "proof.json").unlink()
    os.mkfifo(path / "proof.json")
    with pytest.raises(DamagedSnapshot, match=r"no regular file"):
        open_snapshot(path)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _link(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _huge(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


def _infinite(file: Path) -> None:
    file.write_text(
        '{"format": 2, "snapshot": "", "torch_free": true, "dtype": null, "modules": [], '
        '"files": {}, "error": 1' + "0" * 400 + "}"
    )


def _elsewhere(file: Path) -> None:
    file.write_text(
        '{"format": 2, "snapshot": "", "torch_free": true, "dtype": null, "modules": [], '
        '"files": {"../../../../dev/zero": ""}, "error": 0}'
    )


@pytest.mark.parametrize(
    "make_form, said",
    [
        (_fifo, "no regular file"),
        (_link, "symbolic link"),
        (_huge, "expected at most"),
        (_infinite, "does not hold a form"),
        (_elsewhere, "does not hold a form"),
    ],
)
def test_a_strangers_form_neither_holds_up_nor_ends_who_looks(
    make_form: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    snapshot = open_snapshot(build("good", tmp_path / "snapshot"))
    file = snapshot.path / "compiled" / fingerprint_id() / "form.json"
    file.parent.mkdir(parents=True)
    make_form(file)
    with pytest.raises(UnusableForm, match=said):
        find_form(snapshot)


def test_a_module_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's module whose ``__getattr__`` offers something else has no say."""
    import types

    from zerowake.snapshot import names

    lying = types.ModuleType("torch.nn.modules.lying")
    touched: list[str] = []
    lying.__getattr__ = lambda name: touched.append(name)  # type: ignore[assignment]
    with pytest.raises(ForbiddenClass, match="not there"):
        names.look_up("torch.nn.modules.lying:Linear", names.MODULE, frozenset(), lying)

    class NotDefinedThere:
        pass

    vars(lying)["Linear"] = NotDefinedThere
    with pytest.raises(ForbiddenClass, match="wanted a module"):
        names.look_up("torch.nn.modules.lying:Linear", names.MODULE, frozenset(), lying)
    assert touched == []


def test_refusing_needs_no_torch() -> None:
    """The gateway opens and checks snapshots and stays small."""
    source = (
        "import sys\nfrom pathlib import Path\n"
        "from zerowake.snapshot.store import open_snapshot\n"
        f"open_snapshot(Path({str(CORPUS / 'good')!r}))\n"
        "import zerowake.snapshot.code, zerowake.snapshot.mapping, zerowake.snapshot.proof\n"
        "assert not {'torch', 'numpy', 'transformers', 'app'} & set(sys.modules)"
    )
    paths = [p for p in sys.path if p]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{source}"], check=True
    )
