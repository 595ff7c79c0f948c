"""Compiled forms from the command line to HTTP: how they are made, what they answer, when they are not used."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import APPS, PATIENCE_S, Gateway, zerowake

TEXT = [
    [[1, 2, 3], [4, 5, 6]],
    [[10]],
    [[1], [2], [0]],
    [[0, 10]],
    [[1, 2, 3, 4, 5, 6]] * 5,
]
PICKS = [
    [[1, -9, 6], [4, -3, 0]],
    [[-11], [6]],
    [[-11, 6] * 8000] * 9,
]
IMAGES = [
    [[[[0.5, 1.0, -1.0, 0.0]] * 4] * 3] * 2,
    [[[[0.25, -2.0, 3.0]] * 7] * 3] * 3,
]


@pytest.fixture(scope="module")
def nets(compiled: Callable[[str], Path], launch: Callable[..., Gateway]) -> Gateway:
    return launch(compiled("nets.py:Nets"), "--depth", "cold", "--idle-s", "3600")


@pytest.fixture(scope="module")
def eager(frozen: Callable[[str], Path], launch: Callable[..., Gateway]) -> Gateway:
    return launch(frozen("nets.py:Nets"), "--depth", "prewarmed", "--idle-s", "3600")


def ask(gateway: Gateway, net: str, x: Any) -> Any:
    reply = gateway.call("nets", {"net": net, "x": x})
    assert reply.status == 200, (reply.body, gateway.log)
    return reply.json()


def about(value: Any) -> Any:
    """The same with room for rounding, for ``==``."""
    if isinstance(value, dict):
        return {key: about(each) for key, each in value.items()}
    if isinstance(value, list):
        return [about(each) for each in value]
    return value if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)


def forms(snapshot: Path) -> list[Path]:
    return sorted(snapshot.glob("compiled/*/form.json"))


@pytest.mark.parametrize("depth", ["cold", "zygote", "prewarmed", "hot"])
def test_it_answers_as_the_original_without_torch(
    nets: Gateway, eager: Gateway, depth: str
) -> None:
    if depth == "hot":
        ask(nets, "process", None)
    else:
        assert nets.sleep("nets", depth).status == 200
    reply = nets.call("nets", {"net": "text", "x": TEXT[0]})
    assert reply.headers["zerowake-depth"] == depth
    assert reply.json() == about(ask(eager, "text", TEXT[0]))
    for x in TEXT:
        assert ask(nets, "text", x) == about(ask(eager, "text", x))
    for x in IMAGES:
        assert ask(nets, "image", x) == about(ask(eager, "image", x))
    for x in PICKS:
        assert ask(nets, "picks", x) == about(ask(eager, "picks", x))
    assert ask(nets, "process", None)["torch"] is False
    assert ask(eager, "process", None)["torch"] is True


@pytest.mark.parametrize(
    "net, x, said",
    [
        ("text", [[1, 11]], "text: ids holds values from 1 to 11; wanted 0 to 10"),
        ("text", [[1, -1]], "text: ids holds values from -1 to 1; wanted 0 to 10"),
        ("text", [[1, 2], [3]], "lists of unequal lengths"),
        ("text", [[1.0, 2.0]], "text: ids: "),
        ("text", [1, [2]], "numbers and lists, mixed"),
        ("image", [[["a"]]], "image: x: "),
        ("picks", [[0, 1], [2, 7]], "picks: index out of range in `found = self.table[ids + 2]`"),
        ("picks", [[0, 1], [-12, 2]], "picks: index out of range in `found = self.table[ids + 2]`"),
        ("picks", [[0] * 20_000, [10**12] * 20_000], "picks: index out of range in"),
    ],
)
def test_what_it_does_not_take_is_that_calls_error(
    nets: Gateway, net: str, x: Any, said: str
) -> None:
    before = ask(nets, "process", None)["pid"]
    reply = nets.call("nets", {"net": net, "x": x})
    assert reply.status == 500 and said in reply.json()["detail"]
    assert ask(nets, "process", None) == {"pid": before, "torch": False}


def test_a_shape_that_it_does_not_take_is_answered_by_the_original(
    nets: Gateway, eager: Gateway
) -> None:
    assert nets.sleep("nets", "cold").status == 200
    before = ask(nets, "process", None)
    for x in ([[0, 1]], [[3, -2, 1]]):
        assert ask(nets, "picks", x) == about(ask(eager, "picks", x))
    assert ask(nets, "process", None) == {"pid": before["pid"], "torch": True}
    said = "picks: ids has 1 entries in dimension 0; the compiled form takes 2 to any. The original"
    assert sum(said in line for line in nets.log) == 1
    assert ask(nets, "picks", PICKS[0]) == about(ask(eager, "picks", PICKS[0]))
    for net, x in (
        ("text", [[1, 2, 3, 4, 5, 6, 7]]),
        ("text", [1, 2]),
        ("image", [[[[1.0] * 4] * 4] * 2] * 2),
    ):
        found, wanted = (each.call("nets", {"net": net, "x": x}) for each in (nets, eager))
        assert found.status == wanted.status == 500
        assert found.json()["detail"] == wanted.json()["detail"]
    count = re.search(
        r'zerowake_eager_calls_total\{function="nets"\} (\S+)',
        nets.request("GET", "/metrics").body.decode(),
    )
    assert count is not None and float(count[1]) == 5
    assert nets.sleep("nets", "cold").status == 200


def test_without_a_compiled_form_it_says_so_and_runs_eagerly(
    frozen: Callable[[str], Path], eager: Gateway
) -> None:
    assert forms(frozen("nets.py:Nets")) == []
    said = "nets runs eagerly: it was frozen with --no-compile, or by --reload, which does not comp"
    assert any(said in line for line in eager.log)


def only_why(snapshot: Path) -> str:
    """The reason that is kept beside the forms, where there is nothing else."""
    (kept,) = (snapshot / "compiled").iterdir()
    assert kept.suffix == ".why"
    return kept.read_text()


def planted(snapshot: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy whose libraries, when they are loaded, touch a file; and that file."""
    canary = tmp_path / "canary"
    copy = tmp_path / snapshot.name
    shutil.copytree(snapshot, copy)
    source = tmp_path / "evil.c"
    source.write_text(
        "#include <fcntl.h>\n__attribute__((constructor)) static void go(void)"
        f' {{ open("{canary}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    for library in copy.glob("compiled/*/*.so"):
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    return copy, canary


def test_a_planted_library_is_never_loaded(
    compiled: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    from hashlib import sha256

    copy, canary = planted(compiled("nets.py:Nets"), tmp_path)
    (form,) = forms(copy)
    plain = json.loads(form.read_bytes())
    plain["files"] = {
        name: sha256((form.parent / name).read_bytes()).hexdigest() for name in plain["files"]
    }
    form.write_text(json.dumps(plain))
    gateway = launch(copy, "--depth", "prewarmed")
    assert ask(gateway, "process", None)["torch"] is True
    assert ask(gateway, "text", TEXT[0])["rows"]
    assert any("was not compiled by this user on this machine" in line for line in gateway.log)
    assert not canary.exists()


def test_a_library_in_place_of_the_trusted_one_is_not_loaded(
    compiled: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    copy, canary = planted(compiled("nets.py:Nets"), tmp_path)
    gateway = launch(copy, "--depth", "cold")
    assert ask(gateway, "process", None)["torch"] is True
    said = "does not have the digest that form.json names"
    assert any("WARNING" in line and said in line for line in gateway.log)
    assert not canary.exists()


def test_a_form_that_fails_only_when_it_is_bound_gives_way_to_the_eager_one(
    compiled: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    from hashlib import sha256

    copy = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), copy)
    (form,) = forms(copy)
    plain = json.loads(form.read_bytes())
    for module in plain["modules"]:
        for weight in module["constants"].values():
            weight[1] = [2 * size for size in weight[1]]
    form.write_text(json.dumps(plain))
    named = "sha256:" + sha256(form.read_bytes()).hexdigest()
    gateway = launch(copy, "--depth", "prewarmed", "--trust", named)
    assert ask(gateway, "process", None)["torch"] is True
    assert ask(gateway, "text", TEXT[0])["rows"]
    assert any("the compiled form cannot be used" in line for line in gateway.log)


def test_a_form_that_goes_while_it_is_served_is_told(
    compiled: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), copy)
    gateway = launch(copy, "--depth", "cold")
    (form,) = forms(copy)
    form.with_name("constants.bin").unlink()
    assert ask(gateway, "process", None)["torch"] is True
    assert ask(gateway, "text", TEXT[0])["rows"]
    assert any("nets runs as eager now" in line and "constants.bin" in line for line in gateway.log)
    (told,) = gateway.request("GET", "/functions").json()
    assert told["form"] == "eager" and "constants.bin is missing" in told["reason"]
    metrics = gateway.request("GET", "/metrics").body.decode()
    assert 'zerowake_form_info{form="eager",function="nets"' in metrics


def freeze_linear(
    folder: Path, body: str, *, imports: str = "", examples: str = "[[[1.0, 2.0]]]"
) -> "subprocess.CompletedProcess[str]":
    """Freeze, below ``folder``, a class with a Linear as ``model`` and what ``body`` adds to it."""
    (folder / "app.py").write_text(
        f"{imports}from zerowake import function\n\n@function(examples={examples})\nclass App:\n"
        "    def load(self):\n        import torch\n        self.model = torch.nn.Linear(2, 3).eval()\n"
        f"{body}"
    )
    return zerowake("freeze", folder / "app.py:App", "--out", folder / "out")


def test_a_thread_that_wake_leaves_does_not_hold_up_the_compiler(tmp_path: Path) -> None:
    run = freeze_linear(
        tmp_path,
        "    def wake(self):\n        threading.Thread(target=threading.Event().wait).start()\n"
        "    def predict(self, x: int) -> int:\n        return x\n",
        imports="import threading\n",
        examples="[1]",
    )
    assert run.returncode == 0 and "self.model is not called on the probe" in run.stderr, run.stderr


def test_what_keeps_a_function_from_being_compiled_is_a_note(tmp_path: Path) -> None:
    run = freeze_linear(
        tmp_path,
        "    def predict(self, rows: list[list[float]]) -> list:\n"
        "        return [self.model(rows), self.model.in_features]\n",
    )
    assert run.returncode == 0
    assert "note: not compiled: " in run.stderr
    reason = "predict reads self.model.in_features; a compiled module is only called"
    assert f"{reason}; the function serves eagerly" in run.stderr
    assert "compiling for this machine, half a minute or more" in run.stderr
    snapshot = Path(run.stdout.removesuffix("\n"))
    assert only_why(snapshot) == reason
    assert f"eager (it was not compiled: {reason})" in zerowake("inspect", snapshot).stdout


def test_an_interrupted_compiler_leaves_the_snapshot_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zerowake", "freeze", APPS / "tiny.py:Tiny", "--out"]
    with subprocess.Popen([*command, tmp_path], stderr=subprocess.PIPE, text=True) as freezing:
        assert freezing.stderr is not None
        while "compiling for this machine" not in freezing.stderr.readline():
            assert freezing.poll() is None
        freezing.send_signal(signal.SIGINT)
        _, error = freezing.communicate(timeout=PATIENCE_S)
    (snapshot,) = tmp_path.glob("tiny-*")
    told, end = error.splitlines()[-2:]
    assert told.startswith(
        f"note: the snapshot {snapshot} is there, not compiled; `zerowake compile"
    )
    assert end == "zerowake freeze: interrupted"


def test_answers_that_are_all_unsteady_prove_no_form(tmp_path: Path) -> None:
    run = freeze_linear(
        tmp_path,
        "    def predict(self, rows: list[list[float]]) -> list:\n"
        "        return [os.urandom(8).hex(), self.model(rows)[0][0] > 0]\n",
        imports="import os\n",
    )
    assert run.returncode == 0, run.stderr
    said = "all that is answered differs from run to run (items[0][*]); take random numbers from"
    assert "note: not compiled: " in run.stderr and said in run.stderr
    snapshot = Path(run.stdout.removesuffix("\n"))
    assert said in only_why(snapshot)
    verified = zerowake("verify", snapshot)
    assert "eager: the proof says nothing: no field is deterministic (1 left" in verified.stdout
    assert f"compiled: not replayed: it was not compiled: {only_why(snapshot)}" in verified.stdout


def test_what_of_the_object_keeps_torch_in_the_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "inductor"  # torch sets this itself, to a folder below /tmp
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    run = freeze_linear(
        tmp_path,
        "        self.labels = {'names': ['a'], 'means': torch.ones(3)}\n"
        "        self.odds = torch.nn.Softmax(1).eval()\n"
        "    def predict(self, rows: list[list[float]]) -> list:\n"
        "        return [self.model(rows), self.odds([[1.0]])]\n",
    )
    assert "it still needs torch: self.labels['means'] is a tensor; keep it in" in run.stderr
    assert "note: compiled for odds(input: any x 1); other shapes" in run.stderr  # model: any rows
    assert not [path for path in shared.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "options, environ, said",
    [
        (["--compile-timeout", "1"], {}, "longer than 1 s (--compile-timeout) and was ended"),
        ([], {"CXX": "/nonexistent"}, "self.model does not compile: "),
    ],
)
def test_a_compile_that_fails_leaves_nothing(
    frozen: Callable[[str], Path],
    tmp_path: Path,
    options: list[str],
    environ: dict[str, str],
    said: str,
) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(frozen("tiny.py:Tiny"), copy)
    fresh = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = zerowake("compile", copy, *options, env={**os.environ, **environ, **fresh})
    assert run.returncode == 1 and said in run.stderr
    assert "Traceback" not in run.stderr
    assert said in only_why(copy)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_compile(snapshot: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "zerowake", "compile", str(snapshot), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_compiler_is_told(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(frozen("tiny.py:Tiny"), copy)
    compiling = start_compile(copy)
    while not (found := children(compiling.pid)):
        assert compiling.poll() is None
    os.kill(found[0], signal.SIGKILL)  # as the kernel does when memory runs out
    _out, said = compiling.communicate(timeout=PATIENCE_S)
    assert compiling.returncode == 1 and "the compiling process ended: killed by SIGKILL" in said
    assert "killed by SIGKILL" in only_why(copy)


@pytest.mark.parametrize("mbytes", [300, 500, 700])  # torch cannot be loaded, or too little is left
def test_too_little_memory_to_compile_is_told_and_it_serves_eagerly(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path, mbytes: int
) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(frozen("tiny.py:Tiny"), copy)
    run = zerowake(
        "compile",
        copy,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mbytes << 20, mbytes << 20)),
    )
    assert run.returncode == 1 and "\nzerowake compile: " in f"\n{run.stderr}", run.stderr
    assert "Traceback" not in run.stderr
    assert forms(copy) == []
    gateway = launch(copy, "--depth", "cold")
    assert len(gateway.call("tiny", [[1.0, -2.0, 0.5]]).json()[0]) == 40
    assert any("tiny runs eagerly: it was " in line for line in gateway.log)
    gateway.stop()


def test_killed_then_two_at_once(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(frozen("tiny.py:Tiny"), copy)
    killed = start_compile(copy)
    while not (found := children(killed.pid)):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    # half-made, and under a name that nobody reads
    (left,) = (entry for entry in (copy / "compiled").iterdir() if entry.is_dir())
    assert left.name.startswith(".zerowake-staging-") and forms(copy) == []
    while Path(f"/proc/{found[0]}").exists() and "Z" not in state_of(found[0]):
        pass  # it ends with whoever has started it

    both = [start_compile(copy), start_compile(copy, "--dtype", "bfloat16", "--tolerance", "1e-2")]
    for each in both:
        _out, said = each.communicate(timeout=PATIENCE_S * 3)
        assert each.returncode == 0, said
        assert "still needs torch: tiny.py:17 imports torch in predict" in said
    assert [entry.name[0] == "." for entry in (copy / "compiled").iterdir()] == [False]
    gateway = launch(copy, "--depth", "cold")
    x = [[1.0, -2.0, 0.5]]
    answer = gateway.call("tiny", x).json()
    assert not any("runs eagerly" in line or "cannot be used" in line for line in gateway.log)
    gateway.stop()

    refused = zerowake("compile", copy, "--dtype", "bfloat16", "--tolerance", "1e-5")
    assert refused.returncode == 1
    assert "differs from the original by" in refused.stderr and "--tolerance" in refused.stderr
    assert "; the earlier form (" in refused.stderr and ") stays in use" in refused.stderr
    assert len(forms(copy)) == 1
    original = launch(frozen("tiny.py:Tiny"), "--depth", "cold")
    assert answer[0] == pytest.approx(original.call("tiny", x).json()[0], rel=5e-2, abs=5e-2)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


HALVES = """
import sys
from zerowake import function

@function(examples=[{"net": "half", "x": [[0.5, 1.0, 2.0]] * 2}, {"net": "full", "x": [[1.0, 2.0, 3.0]] * 2}])
class Halves:
    def load(self):
        import torch
        torch.manual_seed(2)
        self.full = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.LayerNorm(40)).eval()
        self.half = torch.nn.Linear(3, 40).half().eval()

    def predict(self, item: dict) -> list:
        if item["net"] == "torch":
            return ["torch" in sys.modules]
        return self.full(item["x"]) if item["net"] == "full" else self.half(item["x"])
"""


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--dtype", "float16", "--tolerance", "1e-2"], marks=pytest.mark.long)],
)
def test_modules_of_half_precision(
    tmp_path: Path, launch: Callable[..., Gateway], options: list[str]
) -> None:
    (tmp_path / "app.py").write_text(HALVES)
    run = zerowake("freeze", tmp_path / "app.py:Halves", "--out", tmp_path / "out", *options)
    assert run.returncode == 0 and "compiled, and it needs no torch" in run.stderr, run.stderr
    snapshot = Path(run.stdout.splitlines()[-1])
    compiled = launch(snapshot, "--depth", "cold")
    shutil.rmtree(shutil.copytree(snapshot, tmp_path / "eager") / "compiled")
    eager = launch(tmp_path / "eager", "--depth", "cold")
    assert compiled.call("halves", {"net": "torch"}).json() == [False]
    assert eager.call("halves", {"net": "torch"}).json() == [True]
    for net in ("half", "full"):
        asked = {"net": net, "x": [[-1.0, 0.25, 4.0], [2.0, 0.0, 1.0]]}
        found, wanted = (each.call("halves", asked).json() for each in (compiled, eager))
        assert found == [pytest.approx(row, rel=1e-2, abs=1e-2) for row in wanted]


def test_a_plain_snapshot_is_not_compiled(frozen: Callable[[str], Path]) -> None:
    run = zerowake("compile", frozen("zoo.py:Add"))
    assert run.returncode == 1 and run.stderr.startswith("zerowake compile: it holds no module")


def test_options_out_of_range() -> None:
    for wrong in (
        ["--tolerance", "nan"],
        ["--tolerance", "-1"],
        ["--compile-timeout", "soon"],
        ["--compile-timeout", "0"],
    ):
        run = zerowake("compile", "nowhere", *wrong)
        assert run.returncode == 2 and wrong[0] in run.stderr
    run = zerowake("freeze", "a.py:A", "--out", "o", "--no-compile", "--dtype", "bfloat16")
    assert run.returncode == 1 and "--dtype is about the compiled form, and --no-comp" in run.stderr


def test_verify_replays_the_compiled_form_too(
    compiled: Callable[[str], Path], tmp_path: Path
) -> None:
    from hashlib import sha256

    copy = tmp_path / "snapshot"
    shutil.copytree(compiled("nets.py:Nets"), copy)
    good = zerowake("verify", copy)
    assert good.returncode == 0, good.stderr
    eager, form = good.stdout.splitlines()
    assert "eager: the proof is right (" in eager
    assert form.startswith("compiled: the proof is right (largest error ")

    (file,) = forms(copy)
    plain = json.loads(file.read_bytes())
    file.write_text(json.dumps({**plain, "tolerance": -1.0}))
    unknown = zerowake("verify", copy)
    assert unknown.returncode == 0 and "compiled: not replayed: " in unknown.stdout
    named = "sha256:" + sha256(file.read_bytes()).hexdigest()
    wrong = zerowake("verify", copy, "--trust", named)
    assert wrong.returncode == 1 and "it differs from the original by " in wrong.stderr
    assert f"`zerowake compile {copy}` makes it anew" in wrong.stderr

    with open(file.with_name("text.so"), "r+b") as library:
        library.truncate(library.seek(0, os.SEEK_END) - 1)
    damaged = zerowake("verify", copy)
    assert damaged.returncode == 1
    assert "text.so does not have the digest that form.json names" in damaged.stderr
    assert f"`zerowake compile {copy}` makes it anew" in damaged.stderr


def test_nothing_is_compiled_from_damaged_weights(
    frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(frozen("tiny.py:Tiny"), copy)
    with open(copy / "weights-00001.safetensors", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 4)
    run = zerowake("compile", copy)
    assert run.returncode == 1 and run.stdout == ""
    assert "block 0 of weights-00001.safetensors is damaged" in run.stderr
    assert forms(copy) == []
