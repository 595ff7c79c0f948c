"""``zerowake.snapshot.jit``: folders of files, whoever has compiled them. Compiles nothing."""

import hashlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from zerowake.snapshot import jit, state
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.listed import Listed

DIGEST = "sha256:" + "5" * 64
KERNEL, GRAPH = "triton/ABC234/add.cubin", "inductor/fxgraph/ab/fab"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Inductor and Triton have left; and an environment of our own."""
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "state"))
    others = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHINDUCTOR", "TRITON"))}
    monkeypatch.setattr(os, "environ", others)
    folder = tmp_path / "caches"
    for name in (KERNEL, GRAPH, "inductor/locks/fab.lock", "triton/ABC234/add.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def listed(folder: Path) -> dict[str, Listed]:
    return {
        name: Listed(file, hashlib.sha256(file.read_bytes()).hexdigest(), 1 << 20)
        for name, file in jit.files_in(folder).items()
    }


def copy() -> Path:
    return state.state_dir() / "jit" / DIGEST.removeprefix("sha256:")


def test_what_the_one_leaves_the_other_finds(kept: Path) -> None:
    made = jit.environment(kept, {"PATH": "/bin", "CXX": "c", "TRITON_INTERPRET": "1", "A": "b"})
    assert made["TRITON_CACHE_DIR"] == str(kept / "triton") and "TRITON_INTERPRET" not in made
    assert (made["PATH"], made["A"], "CXX" in made) == ("/bin", "b", False)
    jit.finish(kept)
    assert jit.files_in(kept).keys() == {KERNEL, GRAPH, jit.COMPILER}
    assert not (kept / "inductor" / "locks").exists()
    jit.use(listed(kept), DIGEST)
    found = Path(os.environ["TRITON_CACHE_DIR"])
    assert (found / "ABC234" / "add.cubin").read_text() == KERNEL and found == copy() / "triton"
    assert (Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "fxgraph/ab/fab").read_text() == GRAPH
    settings = {k: v for k, v in made.items() if k.startswith("TORCH") and not k.endswith("_DIR")}
    assert settings.items() <= os.environ.items()


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    jit.finish(tmp_path / "none")
    (tmp_path / "caches" / "inductor" / "locks").mkdir(parents=True)
    jit.finish(tmp_path / "caches")
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_kept(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (kept / "inductor" / "link").symlink_to(tmp_path / "secret")
    (kept / "inductor" / ".hidden").touch()
    (kept / "inductor" / "a name").touch()
    jit.finish(kept)
    assert jit.files_in(kept).keys() == {KERNEL, GRAPH, jit.COMPILER}
    assert not (kept / "inductor" / "link").is_symlink() and (tmp_path / "secret").exists()


def test_the_copy_is_made_once_and_keeps_what_is_added(kept: Path) -> None:
    jit.use(listed(kept), DIGEST)
    (copy() / "inductor" / "more").write_text("of a call of another shape")
    files = listed(kept)
    jit.use(files, DIGEST)
    assert (copy() / "inductor" / "more").exists()
    (kept / GRAPH).write_text("planted")
    with pytest.raises(UnusableForm, match="does not have the digest"):
        jit.use(files, DIGEST)


@pytest.mark.parametrize("name", [KERNEL, GRAPH])
def test_a_file_that_was_changed_is_not_copied(kept: Path, name: str) -> None:
    files = listed(kept)
    (kept / name).write_text("planted")
    with pytest.raises(UnusableForm, match="does not have the digest"):
        jit.use(files, DIGEST)
    assert not copy().exists() and "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert list(copy().parent.iterdir()) == []


def test_what_the_system_refuses_is_told(kept: Path) -> None:
    (state.state_dir() / "jit").touch()
    with pytest.raises(UnusableForm, match="its caches cannot be copied: "):
        jit.use(listed(kept), DIGEST)


def test_where_nothing_can_be_remembered_it_is_a_temporary_folder(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "file" / "state"))
    monkeypatch.setattr(jit.tempfile, "tempdir", str(tmp_path))
    jit.use(listed(kept), DIGEST)
    found = Path(os.environ["TRITON_CACHE_DIR"]).parent
    assert found.parent == tmp_path and found.stat().st_mode & 0o777 == 0o700
    assert (found / KERNEL).read_text() == KERNEL


def test_two_processes_at_once_make_one_copy(kept: Path) -> None:
    script = (
        "import sys, test_jit; from pathlib import Path; from zerowake.snapshot import jit;"
        "jit.use(test_jit.listed(Path(sys.argv[1])), test_jit.DIGEST)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", script, str(kept)]
    running = [subprocess.Popen(command, env=environ) for _ in range(4)]
    assert [each.wait(60) for each in running] == [0] * 4
    assert list(copy().parent.iterdir()) == [copy()]
    assert jit.files_in(copy()).keys() == jit.files_in(kept).keys()


def test_modules_that_have_read_the_environment_are_told(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inductor = types.SimpleNamespace(cpp=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch._inductor.config", inductor)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch.compiler.config", types.SimpleNamespace())  # type: ignore[arg-type]
    jit.use(listed(kept), DIGEST)
    assert (inductor.cpp.vec_isa_ok, inductor.cpp.dynamic_threads) == (True, True)
    assert inductor.cpp_cache_precompile_headers is False
    assert sys.modules["torch.compiler.config"].job_id == "zerowake"


def test_where_no_compiler_is_one_stands_in(kept: Path, tmp_path: Path) -> None:
    jit.finish(kept)
    real = subprocess.run(["g++", "-v"], capture_output=True, text=True, check=True)
    os.environ["PATH"] = str(tmp_path / "nothing")
    jit.use(listed(kept), DIGEST)
    stand_in = subprocess.run(["g++", "-v"], capture_output=True, text=True, check=True)
    assert (stand_in.stdout, stand_in.stderr) == (real.stdout, real.stderr)
    refused = subprocess.run(["g++", "a.cpp"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "no C++ compiler is installed" in refused.stderr
