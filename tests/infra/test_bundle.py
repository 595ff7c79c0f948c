"""``zerowake bundle``: the folder holds what the function needs, and the function runs from it."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
from parts import venv
from support import PATIENCE_S, ROOT, free_ports, zerowake

from zerowake.adapters.deploy.commands import form_of, needs_of
from zerowake.adapters.deploy.requirements import GATEWAY, HTTP, TENSORS, modules, pinned
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import Chosen, FormName, choose
from zerowake.snapshot import installed_torch
from zerowake.snapshot.store import open_snapshot

SETUPTOOLS = "setuptools==80.9.0"


def names(lines: list[str]) -> set[str]:
    return {line.partition("==")[0] for line in lines}


def test_our_wheel_is_small_and_whole(tmp_path: Path) -> None:
    """Built as a release is; in a copy, for setuptools writes beside what it builds."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "runtime", "snapshot", "adapters", "infra"):
        ignored = ignore_patterns("__pycache__", "*.egg-info")
        copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(venv(SETUPTOOLS)), "wheel", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(source)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000
    held = set(zipfile.ZipFile(wheel).namelist())
    below = "zerowake/adapters/deploy/infra"
    for path in (ROOT / "infra").rglob("*"):
        name = f"{below}/{path.relative_to(ROOT / 'infra').as_posix()}"
        assert path.is_dir() or name in held, name
    assert not any("/.venv/" in name or name.endswith(".pyc") for name in held)


def test_what_a_gateway_needs_is_among_our_dependencies() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    for name in (*GATEWAY, *HTTP, *TENSORS):
        assert f'"{name}>=' in declared


def test_a_torch_free_function_needs_no_python_of_torch(
    compiled: Callable[[str], Path], frozen: Callable[[str], Path]
) -> None:
    snapshot = open_snapshot(compiled("nets.py:Nets"))
    form = choose(snapshot, (), "cpu")
    assert form.name is FormName.TORCH_FREE
    held, imported = modules(snapshot, form)
    assert held | imported <= {"numpy"}
    found = names(pinned(snapshot, form, http=True))
    assert "torch" in found  # its libraries
    assert not found & {"sympy", "networkx", "jinja2", "transformers", "safetensors", "watchfiles"}
    eager = names(pinned(snapshot, Chosen(FormName.EAGER), http=True))
    assert {"torch", "numpy", "sympy", "jinja2"} <= eager


def test_what_only_load_imports_stays_out(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from zerowake import function\n\n\n"
        "@function(examples=['x'])\n"
        "class App:\n"
        "    def load(self):\n"
        "        import tqdm\n"
        "        import helper\n\n"
        "    def predict(self, x: str) -> str:\n"
        "        import yaml\n"
        "        return yaml.safe_dump(x)\n"
    )
    (tmp_path / "helper.py").write_text("import networkx\n")
    run = zerowake("freeze", tmp_path / "app.py:App", "--out", tmp_path, "--no-compile")
    assert run.returncode == 0, run.stderr
    snapshot = open_snapshot(Path(run.stdout.splitlines()[-1]))
    form = choose(snapshot, (), "cpu")
    assert modules(snapshot, form) == (set(), {"yaml"})
    found = names(pinned(snapshot, form, http=True, extra=("tqdm",)))
    assert {"pyyaml", "tqdm"} <= found and not found & {"torch", "numpy", "networkx"}
    assert not names(pinned(snapshot, form, http=False)) & {"uvicorn", "httptools", "uvloop"}
    with pytest.raises(ConfigError, match="no-such-package"):
        pinned(snapshot, form, http=True, extra=("no-such-package",))


def test_a_function_without_tensors_that_imports_torch_brings_it(
    frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text(
        "from zerowake import function\n\n\n"
        "@function(examples=[1.0])\n"
        "class Late:\n"
        "    def predict(self, x: float) -> float:\n"
        "        import torch\n\n"
        "        return float(torch.ones(3).sum() * x)\n"
    )
    run = zerowake("freeze", tmp_path / "late.py:Late", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    snapshot = open_snapshot(Path(run.stdout.splitlines()[-1]))
    form = choose(snapshot, (), "cpu")
    assert form.name is FormName.PLAIN
    assert {"torch", "sympy", "jinja2"} <= names(pinned(snapshot, form, http=True))
    add = open_snapshot(frozen("zoo.py:Add"))
    without = needs_of(add, choose(add, (), "cpu")).memory_mb
    assert needs_of(snapshot, form).memory_mb > 2 * without > 0
    assert form_of(snapshot, (), gpu=True, eager=False).name is FormName.PLAIN
    with pytest.raises(ConfigError, match="add has no tensors, so a GPU is of no use to it"):
        form_of(add, (), gpu=True, eager=False)


@pytest.fixture(scope="module")
def bundle(frozen: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "add"
    run = zerowake("bundle", frozen("zoo.py:Add"), "--out", out)
    assert run.returncode == 0, run.stderr
    assert "requirements.txt" in run.stdout and "snapshot" in run.stdout
    return out


def test_a_bundle_holds_what_an_image_is_built_of(bundle: Path) -> None:
    (wheel,) = bundle.glob("zerowake-*.whl")
    assert wheel.stat().st_size < 1_000_000
    assert {path.name for path in bundle.iterdir()} == {
        ".dockerignore",
        "Dockerfile",
        "bootstrap",
        "requirements.txt",
        "snapshot",
        wheel.name,
    }
    version = f"ARG PYTHON={sys.version_info.major}.{sys.version_info.minor}\n"
    expected = (ROOT / "infra" / "docker" / "cpu.Dockerfile").read_text()
    assert (bundle / "Dockerfile").read_text() == expected.replace("ARG PYTHON=3.11\n", version)
    assert "snapshot" not in (bundle / ".dockerignore").read_text()


def call(port: int, name: str, body: bytes, process: "subprocess.Popen[bytes]", log: Path) -> Any:
    """What it answers, as soon as it listens."""
    url, end = f"http://127.0.0.1:{port}/invoke/{name}", time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(url, body, PATIENCE_S) as reply:
                return json.load(reply)
        except urllib.error.URLError as error:
            refused = isinstance(error.reason, ConnectionRefusedError)
            waits = refused and process.poll() is None and time.monotonic() < end
            assert waits, f"{error}\n{log.read_text()}"
            time.sleep(0.05)


def build_commands(dockerfile: str) -> list[str]:
    """The RUN commands of the stage that builds, each as one line."""
    stage = dockerfile.partition(" AS build\n")[2].partition("\nFROM ")[0]
    lines = (line for line in stage.splitlines() if not line.startswith("#"))
    text = "\n".join(lines).replace("\\\n", " ")
    return [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]


def build(command: str, folder: Path, bundle: Path, libtorch_only: str = "") -> None:
    """Run a command of the Dockerfile here, with ``folder`` for the image's /opt/zerowake."""
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "LIBTORCH_ONLY": libtorch_only,
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
    }
    command = command.replace("/opt/zerowake", str(folder))
    run = subprocess.run(
        ["sh", "-ec", command], env=environ, cwd=bundle, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"


@pytest.fixture(scope="module")
def environment(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile builds, without docker: requirements and wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("opt") / "zerowake"
    for command in build_commands((bundle / "Dockerfile").read_text()):
        build(command, folder, bundle)
    (packages,) = folder.glob("lib/python*/site-packages")
    assert not (packages / "torch").exists() and not (packages / "pip").exists()
    assert list((packages / "zerowake").rglob("*.pyc"))
    return folder


def run_in(
    environment: Path, bundle: Path, name: str, body: bytes, tmp_path: Path, **env: str
) -> Any:
    """The reply of the bundle's function, run by its bootstrap as a platform would."""
    (port,) = free_ports(1)
    environ = {
        "PATH": f"{environment / 'bin'}:{os.defpath}",
        "PORT": str(port),
        "ZEROWAKE_STATE": str(tmp_path / "state"),  # it was not made by this user
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        **env,
    }
    log = tmp_path / "log"
    with open(log, "wb") as file:
        command = [str(bundle / "bootstrap")]
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file, cwd="/")
    try:
        answer = call(port, name, body, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        return answer
    finally:
        process.kill()
        process.wait()


def test_a_function_runs_with_its_bundle_and_nothing_else(
    environment: Path, bundle: Path, tmp_path: Path
) -> None:
    assert run_in(environment, bundle, "add", b'{"a": 1, "b": 2}', tmp_path) == 1003


def test_it_fetches_its_snapshot_with_nothing_else(
    environment: Path, bundle: Path, tmp_path: Path
) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(bundle))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/snapshot"
        body = b'{"a": 1, "b": 2}'
        answer = run_in(environment, bundle, "add", body, tmp_path, ZEROWAKE_SNAPSHOT=url)
        server.shutdown()
    assert answer == 1003 and list((tmp_path / "cache" / "zerowake" / "remote").iterdir())


def requirements(bundle: Path) -> set[str]:
    return {line for line in (bundle / "requirements.txt").read_text().splitlines() if "==" in line}


def lay_libtorch(environment: Path, bundle: Path) -> None:
    """What the Dockerfile leaves of torch, which is too large to be installed once more."""
    (packages,) = environment.glob("lib/python*/site-packages")
    torch = packages / "torch"
    (torch / "nn").mkdir(parents=True)
    installed = Path(installed_torch.library() or "").parent
    (torch / "lib").symlink_to(installed)
    (torch / "version.py").symlink_to(installed.parent / "version.py")
    (torch / "__init__.py").write_text("from torch import nn\n")
    commands = build_commands((bundle / "Dockerfile").read_text())
    (strip,) = (each for each in commands if "LIBTORCH_ONLY" in each)
    build(strip, environment, bundle, libtorch_only="1")
    assert {path.name for path in torch.iterdir()} == {"lib", "version.py", "__init__.py"}
    assert "raise ImportError" in (torch / "__init__.py").read_text()


def test_a_torch_free_function_runs_with_the_libraries_of_torch(
    environment: Path, bundle: Path, compiled: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    run = zerowake("bundle", compiled("nets.py:Nets"), "--out", out)
    assert run.returncode == 0, run.stderr
    assert "ARG LIBTORCH_ONLY=1\n" in (out / "Dockerfile").read_text()
    needed = requirements(out)
    (of_torch,) = {line for line in needed if line.startswith("torch==")}
    assert needed - {of_torch} <= requirements(bundle)  # so this environment will do
    lay_libtorch(environment, out)
    body = b'{"net": "text", "x": [[1, 2, 3], [4, 5, 6]]}'
    assert "logits" in run_in(environment, out, "nets", body, tmp_path)


@pytest.fixture(scope="module")
def embed() -> Path:
    """The example, frozen where the demo does it, so that it is compiled once."""
    run = zerowake("freeze", ROOT / "examples/embed/app.py:Embed", "--out", ROOT / ".demo")
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.splitlines()[-1])


@pytest.mark.long
def test_a_tokenizer_brings_nothing_that_downloads(
    environment: Path, bundle: Path, embed: Path, tmp_path: Path
) -> None:
    """The example, in a copy of the environment and with what else its bundle names."""
    out, folder = tmp_path / "bundle", tmp_path / "zerowake"
    run = zerowake("bundle", embed, "--out", out)
    assert run.returncode == 0, run.stderr
    left_out = "filelock, fsspec, h11, hf-xet, "
    assert f"; not {left_out}" in run.stdout and "--declared" in run.stdout
    needed, there = requirements(out), requirements(bundle)
    assert not names([*needed]) & {"huggingface-hub", "hf-xet", "filelock", "tqdm", "pyyaml", "h11"}
    more = {line for line in needed - there if not line.startswith("torch==")}
    assert names([*more]) == {"tokenizers"} and there <= needed
    copytree(environment, folder, symlinks=True, ignore=ignore_patterns("torch"))
    (packages,) = folder.glob("lib/python*/site-packages")
    build(f"pip install --no-compile --no-deps --target {packages} {' '.join(more)}", folder, out)
    lay_libtorch(folder, out)
    answer = run_in(folder, out, "embed", b'{"text": "a sentence"}', tmp_path)
    assert len(answer["embedding"]) == 384


@pytest.mark.long
def test_what_is_left_out_can_be_had(embed: Path) -> None:
    snapshot = open_snapshot(embed)
    form = choose(snapshot, (), "cpu")
    declared = names(pinned(snapshot, form, http=True, declared=True))
    assert {"huggingface-hub", "tqdm", "h11"} <= declared
    asked = names(pinned(snapshot, form, http=True, extra=("tokenizers",)))
    assert "huggingface-hub" in asked  # whoever names it may download


@pytest.mark.parametrize("platform", ["container", "lambda"])
def test_a_bundle_with_the_snapshot_inside(
    frozen: Callable[[str], Path], tmp_path: Path, platform: str
) -> None:
    out, snapshot = tmp_path / "out", frozen("zoo.py:Add")
    given = ("--out", out, "--platform", platform, "--with-snapshot")
    run = zerowake("bundle", snapshot, *given)
    assert run.returncode == 0, run.stderr
    assert "\nCOPY snapshot /opt/zerowake/snapshot\n" in (out / "Dockerfile").read_text()
    assert "!snapshot\n" in (out / ".dockerignore").read_text()
    assert (out / "snapshot" / "manifest.json").is_file()
    refused = zerowake(
        "bundle", snapshot, "--out", tmp_path / "b", "--with-snapshot", "--url", "/m"
    )
    assert refused.returncode == 1 and "name one" in refused.stderr


def test_a_bundle_with_a_url_has_no_snapshot(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    url = "https://models.example/add"
    run = zerowake(
        "bundle", frozen("zoo.py:Add"), "--out", out, "--url", url, "--platform", "lambda"
    )
    assert run.returncode == 0, run.stderr
    assert not (out / "snapshot").exists()
    assert url in (out / "bootstrap").read_text()
    assert "/var/runtime/bootstrap" in (out / "Dockerfile").read_text()
    again = zerowake("bundle", frozen("zoo.py:Add"), "--out", out)
    assert again.returncode == 1 and "not empty" in again.stderr


def test_other_processors_and_gpus_are_provided_for(
    compiled: Callable[[str], Path], tmp_path: Path
) -> None:
    snapshot = compiled("nets.py:Nets")
    run = zerowake("bundle", snapshot, "--out", tmp_path / "eager", "--eager", "--url", "/models")
    assert run.returncode == 0, run.stderr
    assert {"torch", "numpy", "sympy"} <= names(
        (tmp_path / "eager" / "requirements.txt").read_text().splitlines()
    )
    assert "ARG LIBTORCH_ONLY=\n" in (tmp_path / "eager" / "Dockerfile").read_text()
    run = zerowake("bundle", snapshot, "--out", tmp_path / "gpu", "--gpu", "--url", "/models")
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"torch==[0-9.]+\n", (tmp_path / "gpu" / "torch.txt").read_text())
    assert "torch" not in names((tmp_path / "gpu" / "requirements.txt").read_text().splitlines())
    assert '"--device", "cuda"' in (tmp_path / "gpu" / "Dockerfile").read_text()
    known = ("--dry-run", "--image", "registry/nets:1", "--url", "/models")
    memory_mi = []
    for option in ([], ["--eager"]):
        run = zerowake("deploy", "kubernetes", snapshot, *known, *option)
        assert run.returncode == 0, run.stderr
        found = re.search(r"memory: (\d+)Mi", run.stdout)
        memory_mi.append(int(found[1]) if found else 0)
        assert ("--eager provides" in run.stderr) == (not option)
    torch_free, eager = memory_mi
    assert 0 < torch_free < eager
