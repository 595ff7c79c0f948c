"""Which files are a function's code, whether they may run, and running exactly them."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from workshop import freeze_source, own_imports

from zerowake.snapshot import code, state
from zerowake.snapshot.errors import FreezeError, UntrustedCode
from zerowake.snapshot.store import open_snapshot


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with own_imports():
        yield


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / (name.replace("__", "/").replace("//init//", "/__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_closure_of_local_imports(tmp_path: Path) -> None:
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "space").mkdir()
    for path, text in {
        "app.py": "import json, numpy\nimport helper\ndef f():\n    from pack.deep import thing\n",
        "helper.py": "import space.inner as s\n",
        "space/inner.py": "",
        "pack/__init__.py": "from . import sibling\n",
        "pack/sibling.py": "from .deep import thing\nfrom .. import nowhere\n",
        "pack/deep/__init__.py": "",
        "pack/deep/thing.py": "import helper",
        "pack/unused.py": "",
        "json.py": "raise AssertionError('the standard library comes first')",
        "unused.py": "",
    }.items():
        (tmp_path / path).write_text(text)
    files = code.collect(tmp_path / "app.py", tmp_path)
    assert list(files.files) == [
        "app.py",
        "helper.py",
        "pack/__init__.py",
        "pack/deep/__init__.py",
        "pack/deep/thing.py",
        "pack/sibling.py",
        "space/inner.py",
    ]
    assert files.entry == "app.py"


def test_a_target_in_a_package_takes_only_its_files(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "app.py").write_text("import helper\nfrom pack import other")
    (tmp_path / "pack" / "other.py").write_text("")
    (tmp_path / "helper.py").write_text("")
    files = code.collect(tmp_path / "pack" / "app.py", tmp_path)
    assert list(files.files) == ["pack/__init__.py", "pack/app.py", "pack/other.py"]


@pytest.mark.parametrize("name", ["json.py", "torch.py", "my-app.py", "caf\u00e9.py"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(FreezeError, match="name"):
        code.collect(tmp_path / name, tmp_path)


def test_a_syntax_error_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f(:\n")
    with pytest.raises(FreezeError, match=r"app\.py does not parse.*line 1"):
        code.collect(tmp_path / "app.py", tmp_path)


def test_installed_code_is_the_bytes_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "app.py").write_text(
        "from pack import part\ndef fail():\n    raise OSError('here')\n"
    )
    (tmp_path / "pack" / "part.py").write_text("value = 1\n")
    files = code.collect(tmp_path / "app.py", tmp_path)
    (tmp_path / "app.py").write_text("raise AssertionError('changed on disk')\n\n\n")
    code.install(files)
    module = importlib.import_module("app")
    assert module.part.value == 1 and module.__file__ == str(tmp_path / "app.py")
    with pytest.raises(OSError) as failure:
        module.fail()
    text = "".join(traceback.format_exception(failure.value))
    assert "raise OSError('here')" in text and "changed on disk" not in text
    code.install(files)
    assert importlib.import_module("app") is module
    changed = code.CodeFiles(files.root, "app.py", {"app.py": b"value = 2"})
    code.install(changed)
    assert importlib.import_module("app").value == 2


def test_code_runs_when_made_here_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = freeze_source(tmp_path, "self.x = 1").snapshot
    nobody: frozenset[str] = frozenset()
    assert state.is_trusted(snapshot.digest, nobody)
    assert code.load_code(snapshot, trusted=nobody, code_dir=None).root == snapshot.path / "code"
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "another-user"))
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != code.__name__]
    with pytest.raises(UntrustedCode, match=rf"app\.py.*--trust {snapshot.digest}.*--code DIR"):
        code.load_code(snapshot, trusted=nobody, code_dir=None)
    with pytest.raises(UntrustedCode):
        code.load_code(snapshot, trusted=frozenset({snapshot.digest[:20]}), code_dir=None)
    named = frozenset({snapshot.digest})
    assert code.load_code(snapshot, trusted=named, code_dir=None).files.keys() == {"app.py"}
    (snapshot.path / "code" / "app.py").write_text("evil = 1")
    with pytest.raises(UntrustedCode, match=r"app\.py in the snapshot differs.* Copy or freeze"):
        code.load_code(snapshot, trusted=named, code_dir=None)


def test_a_changed_snapshot_and_a_wrong_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = freeze_source(tmp_path, "self.x = 1").snapshot
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "another-user"))

    def refused(path: Path, *trusted: str) -> str:
        with pytest.raises(UntrustedCode) as refusal:
            code.load_code(open_snapshot(path), trusted=frozenset(trusted), code_dir=None)
        return str(refusal.value)

    right = refused(snapshot.path)
    assert "not that of its name" not in right and "none of the digests" not in right
    assert "none of the digests that --trust names. To run" in refused(snapshot.path, "sha256:00")
    manifest = snapshot.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name":"app"', '"name":"apq"'))
    assert "not that of its name" in refused(snapshot.path, snapshot.digest)
    plain = snapshot.path.rename(tmp_path / "model")
    assert "not that of its name" not in refused(plain)


def test_code_from_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = freeze_source(tmp_path, "self.x = 1").snapshot
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "another-user"))
    source = tmp_path / "source"
    files = code.load_code(snapshot, trusted=frozenset(), code_dir=source)
    assert files.root == source.resolve() and files.digest == snapshot.manifest.code.digest
    (source / "app.py").write_text((source / "app.py").read_text() + "\n")
    with pytest.raises(UntrustedCode, match=r"app\.py in .*source differs"):
        code.load_code(snapshot, trusted=frozenset(), code_dir=source)
    (source / "app.py").unlink()
    with pytest.raises(UntrustedCode, match=r"app\.py is missing in .*source"):
        code.load_code(snapshot, trusted=frozenset(), code_dir=source)


def test_code_from_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that declares a function: a stranger must not choose any installed package."""
    source = "import zerowake\nclass App:\n    def load(self): pass\n"
    declares = freeze_source(tmp_path / "a", source) if (tmp_path / "a").mkdir() is None else None
    plain = (
        freeze_source(tmp_path / "b", "self.x = 1") if (tmp_path / "b").mkdir() is None else None
    )
    assert declares is not None and plain is not None
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "another-user"))
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != code.__name__]
    sys.modules.pop("app", None)
    sys.path.insert(0, str(tmp_path / "a" / "source"))
    importlib.invalidate_caches()
    files = code.load_code(declares.snapshot, trusted=frozenset(), code_dir=None)
    assert files.root == (tmp_path / "a" / "source")
    sys.path[0] = str(tmp_path / "b" / "source")
    importlib.invalidate_caches()
    with pytest.raises(UntrustedCode, match="no installed module 'app' declares it"):
        code.load_code(plain.snapshot, trusted=frozenset(), code_dir=None)
