"""Base zygotes, and the gateway beside them: which are started, what they hold, what does not wait for them."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Gateway, is_ready

FASTAPI = "pydantic_core"  # FastAPI is all Python, and this comes with it as a shared object
X = [[1, 2, 3], [4, 5, 6]]


def children(gateway: Gateway) -> list[int]:
    """What it has started itself: at cold only its base zygotes."""
    pid = gateway.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def maps(pid: int) -> str:
    """What is mapped there: the file of each shared object that is loaded, among others."""
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture(scope="module")
def nets(compiled: Callable[[str], Path]) -> Path:
    """A snapshot whose form needs no torch."""
    return compiled("nets.py:Nets")


def test_without_a_function_that_needs_torch_there_is_one_base_without_it(
    nets: Path, frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(nets, frozen("zoo.py:Add"), "--depth", "cold")
    assert gateway.call("nets", {"net": "text", "x": X}).status == 200
    assert gateway.call("add", {"a": 1}).json() == 1006
    assert all(gateway.sleep(name, "cold").status == 200 for name in ("nets", "add"))
    (base,) = children(gateway)
    assert "libtorch_cpu.so" in maps(base) and "libtorch_python.so" not in maps(base)


def test_with_one_that_needs_torch_there_are_two(
    nets: Path, frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(nets, frozen("linear.py:Linear"), "--depth", "cold")
    assert gateway.call("linear", [1.0, 1.0]).status == 200
    assert gateway.call("nets", {"net": "text", "x": X}).status == 200
    assert all(gateway.sleep(name, "cold").status == 200 for name in ("nets", "linear"))
    both = [maps(base) for base in children(gateway)]
    assert sorted("libtorch_python.so" in each for each in both) == [False, True]


def test_calls_probes_and_metrics_need_no_fastapi(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Add"), "--depth", "cold", ready=False)
    gateway.until(lambda: is_ready(gateway))
    assert gateway.call("add", {"a": 1}).json() == 1006
    for path in ("/livez", "/readyz", "/metrics"):
        assert gateway.request("GET", path).status == 200
    assert FASTAPI not in maps(gateway.process.pid)
    assert gateway.request("GET", "/functions").status == 200
    assert FASTAPI in maps(gateway.process.pid)  # so it would have been seen


def test_the_gateway_listens_while_the_base_stands_still(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("linear.py:Linear"), "--depth", "cold", ready=False)
    (base,) = gateway.until(lambda: children(gateway))
    command = Path(f"/proc/{base}/cmdline")
    gateway.until(lambda: b"preload" in command.read_bytes())  # until it is, the gateway waits
    os.kill(base, signal.SIGSTOP)  # it has torch to import, and then to fork
    gateway.until(lambda: answers(gateway, "/livez"))
    early = gateway.start_call("linear", [1.0, 1.0])
    assert answers(gateway, "/metrics") and not early.done()
    os.kill(base, signal.SIGCONT)
    assert early.result().status == 200


def answers(gateway: Gateway, path: str) -> bool:
    try:
        return gateway.request("GET", path).status == 200
    except OSError:
        return False


@pytest.fixture
def bare_libtorch(tmp_path: Path) -> Path:
    """A folder with a torch whose library has no symbols; what imports that torch has the real one."""
    package = tmp_path / "path" / "torch"
    (package / "lib").mkdir(parents=True)
    package.joinpath("version.py").write_text(f"\n__version__ = '{torch.__version__}'\n")
    package.joinpath("__init__.py").write_text(
        f"import sys\nsys.path.remove({str(package.parent)!r})\n"
        "del sys.modules['torch']\nimport torch\n"
    )
    command = ["gcc", "-shared", "-x", "c", "-", "-o", package / "lib" / "libtorch_cpu.so"]
    subprocess.run(command, input=b"", check=True)
    return package.parent


def test_with_a_libtorch_without_the_symbols_it_answers_eagerly_and_says_why(
    nets: Path, launch: Callable[..., Gateway], bare_libtorch: Path
) -> None:
    path = os.pathsep.join([str(bare_libtorch), os.environ.get("PYTHONPATH", "")])
    gateway = launch(nets, "--depth", "cold", env={"PYTHONPATH": path.rstrip(os.pathsep)})
    assert gateway.call("nets", {"net": "text", "x": X}).json()["rows"]
    assert gateway.call("nets", {"net": "process", "x": None}).json()["torch"] is True
    told = gateway.function("nets")
    said = f"libtorch at {bare_libtorch}/torch/lib/libtorch_cpu.so cannot be used without torch: "
    assert told["form"] == "eager" and said in told["reason"]
    assert "undefined symbol: aoti_torch_" in told["reason"]
    assert any("nets runs as eager now" in line and said in line for line in gateway.log)
