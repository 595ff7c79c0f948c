"""A function that calls ``torch.compile`` itself: instances find what it has compiled at freeze.

There is no compiler where they run, so they answer only with what was kept.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Gateway, zerowake

from zerowake.snapshot import state
from zerowake.snapshot.form import find_form
from zerowake.snapshot.store import open_snapshot

ROWS = [[[1.0, 2.0, 3.0]], [[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]], [[0.5, 1.0, -1.0]] * 5]


@pytest.fixture
def copy(compiled: Callable[[str], Path], tmp_path: Path) -> Path:
    path = tmp_path / "snapshot"
    shutil.copytree(compiled("jitted.py:Jitted"), path)
    return path


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str]:
    """An environment without one, and without what others have compiled on this machine."""
    (tmp_path / "tmp").mkdir()
    return {"PATH": str(tmp_path / "nothing"), "TMPDIR": str(tmp_path / "tmp")}


def answers(gateway: Gateway) -> list[Any]:
    replies = [gateway.call("jitted", rows) for rows in ROWS]
    assert [reply.status for reply in replies] == [200] * 3, (replies, gateway.log)
    return [reply.json() for reply in replies]


def form_file(snapshot: Path) -> Path:
    (file,) = snapshot.glob("compiled/*/form.json")
    return file


@pytest.mark.parametrize("depth", ["cold", "prewarmed"])
def test_an_instance_compiles_nothing_again(
    copy: Path, launch: Callable[..., Gateway], no_compiler: dict[str, str], depth: str
) -> None:
    gateways = [launch(copy, "--depth", depth, env=no_compiler) for _ in range(2)]  # one copy of it
    first, second = map(answers, gateways)
    assert first == second and [len(rows) for rows in first] == [1, 2, 5]
    assert first[0][0] == pytest.approx(first[1][0], abs=1) and sum(first[2][0]) == pytest.approx(1)
    (told,) = gateways[0].request("GET", "/functions").json()
    assert told["form"] == "eager" and "the function compiles itself are used" in told["reason"]
    assert not list(Path(no_compiler["TMPDIR"]).rglob("*.so"))
    for gateway in gateways:
        gateway.stop()


def test_without_what_is_kept_it_needs_a_compiler(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], no_compiler: dict[str, str]
) -> None:
    snapshot = frozen("jitted.py:Jitted")  # --no-compile
    assert not list(snapshot.glob("compiled/*/*"))
    gateway = launch(snapshot, "--depth", "cold", env=no_compiler)
    reply = gateway.call("jitted", ROWS[0])
    assert reply.status == 500 and "No working C++ compiler found" in reply.json()["detail"]
    gateway.stop()


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name", ["*.main.so", pytest.param("code_state_*", marks=LONG), pytest.param("g++", marks=LONG)]
)
def test_a_file_that_was_changed_is_refused_and_it_compiles_anew(
    copy: Path, launch: Callable[..., Gateway], tmp_path: Path, name: str
) -> None:
    file = next((form_file(copy).parent / "caches").rglob(name))
    with open(file, "r+b") as opened:
        opened.write(b"\0")
    gateway = launch(copy, "--depth", "cold", env={"TMPDIR": str(tmp_path)})
    assert len(answers(gateway)) == 3
    (told,) = gateway.request("GET", "/functions").json()
    assert told["form"] == "eager"
    assert f"{file.name} does not have the digest that form.json names" in told["reason"]
    assert any("jitted runs eagerly: " in line for line in gateway.log)
    (apart,) = tmp_path.glob("zerowake-jit-*")
    assert list(apart.rglob("*.so"))
    metrics = gateway.request("GET", "/metrics").body.decode()
    assert 'zerowake_form_info{form="eager",function="jitted"' in metrics
    gateway.stop()
    verified = zerowake("verify", copy)
    assert verified.returncode == 1 and f"{file.name} does not have the digest" in verified.stderr


def test_what_nobody_vouches_for_or_is_for_elsewhere_is_not_used(
    copy: Path, launch: Callable[..., Gateway], tmp_path: Path, no_compiler: dict[str, str]
) -> None:
    file = form_file(copy)
    (file.parent / "caches" / "inductor" / "more.py").touch()
    gateway = launch(copy, "--depth", "cold", env=no_compiler)
    assert gateway.call("jitted", ROWS[0]).status == 500
    assert any("more.py is not listed in form.json" in line for line in gateway.log)
    gateway.stop()

    (file.parent / "caches" / "inductor" / "more.py").unlink()
    foreign = {**no_compiler, "ZEROWAKE_STATE": str(tmp_path / "state")}
    digest = open_snapshot(copy).digest
    gateway = launch(copy, "--depth", "cold", "--trust", digest, env=foreign)
    assert gateway.call("jitted", ROWS[0]).status == 500
    assert any("not compiled by this user on this machine" in line for line in gateway.log)
    gateway.stop()
    assert not (tmp_path / "state" / "jit").exists()

    file.parent.rename(file.parent.with_name("0123456789abcdef"))
    gateway = launch(copy, "--depth", "cold", env=no_compiler)
    assert gateway.call("jitted", ROWS[0]).status == 500
    assert any("for other machines, torch versions or devices" in line for line in gateway.log)
    gateway.stop()


def test_it_is_shown_and_verified(copy: Path) -> None:
    form = find_form(open_snapshot(copy))
    assert form.modules == () and not form.torch_free and len(form.caches) > 10
    shown = zerowake("inspect", copy)
    assert f"  what the function compiles itself: {len(form.caches)} files, " in shown.stdout
    assert "  used here\n" in shown.stdout
    verified = zerowake("verify", copy)
    assert verified.returncode == 0 and "compiled: the proof is right" in verified.stdout


@pytest.mark.long
def test_it_is_made_anew(copy: Path) -> None:
    made = zerowake("compile", copy)
    assert made.returncode == 0, made.stderr
    assert "what the function compiles itself on the probe is kept: " in made.stderr
    plain = json.loads(form_file(copy).read_bytes())
    assert plain["modules"] == [] and all(name.startswith("caches/") for name in plain["files"])
    assert state.is_trusted(made.stdout.strip(), frozenset())


def test_a_timeout_leaves_nothing(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    shutil.copytree(frozen("jitted.py:Jitted"), path)
    run = zerowake("compile", path, "--compile-timeout", "1")
    assert run.returncode == 1 and "(--compile-timeout)" in run.stderr
    assert [entry.suffix for entry in (path / "compiled").iterdir()] == [".why"]
