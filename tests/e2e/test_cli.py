"""The command line: freeze and its refusals, inspect, verify, trust, serve with its cache and reload."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import APPS, PATIENCE_S, Gateway, zerowake

EMPTY = "from zerowake import function\n\n"


def freeze(target: object, out: Path, *options: object) -> tuple[int, str, str]:
    run = zerowake("freeze", target, "--out", out, *options)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize(
    "target, said",
    [
        (
            "zoo.py:FailsToLoad",
            ["load of fails_to_load failed: ValueError: no such model (zoo.py:", "in load)"],
        ),
        ("zoo.py:Unfreezable", ["self.file", "make it in wake(self)"]),
        ("zoo.py:Nothing", ["zoo has no Nothing", "Batched"]),
        ("zoo.py:Order", ["no function", "@zerowake.function"]),
        ("missing.py:App", ["there is no file"]),
        ("zoo.py", ["no target", "path/app.py:Class"]),
    ],
)
def test_what_cannot_be_frozen_says_why(target: str, said: list[str], tmp_path: Path) -> None:
    code, out, error = freeze(APPS / target, tmp_path)
    assert code == 1 and out == ""
    assert error.startswith("zerowake freeze: ") and "Traceback" not in error
    for part in said:
        assert part in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source, said",
    [
        ("def broken(:\n", ["does not parse", "line 1"]),
        ("import nothing_of_this_name\n", ["cannot be imported", "nothing_of_this_name"]),
        ("raise SystemExit('bye')\n", ["cannot be imported", "SystemExit: bye (app.py:1 in <mod"]),
        (EMPTY + "@function\nclass App:\n    def predict(self, x): return x\n", ["examples="]),
        (
            EMPTY + "@function(exampels=[1])\nclass App:\n    def predict(self, x): return x\n",
            [
                "freeze: @function: unknown name 'exampels'; did you mean 'examples'",
                "(app.py:3 in <mod",
            ],
        ),
        (
            EMPTY + "@function(examples=['x'])\nclass App:\n"
            "    def predict(self, x: int) -> int: return x\n",
            ["examples[0]"],
        ),
        (
            EMPTY + "import os\n@function(examples=[1])\nclass App:\n"
            "    def predict(self, x): return os.getpid()\n",
            ["case 0, items[0]", "the original answered"],
        ),
        (
            EMPTY + "@function(examples=[1])\nclass App:\n    def wake(self): raise KeyError('k')\n"
            "    def predict(self, x): return x\n",
            ["wake() of 'app' failed: KeyError: 'k' (app.py:5 in wake)"],
        ),
        (
            EMPTY + "import prometheus_client\n@function(examples=[1])\nclass App:\n"
            "    def load(self): self.calls = prometheus_client.Counter('calls', 'of it')\n"
            "    def predict(self, x): return x\n",
            ["self.calls", "Counter", "make it in wake(self)"],
        ),
        (
            EMPTY + "@function(examples=[1])\nclass App:\n    def load(self):\n"
            "        class Inner: pass\n        self.inner = Inner()\n"
            "    def predict(self, x): return x\n",
            [
                "self.inner: the class app:App.load.<locals>.Inner",
                "top of a file of yours (one that",
            ],
        ),
    ],
)
def test_each_fault_of_an_app_file_has_its_own_message(
    source: str, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(source)
    code, _, error = freeze(tmp_path / "app.py:App", tmp_path / "out")
    assert code == 1 and "Traceback" not in error
    for part in said:
        assert part in error


def test_a_probe_that_raises_names_the_authors_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        EMPTY + "def inverse(x): return 1 / x\n\n@function(examples=[0])\nclass App:\n"
        "    def predict(self, x: int): return inverse(x)\n"
    )
    code, _, error = freeze(tmp_path / "app.py:App", tmp_path / "out")
    assert code == 1 and "RemoteError" not in error
    assert "failed: ZeroDivisionError: division by zero (app.py:3 in inverse); the ex" in error


def test_what_the_current_directory_holds_is_suggested_and_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text((APPS / "linear.py").read_text())
    for name in ("json", "queue", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    run = zerowake("freeze", "score:Linear", "--out", "out", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.endswith("did you mean score.py:Linear?\n")


def test_paths_that_are_no_folders_of_snapshots(
    frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    path = frozen("zoo.py:Add")
    above = zerowake("inspect", path.parent)
    assert above.returncode == 1 and f"name one of those below it: {path.parent}/" in above.stderr
    source = zerowake("serve", "tiny.py", "--port", "0", cwd=APPS)
    assert source.returncode == 1 and "name the function in it, tiny.py:Tiny; `" in source.stderr
    nameless = zerowake("serve", "Tiny", "--port", "0", cwd=APPS)
    assert nameless.returncode == 1 and "is named by its file, FILE.py:Tiny" in nameless.stderr
    inside = zerowake("inspect", path / "manifest.json")
    assert inside.returncode == 1 and f"name its folder, {path}\n" in inside.stderr
    incomplete = zerowake("inspect", "s3://")
    assert incomplete.returncode == 1
    assert "'s3://' is no address of a snapshot; wanted scheme://" in incomplete.stderr
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        code, _, error = freeze(APPS / "zoo.py:Add", out)
        assert code == 1 and "file is a file; name a folder" in error
        assert len(error.splitlines()) == 1
    for out in (path, path / "code" / "new"):
        code, _, error = freeze(APPS / "zoo.py:Add", out)
        assert code == 1 and f"name the folder above it, {path.parent}" in error
    looped = tmp_path / "loop"
    looped.symlink_to(looped)
    run = zerowake("verify", looped)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1


def test_a_heavy_import_at_the_top_is_pointed_out(tmp_path: Path) -> None:
    code, out, error = freeze(APPS / "heavy_top.py:Heavy", tmp_path)
    assert code == 0
    assert "heavy_top.py:3 imports torch at the top" in error
    assert (
        "move it into load, and classes that need it (an nn.Module) into a file of their" in error
    )
    assert Path(out.splitlines()[-1]).is_dir()


def test_what_the_author_prints_does_not_mix_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        EMPTY + "print('at the top')\n@function(examples=[1])\nclass App:\n"
        "    def load(self): print('in load')\n"
        "    def predict(self, x: int):\n        print('in predict')\n        return x\n"
    )
    code, out, error = freeze(f"{tmp_path}/app.py:App", tmp_path / "out")
    assert code == 0 and len(out.splitlines()) == 1 and Path(out.strip()).is_dir()
    for said in ("at the top", "in load", "in predict"):
        assert said in error


def test_the_probe_may_come_from_a_file_and_the_name_from_the_command_line(tmp_path: Path) -> None:
    lines = tmp_path / "probe.jsonl"
    lines.write_text('{"a": 7}\n{"a": 8, "b": 9}\n')
    code, out, _ = freeze(APPS / "zoo.py:Add", tmp_path, "--probe", lines, "--name", "plus")
    assert code == 0
    shown = json.loads(zerowake("inspect", out.strip(), "--json").stdout)
    assert shown["manifest"]["name"] == "plus"
    assert shown["manifest"]["function"]["examples"] == [{"a": 7}, {"a": 8, "b": 9}]


def test_inspect_and_verify(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    path = frozen("linear.py:Linear")
    shown = zerowake("inspect", path).stdout
    assert "linear:Linear (batch)" in shown and "sha256:" in shown and "MiB in 4 tensors" in shown
    good = zerowake("verify", path)
    assert good.returncode == 0 and "eager: the proof is right (" in good.stdout
    assert "\ncompiled: not replayed: it was frozen with --no-compile, or" in good.stdout
    broken = tmp_path / path.name
    shutil.copytree(path, broken)
    with open(broken / "weights-00001.safetensors", "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    bad = zerowake("verify", broken)
    assert bad.returncode == 1
    assert "block 1 of weights-00001.safetensors is damaged" in bad.stderr
    refused = zerowake("serve", broken, "--depth", "cold", "--port", "0", timeout_s=5)
    assert "damaged" in refused.stderr + refused.stdout


def test_a_strangers_code_runs_only_when_somebody_vouches_for_it(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    path = frozen("zoo.py:Add")
    elsewhere = {**os.environ, "ZEROWAKE_STATE": str(tmp_path / "state")}
    refused = zerowake("serve", path, env=elsewhere)
    assert refused.returncode == 1
    assert "--trust sha256:" in refused.stderr and "Traceback" not in refused.stderr
    assert zerowake("verify", path, env=elsewhere).returncode == 1
    digest = json.loads(zerowake("inspect", path, "--json", env=elsewhere).stdout)["digest"]
    trusting = launch(path, "--trust", digest, env={"ZEROWAKE_STATE": str(tmp_path / "state")})
    assert trusting.call("add", {"a": 1}).json() == 1006
    own = tmp_path / "code"
    shutil.copytree(path / "code", own)
    vouched = launch(path, "--code", own, env={"ZEROWAKE_STATE": str(tmp_path / "other")})
    assert vouched.call("add", {"a": 1}).json() == 1006
    (own / "zoo.py").write_text((own / "zoo.py").read_text() + "# changed\n")
    other = {**os.environ, "ZEROWAKE_STATE": str(tmp_path / "other")}
    changed = zerowake("serve", path, "--code", own, env=other)
    assert changed.returncode == 1 and "zoo.py" in changed.stderr


def test_serve_freezes_a_source_once_and_again_when_it_has_changed(
    launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    app = tmp_path / "source" / "app.py"
    app.parent.mkdir()
    source = (
        EMPTY + "@function(examples=[1])\nclass App:\n    def predict(self, x: int): return x + 1\n"
    )
    app.write_text(source)
    first = launch(f"{app}:App", "--depth", "zygote")
    assert first.call("app", 1).json() == 2
    digest = first.function("app")["digest"]
    assert any(f"{app}:App is frozen first: load runs" in line for line in first.log)
    first.stop()
    second = launch(f"{app}:App", "--depth", "zygote", "--reload")
    assert second.function("app")["digest"] == digest
    assert not any("is frozen first" in line for line in second.log)
    app.write_text(source.replace("x + 1", "x + 2"))
    second.until(lambda: second.function("app")["digest"] != digest)
    second.until(lambda: second.call("app", 1).json() == 3)
    app.write_text("def broken(:\n")
    second.until(lambda: any("the old one stays" in line for line in second.log))
    assert second.call("app", 1).json() == 3
    app.unlink()
    second.until(lambda: any("stays: there is no file" in line for line in second.log))
    (tmp_path / "new").write_text(source.replace("x + 1", "x + 3"))
    (tmp_path / "new").rename(app)
    second.until(lambda: second.call("app", 1).json() == 4)
    shutil.rmtree(app.parent)
    second.until(lambda: sum("stays: there is no file" in line for line in second.log) == 2)
    app.parent.mkdir()
    app.write_text(source.replace("x + 1", "x + 4"))
    second.until(lambda: second.call("app", 1).json() == 5)


@pytest.mark.parametrize(
    "end, said",
    [
        ("print('gone', flush=True); os._exit(0)", "exit code 0, while it ran load or the probe"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV, while it ran load or"),
        ("raise ValueError('no')", "could not be frozen; the reason stands above"),
    ],
)
def test_a_freezing_process_that_ends_says_how(end: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        EMPTY + "import os, signal\n@function(examples=[1])\nclass App:\n"
        f"    def load(self): {end}\n    def predict(self, x: int): return x\n"
    )
    run = zerowake("serve", f"{tmp_path}/app.py:App", "--port", "0", timeout_s=60)
    assert run.returncode == 1 and said in run.stderr and "Traceback" not in run.stderr


THREAD = "import threading, time; threading.Thread(target=time.sleep, args=[3600]).start()"


@pytest.mark.parametrize("load, code", [(THREAD, 0), (f"{THREAD}; self.file = open(__file__)", 1)])
def test_a_thread_of_load_does_not_keep_freeze(load: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        EMPTY + "@function(examples=[1])\nclass App:\n"
        f"    def load(self): {load}\n    def predict(self, x: int): return x\n"
    )
    run = zerowake("freeze", f"{tmp_path}/app.py:App", "--out", tmp_path / "out", timeout_s=60)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr and bool(run.stdout) is not bool(code)


@pytest.mark.parametrize("where", ["load", "predict"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_freeze_says_so(where: str, signum: int, tmp_path: Path) -> None:
    began = tmp_path / "began"
    hang = f"pathlib.Path({str(began)!r}).touch(); time.sleep(3600)"
    (tmp_path / "app.py").write_text(
        EMPTY + "import pathlib, threading, time\n@function(examples=[1])\nclass App:\n"
        "    def load(self):\n        threading.Thread(target=time.sleep, args=[3600]).start()\n"
        f"        {hang if where == 'load' else 'pass'}\n"
        f"    def predict(self, x: int): {hang}\n"
    )
    command = [sys.executable, "-m", "zerowake", "freeze", f"{tmp_path}/app.py:App"]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True
    ) as freezing:
        deadline = time.monotonic() + PATIENCE_S
        while not began.exists():
            assert time.monotonic() < deadline and freezing.poll() is None
            time.sleep(0.02)
        freezing.send_signal(signum)
        _, error = freezing.communicate(timeout=PATIENCE_S)
    assert (freezing.returncode, error) == (128 + signum, "zerowake freeze: interrupted\n")


@pytest.mark.parametrize(
    "load, signum, code",
    [
        ("time.sleep(3600)", signal.SIGTERM, 0),
        ("sum(range(10**12))", signal.SIGTERM, 0),  # no signal handler runs meanwhile
        ("time.sleep(3600)", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_freeze_ends_with_its_gateway(
    load: str, signum: signal.Signals, code: int, tmp_path: Path
) -> None:
    app, began = tmp_path / "app.py", tmp_path / "began"
    app.write_text(
        EMPTY + "import os, pathlib, time\n@function(examples=[1])\nclass App:\n"
        f"    def load(self):\n        pathlib.Path({str(began)!r}).write_text(str(os.getpid()))\n"
        f"        {load}\n    def predict(self, x: int): return x\n"
    )
    command = [sys.executable, "-m", "zerowake", "serve", f"{app}:App", "--port", "0"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ) as gateway:
        until(lambda: gateway.poll() is None and began.exists() and began.read_text())
        gateway.send_signal(signum)
        assert gateway.wait(PATIENCE_S) == code
    until(lambda: not is_alive(int(began.read_text())))
    assert list((tmp_path / "zerowake" / "snapshots").glob("[!.]*")) == []


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_freeze_notes_slow_examples_and_answers_unlike_the_annotation(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        EMPTY
        + "import time\nfrom typing import Iterator\n@function(examples=[0.0, 0.3], timeout_s=0.2)\nclass App:\n"
        "    def predict(self, x: float) -> str:\n        time.sleep(x)\n        return x\n"
        "@function(examples=[3], timeout_s=0.2)\nclass Slow:\n"
        "    def predict(self, n: int) -> Iterator[int]:\n"
        "        for i in range(n):\n            time.sleep(0.1)\n            yield i\n"
    )
    code, _, error = freeze(f"{tmp_path}/app.py:App", tmp_path / "out")
    notes = [line for line in error.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == 2
    assert notes[0].startswith("note: example 1 took 0.3 s; in service predict is ended after")
    assert "example 0 does not fit the output annotation: at the top level 0.0 is not" in notes[1]
    (tmp_path / "odd.py").write_text(
        EMPTY + "from pydantic import BaseModel, Field\n"
        "class Word(BaseModel):\n"
        "    text: str = Field(json_schema_extra={'pattern': '(a'})\n"
        "@function(examples=[1])\nclass Odd:\n"
        "    def predict(self, x: int) -> Word: return Word(text='a')\n"
    )
    code, _, error = freeze(f"{tmp_path}/odd.py:Odd", tmp_path / "out")
    assert code == 0 and "its schema is not valid: " in error
    code, _, error = freeze(f"{tmp_path}/app.py:Slow", tmp_path / "out")
    assert (code, error) == (0, "")  # a stream has its time for each item


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"a": 1}\n\n{"a": }\n', "Expecting value at line 3 column 7"),
        ('[{"a": 1},\n nil]', "Expecting value at line 2 column 2"),
        ('{"a": 1}\n{"a": "x"}', "input 1: the input does not fit: /a"),
        ("[]", "holds no input"),
        ("\n", "holds no input"),
    ],
)
def test_a_probe_that_is_no_json_names_its_file_and_line(
    content: str, said: str, tmp_path: Path
) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text(content)
    code, _, error = freeze(APPS / "zoo.py:Add", tmp_path / "out", "--probe", probe)
    assert code == 1 and error.startswith(f"zerowake freeze: --probe {probe}") and said in error


def test_a_second_signal_ends_the_drain(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Batched"), "--drain-s", "3600")
    hung = gateway.start_call("batched", {"do": "gate:/nowhere"})
    gateway.until(lambda: gateway.is_running("batched"))
    gateway.process.send_signal(signal.SIGTERM)
    gateway.until(lambda: any("(a second signal ends it now)" in line for line in gateway.log))
    assert gateway.stop() == 0
    assert (hung.result().status, hung.result().json()["code"]) == (503, "draining")


def test_limits_of_queue_and_body(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Batched"), "--max-queue", "2", "--max-body-mb", "0.001")
    slow = gateway.start_call("batched", {"do": "slow"})
    gateway.until(lambda: gateway.is_running("batched"))
    waiting = [gateway.start_call("batched", {"do": "ok"}) for _ in range(2)]
    gateway.until(lambda: gateway.function("batched")["queued"] == 2)
    full = gateway.call("batched", {"do": "ok"})
    assert (full.status, full.json()["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    assert [call.result().status for call in (slow, *waiting)] == [200] * 3
    large = gateway.call("batched", {"do": "x" * 2000})
    assert (large.status, large.json()["code"]) == (413, "body_too_large")
    assert "--max-body-mb" in large.json()["detail"]


def test_two_functions_of_one_name_and_a_taken_port_are_refused(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    path = frozen("zoo.py:Add")
    twice = zerowake("serve", path, path)
    assert twice.returncode == 1 and "two functions are called add" in twice.stderr
    running = launch(path, "--depth", "cold")
    port = running.url.rpartition(":")[2]
    taken = zerowake("serve", path, "--port", port)
    assert taken.returncode == 1 and "--port" in taken.stderr
    nobody = zerowake("ps", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1 and "zerowake serve" in nobody.stderr


def test_what_serve_is_told_is_checked(frozen: Callable[[str], Path]) -> None:
    path = frozen("zoo.py:Add")
    for wrong, said in [
        (["--host", "nosuchname.invalid"], "give --host an address of this machine"),
        (["--env", "A=b"], "'A=b' is no name of an environment variable"),
        (["--trust", "sha256:abc"], "wanted sha256: and 64 hexadecimal digits"),
        (["--start-timeout-s", "0"], "--start-timeout-s must be greater than 0"),
    ]:
        run = zerowake("serve", path, *wrong)
        assert run.returncode in (1, 2) and said in run.stderr
    unset = zerowake("serve", path, "--env", "NOT_SET_ANYWHERE", "--host", "nosuchname.invalid")
    assert "--env NOT_SET_ANYWHERE: it is not set here" in unset.stderr
    other = f"sha256:{'0' * 64}"
    unused = zerowake("serve", path, path, "--trust", other)
    assert f"--trust {other}: no snapshot that is served has this digest" in unused.stderr


def test_invoke_ends_json_with_a_newline_and_leaves_bytes_alone(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(*(frozen(f"zoo.py:{name}") for name in ("Add", "Reverse", "Count")))
    for name, data, wanted in [
        ("add", '{"a": 1}', "1006\n"),
        ("reverse", "abc", "cba"),
        ("count", '{"start": 0, "stop": 2}', "0\n1\n"),
    ]:
        run = zerowake("invoke", name, "--data", data, "--url", gateway.url)
        assert run.stdout == wanted
    data = '{"start": 0, "stop": 5, "fail_at": 2}'
    run = zerowake("invoke", "count", "--data", data, "--url", gateway.url.removeprefix("http://"))
    assert (run.returncode, run.stdout) == (1, "0\n1\n")
    assert "500 handler_failed: RuntimeError: failed at 2" in run.stderr
    run = zerowake("invoke", "add", "--data", "hello", "--url", gateway.url)
    assert run.returncode == 1 and run.stderr.endswith("of its own: --data '\"hello\"'\n")
    run = zerowake("invoke", "add", "--data", "[1, }", "--url", gateway.url)
    assert run.returncode == 1 and "quotes" not in run.stderr


def test_a_wrong_option_shows_the_usage_of_its_verb() -> None:
    for verb in (["verify", "x"], ["run", "x"], ["ps"]):
        run = zerowake(*verb, "--nonsense")
        assert run.returncode == 2 and run.stderr.startswith(f"usage: zerowake {verb[0]} [-h]")
        assert f"zerowake {verb[0]}: error: unrecognized arguments: --nonsense" in run.stderr


def test_help_teaches() -> None:
    assert "a JSON list, JSON lines, or the bytes" in " ".join(
        zerowake("freeze", "--help").stdout.split()
    )
    run = zerowake("run", "--help").stdout
    for named in ("PORT", "FUNCTION_TARGET", "FUNCTION_SOURCE", "ZEROWAKE_OBJECTS"):
        assert named in run
    shown = zerowake("--help").stdout
    assert "zerowake serve examples/embed/app.py:Embed" in shown
    assert "prewarmed (a fork that has warmed" in " ".join(
        zerowake("serve", "--help").stdout.split()
    )
