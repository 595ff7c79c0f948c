"""``zerowake.snapshot.form`` and ``compiled``: what a form must be before it is used."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import run_python

from zerowake.runtime.forms import FormName, choose
from zerowake.snapshot import form, state
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.form import module_node
from zerowake.snapshot.store import open_snapshot


@pytest.fixture
def copy(compiled: Callable[[str], Path], tmp_path: Path) -> Path:
    """Ours to spoil: a snapshot with its form."""
    path = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), path)
    return path


def form_file(snapshot: Path) -> Path:
    (found,) = snapshot.glob("compiled/*/form.json")
    return found


def reason(snapshot: Path, *trusted: str) -> str:
    chosen = choose(open_snapshot(snapshot), trusted, "cpu")
    assert chosen.name is FormName.EAGER and chosen.compiled is None and chosen.needs_torch
    return chosen.reason


def rewrite(snapshot: Path, change: Callable[[Any], Any]) -> str:
    """Change form.json and everything that vouches for it; its digest."""
    file = form_file(snapshot)
    plain = json.loads(file.read_bytes())
    changed = change(plain)
    file.write_text(json.dumps(plain if changed is None else changed))
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    state.record_trust(digest)
    return digest


def test_a_good_form_is_chosen(copy: Path) -> None:
    chosen = choose(open_snapshot(copy), (), "cpu")
    assert chosen.name is FormName.TORCH_FREE and not chosen.needs_torch and chosen.reason == ""
    assert choose(open_snapshot(copy), (), "cuda").reason == "compiled forms are for the CPU"


def test_without_a_form(copy: Path) -> None:
    shutil.rmtree(copy / "compiled")
    assert f"it has no compiled form; `zerowake compile {copy}` makes one" in reason(copy)


def test_a_form_for_another_machine(copy: Path) -> None:
    form_file(copy).parent.rename(copy / "compiled" / "0123456789abcdef")
    assert "for other machines, torch versions or devices" in reason(copy)


def test_a_form_that_nobody_vouches_for(copy: Path) -> None:
    file = form_file(copy)
    file.write_bytes(file.read_bytes() + b"\n")
    said = reason(copy)
    assert "was not compiled by this user on this machine" in said
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in said
    assert choose(open_snapshot(copy), (digest,), "cpu").name is FormName.TORCH_FREE


@pytest.mark.parametrize("name", ["text.so", "constants.bin"])
def test_a_file_that_was_changed(copy: Path, name: str) -> None:
    file = form_file(copy).with_name(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert f"{name} does not have the digest that form.json names" in reason(copy)


def test_files_missing_or_too_many(copy: Path) -> None:
    (form_file(copy).parent / "more.so").touch()
    assert "more.so is not listed in form.json" in reason(copy)
    (form_file(copy).parent / "more.so").unlink()
    form_file(copy).with_name("image.so").unlink()
    assert "image.so" in reason(copy)


def test_caches_are_files_of_the_form(copy: Path, tmp_path: Path) -> None:
    place = form_file(copy).parent / "caches" / "triton"
    place.mkdir(parents=True)
    (place / "add.cubin").write_bytes(b"code")
    assert "caches/triton/add.cubin is not listed in form.json" in reason(copy)
    name, digest = "caches/triton/add.cubin", hashlib.sha256(b"code").hexdigest()
    rewrite(copy, lambda plain: plain["files"].update({name: digest}))
    chosen = choose(open_snapshot(copy), (), "cpu")
    assert chosen.compiled is not None and list(chosen.compiled.caches) == ["triton/add.cubin"]
    on_gpu = choose(open_snapshot(copy), (), "cuda")
    assert on_gpu.name is FormName.EAGER and on_gpu.compiled is not None
    assert on_gpu.compiled.modules == () and len(on_gpu.compiled.caches) == 1
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert "caches/triton is not listed in form.json" in reason(copy)
    place.unlink()
    assert f"{name} is missing" in reason(copy)


def test_special_files_and_links(copy: Path, tmp_path: Path) -> None:
    """None of them may be waited for, or read without end."""
    for name in ("form.json", "text.so", "constants.bin"):
        file = form_file(copy).with_name(name)
        kept = file.rename(tmp_path / name)
        os.mkfifo(file)
        assert f"{name} is no regular file" in reason(copy)
        file.unlink()
        file.symlink_to(kept)
        assert f"{name} is a symbolic link" in reason(copy)
        file.unlink()
        file.touch()
        os.truncate(file, 1 << 40)
        assert f"{1 << 40} bytes; expected at most" in reason(copy)
        file.unlink()
        kept.rename(file)
    assert choose(open_snapshot(copy), (), "cpu").name is FormName.TORCH_FREE


def test_a_form_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(form, "read_file", refuse)
    assert "form.json: Permission denied" in reason(copy)


def test_a_form_of_another_snapshot(copy: Path) -> None:
    rewrite(copy, lambda plain: plain.update(snapshot="sha256:" + "0" * 64))
    assert "belongs to another snapshot" in reason(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 99}',
        b'{"format": 2, "modules": [], "torch_free": true, "error": 0}',
        b'{"format": 2, "modules": [], "torch_free": true, "error": 0, "snapshot": "x", "files": 1}',
    ],
)
def test_a_form_file_that_is_none(copy: Path, data: bytes) -> None:
    form_file(copy).write_bytes(data)
    assert "form.json" in reason(copy)


def test_a_form_file_that_is_a_directory(copy: Path) -> None:
    form_file(copy).unlink()
    (next((copy / "compiled").iterdir()) / "form.json").mkdir()
    assert reason(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.update(library="../../evil.so"),
        lambda module: module.update(library="/evil.so"),
        lambda module: module["inputs"][0].update(dtype="complex64"),
        lambda module: module["inputs"][0].update(shape=["a", "b"]),
        lambda module: module.update(signature=[["x", "NO_KIND", []]]),
        lambda module: module.update(signature=[["not a name", "POSITIONAL_ONLY", []]]),
        lambda module: module.update(ranges=5),
        lambda module: module.update(guards=["__import__('os')"]),
        lambda module: module["constants"].update(x=["float33", [1], [1], 0]),
        lambda module: module["constants"].update(x=["float32", [-1], [1], 0]),
        lambda module: module["constants"].update(x=["float32", [1, 1], [1], 0]),
        lambda module: module.pop("output"),
        lambda module: module["inputs"][0].update(below=math.inf),
        lambda module: module["inputs"][0].update(shape=[-1, 2]),
        lambda module: module["inputs"][0].update(shape=[None, 2]),
        lambda module: module.update(ranges={each: [math.inf, None] for each in module["ranges"]}),
        lambda module: module.update(ranges={each: [1, "x"] for each in module["ranges"]}),
        lambda module: module["constants"].update(x=["float32", [math.inf], [1], None]),
        lambda module: module["constants"].update(x=["float32", [1], [1], math.inf]),
        lambda module: module.update(library="more.so"),
    ],
)
def test_a_field_that_is_not_as_it_should_be(copy: Path, change: Callable[[Any], Any]) -> None:
    rewrite(copy, lambda plain: [change(plain["modules"][0]), plain][1])
    assert "form.json does not hold a form" in reason(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(error=10**400),
        lambda plain: plain["files"].pop("constants.bin"),
        lambda plain: plain["files"].pop("text.so"),
        lambda plain: plain["files"].update({"../../../proof.json": "0" * 64}),
        lambda plain: plain["files"].update({"/dev/zero": "0" * 64}),
        lambda plain: plain["files"].update({"form.json": "0" * 64}),
        lambda plain: plain["files"].update({"caches": "0" * 64}),
        lambda plain: plain["files"].update({"caches/../form.json": "0" * 64}),
        lambda plain: plain["files"].update({"caches//dev/zero": "0" * 64}),
        lambda plain: plain["files"].update({"caches" + 9 * "/a": "0" * 64}),
    ],
)
def test_a_field_of_the_whole_that_is_not_as_it_should_be(
    copy: Path, change: Callable[[Any], Any]
) -> None:
    rewrite(copy, lambda plain: [change(plain), plain][1])
    assert "form.json does not hold a form" in reason(copy)


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "wrong shape": (
        lambda text: text["constants"]["positions.weight"].__setitem__(1, [600, 4]),
        "the library wants float32 (600, 4)",
    ),
    "wrong strides": (
        lambda text: text["constants"]["positions.weight"].__setitem__(2, [1, 6]),
        "with strides (1, 6)",
    ),
    "wrong dtype": (
        lambda text: text["constants"]["positions.weight"].__setitem__(0, "int32"),
        "the library wants float32",
    ),
    "a constant less": (
        lambda text: text["constants"].pop("positions.weight"),
        "which nothing holds",
    ),
    "past the end": (
        lambda text: text["constants"]["positions.weight"].__setitem__(3, 10**6),
        "constants.bin ends before a constant",
    ),
    "before the start": (
        lambda text: text["constants"]["positions.weight"].__setitem__(3, -64),
        "constants.bin ends before a constant",
    ),
    "one input more": (
        lambda text: text["inputs"].append(text["inputs"][0]),
        "takes 1 inputs, not 2",
    ),
    "no such module": (lambda text: text.update(path="audio"), "the object has no module 'audio'"),
    "another library": (lambda text: text.update(library="image.so"), "which nothing holds"),
    "an output too many": (lambda text: text.update(output=7), "output"),
    "fixed, and no such argument": (lambda text: text.update(fixed={"z": 1}), "z"),
    "an input that is no argument": (lambda text: text["inputs"][0].update(name="z"), "z"),
}


def test_a_form_that_lies_is_found_out_before_it_runs(copy: Path, tmp_path: Path) -> None:
    """Each by somebody whom the operator trusts, and all in one process: none of them ends it."""
    copies = []
    for place, (lie, _said) in enumerate(LIES.values()):
        other = tmp_path / str(place)
        shutil.copytree(copy, other)
        rewrite(other, lambda plain, lie=lie: [lie(plain["modules"][0]), plain][1])
        copies.append(other)
    said = run_python(
        """
        import sys
        from pathlib import Path
        from zerowake.snapshot import compiled, form
        from zerowake.snapshot.errors import UnusableForm
        from zerowake.snapshot.mapping import map_file
        from zerowake.snapshot.store import open_snapshot
        for path in sys.argv[1:]:
            snapshot = open_snapshot(Path(path))
            mapped = [map_file(snapshot.path / s.file, s.nbytes) for s in snapshot.manifest.segments]
            try:
                compiled.load(form.find_form(snapshot), snapshot, mapped)
                print("it was loaded")
            except UnusableForm as error:
                print(str(error).replace("\\n", " "))
        """,
        *copies,
    ).stdout.splitlines()
    for (name, (_lie, wanted)), line in zip(LIES.items(), said, strict=True):
        assert wanted in line, name


def test_a_compiled_module_that_is_not_there(compiled: Callable[[str], Path]) -> None:
    snapshot = open_snapshot(compiled("nets.py:Nets"))
    with pytest.raises(UnusableForm, match="no module"):
        module_node(snapshot, "forget")
