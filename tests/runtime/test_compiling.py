"""What happens to a form that lies there, and to the reason why there is none. Compiles nothing itself."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zerowake.runtime import build, compiling
from zerowake.runtime.inspection import compiled_forms, describe, trusts_code
from zerowake.snapshot import proof
from zerowake.snapshot.errors import CannotCompile, UnusableForm
from zerowake.snapshot.form import find_form, home, lies_here, why_file
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import open_snapshot, read_file


@pytest.fixture
def snapshot(compiled: Callable[[str], Path], tmp_path: Path) -> Snapshot:
    """A copy, with its form, ours to spoil."""
    path = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), path)
    return open_snapshot(path)


def reason(snapshot: Snapshot) -> str:
    with pytest.raises(UnusableForm) as caught:
        find_form(snapshot)
    return str(caught.value)


def fail(*_given: Any) -> Any:
    raise CannotCompile("first line\nsecond \x1b[31mline")


def test_a_failure_leaves_an_earlier_form_and_says_so(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_make", fail)
    with pytest.raises(CannotCompile, match=r"the earlier form \(own dtype, error .*\) stays in u"):
        compiling.compile_snapshot(snapshot.path)
    assert find_form(snapshot).dtype is None and not why_file(snapshot).exists()


def test_the_reason_of_a_failure_is_kept(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home(snapshot))
    monkeypatch.setattr(compiling, "_make", fail)
    for _ in range(2):
        with pytest.raises(CannotCompile, match="the function serves eagerly"):
            compiling.compile_snapshot(snapshot.path)
    assert reason(snapshot) == "it was not compiled: first line second ?[31mline"


def test_another_dtype_in_its_place_is_told(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = find_form(snapshot)._replace(dtype="bfloat16")
    monkeypatch.setattr(compiling, "_make", lambda *given: made)
    notes: list[str] = []
    compiling.compile_snapshot(snapshot.path, dtype="bfloat16", note=notes.append)
    compiling.compile_snapshot(snapshot.path, note=notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("it takes the place of the earlier form (own dtype, error ")


@pytest.mark.parametrize(
    "unsteady, said",
    [
        ([["items[0].id"]], r"differs from run to run \(items\[0\].id\); take random numbers from"),
        (
            [list("gfedcba"), ["a"]],
            r"run to run \(a, b, c, d, e and 2 more\); .* a key of its own$",
        ),
        ([], "as it has no probe; freeze it with --probe$"),
    ],
)
def test_where_nothing_would_prove_a_form_it_is_said_what_to_do(
    unsteady: list[list[str]], said: str
) -> None:
    cases = [[b"1"] for _ in unsteady]
    evidence = proof.Proof(cases, [[[b"1"]] for _ in unsteady], unsteady)
    assert re.search(said, compiling._nothing_to_compare(evidence))


def test_of_a_form_that_nothing_proves_the_same_is_said_as_of_the_original(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases have published such ones."""
    told = proof.parse(read_file(snapshot, "proof.json"))
    monkeypatch.setattr(build, "prove_compiled", lambda *given: (told.answers, None))
    for unsteady, said in (
        ([], "compiled: the proof is right (largest error 0.0e+00, at most 1.0e-04)"),
        (["items[0]"], "compiled: the proof says nothing: no field is deterministic ("),
    ):
        evidence = replace(told, unsteady=[unsteady for _ in told.cases])
        assert build._verify_form(snapshot, evidence, frozenset(), None).startswith(said)


def test_a_form_that_nobody_wants_is_removed(snapshot: Snapshot) -> None:
    notes: list[str] = []
    for _ in range(2):
        compiling.leave_uncompiled(snapshot.path, notes.append)
    assert notes == ["the compiled form that it had for this machine is removed (--no-compile)"]
    assert not lies_here(snapshot) and not home(snapshot).exists()
    said = "it was frozen with --no-compile, or by --reload, which does not compile; `zerowake compile /"
    assert reason(snapshot).startswith(said)


def test_a_reason_is_a_strangers_text(snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.rmtree(home(snapshot))
    why = why_file(snapshot)
    why.write_bytes(b"a\nb\x00\xff" + b"c" * 100_000)
    said = reason(snapshot)
    assert said.isprintable() and said.startswith("it was not compiled: a b?") and len(said) < 2100
    why.unlink()
    os.mkfifo(why)
    assert reason(snapshot).startswith("it has no compiled form")
    why.unlink()
    (tmp_path / "secret").write_text("secret")
    why.symlink_to(tmp_path / "secret")
    assert reason(snapshot).startswith("it has no compiled form")


def test_inspect_shows_the_forms(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = home(snapshot).with_name("0123456789abcdef")
    shutil.copytree(home(snapshot), elsewhere)
    odd = home(snapshot).with_name("fedcba9876543210")
    odd.mkdir()
    (odd / "form.json").write_text(json.dumps({"format": "\x1b[31m"}))
    other, here, none = compiled_forms(snapshot)
    assert (here["here"], here["reason"], here["torch_free"]) == (True, "", True)
    assert here["library_nbytes"] > 0 and here["digest"] == find_form(snapshot).digest
    (text,) = here["modules"]["text"]
    assert (text["name"], text["dtype"], text["shape"][1]) == ("ids", "int64", (1, 6))
    assert "another machine" in other["reason"] and "form.json has format" in none["reason"]
    shown = describe(snapshot)
    assert "code trusted here  yes" in shown and "  text(ids int64 [1.., 1..6])" in shown
    assert "own dtype, error " in shown and "torch-free, " in shown and "\x1b" not in shown

    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "state"))
    form = here["digest"]
    assert not trusts_code(snapshot)
    assert f"no; it runs with --trust {snapshot.digest}" in describe(snapshot)
    said = compiled_forms(snapshot)[1]["reason"]
    assert f"--trust {form} --trust {snapshot.digest}, or compile it here: " in said
    assert said.endswith(f"zerowake compile {snapshot.path} --trust {snapshot.digest}")


@pytest.mark.parametrize(
    "code, said",
    [
        (errno.ENOSPC, "^/s/compiled cannot be written to: No space left on device$"),
        (errno.EROFS, "^/s/compiled cannot be written to: Read-only file system$"),
        (errno.ENOMEM, "^the system refuses something: .*Cannot allocate memory$"),  # of a fork
    ],
)
def test_errors_of_the_system_are_told_as_what_they_are(code: int, said: str) -> None:
    with (
        pytest.raises(CannotCompile, match=said),
        compiling._system_errors_told(Path("/s/compiled")),
    ):
        raise OSError(code, os.strerror(code))
