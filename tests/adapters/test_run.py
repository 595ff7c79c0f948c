"""``zerowake.adapters.run``: which function it serves where none is named."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Gateway, free_ports, is_ready

from zerowake.adapters.run import run
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be."""
    found: list[str] = []

    def serve(targets: list[str], *rest: Any) -> None:
        found.extend(targets)

    monkeypatch.setattr("zerowake.runtime.gateway.serve.serve", serve)
    return found


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({"FUNCTION_TARGET": "hello"}, "main.py:hello"),
        ({"FUNCTION_TARGET": "hello", "FUNCTION_SOURCE": "src/app.py"}, "src/app.py:hello"),
        ({"FUNCTION_TARGET": "hello", "ZEROWAKE_SNAPSHOT": "/snapshot"}, "/snapshot"),
        ({"FUNCTION_SOURCE": "src/app.py"}, None),
    ],
)
def test_what_is_served(served: list[str], environ: dict[str, str], target: str | None) -> None:
    if target is None:
        with pytest.raises(ConfigError, match="FUNCTION_TARGET"):
            run(None, "container", ServeConfig(), environ)
    else:
        run(None, "container", ServeConfig(), environ)
        assert served == [target]


@pytest.mark.parametrize(
    ("adapter", "given_s", "drain_s"),
    [
        ("lambda", None, 0.5),
        ("lambda", 2.0, 2.0),
        ("container", None, 30.0),
        ("cloud-run", 60.0, 9.0),
    ],
)
def test_a_drain_takes_as_long_as_the_platform_gives(
    monkeypatch: pytest.MonkeyPatch, adapter: str, given_s: float | None, drain_s: float
) -> None:
    served: list[ServeConfig] = []
    monkeypatch.setattr(
        "zerowake.runtime.gateway.serve.serve", lambda targets, config, *rest: served.append(config)
    )
    environ = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}
    run("/snapshot", adapter, ServeConfig(), environ, drain_s=given_s)
    assert served[0].drain_s == drain_s


@pytest.mark.parametrize(
    ("place", "environ", "argument"),
    [
        ("mnt/models", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ("opt/ml/model", {}, "serve"),
        ("a/folder", {"AIP_HTTP_PORT": "8080", "AIP_STORAGE_URI": "/a/folder/"}, None),
    ],
    ids=["kserve", "sagemaker", "vertex"],
)
def test_a_model_is_taken_from_where_its_platform_has_laid_it(
    served: list[str],
    tmp_path: Path,
    place: str,
    environ: dict[str, str],
    argument: str | None,
) -> None:
    def start(**also: str) -> str:
        run(argument, None, ServeConfig(), {**environ, **also}, tmp_path)
        return served.pop()

    with pytest.raises(ConfigError, match="nothing to run"):
        start()
    folder = tmp_path / place
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
    assert start() == str(folder)  # opening it says what is wrong
    (folder / "first" / "manifest.json").touch()
    assert start() == str(folder / "first")
    (folder / "second" / "manifest.json").touch()
    assert start() == str(folder)  # which of them?
    (folder / "manifest.json").touch()
    assert start() == str(folder)
    assert start(ZEROWAKE_SNAPSHOT="/other") == "/other"


def test_a_model_of_vertex_is_mostly_in_a_store(served: list[str], tmp_path: Path) -> None:
    for url in ("gs://bucket/model", "gs://bucket/model/"):
        run(None, "vertex", ServeConfig(), {"AIP_STORAGE_URI": url}, tmp_path)
        assert served.pop() == url


def test_a_multi_model_endpoint_may_start_with_none(served: list[str], tmp_path: Path) -> None:
    run("serve", None, ServeConfig(), {"SAGEMAKER_MULTI_MODEL": "true"}, tmp_path)
    assert not served


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZEROWAKE_TRUST", "foo"),
        ("ZEROWAKE_TRUST", f"sha256:{'0' * 64} sha256:0"),
        ("ZEROWAKE_OBJECTS", "nonsense"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr("zerowake.runtime.gateway.serve.serve", None)
    with pytest.raises(ConfigError, match=rf"^{name}\b.*{value.split()[-1]}"):
        run("/snapshot", "container", ServeConfig(), {name: value})


SLEEPY = """
import os, sys
from zerowake.adapters.run import run
from zerowake.runtime.config import ServeConfig
run(sys.argv[1], "container", ServeConfig(idle_s=0.01), os.environ)
"""


def test_nothing_sleeps_however_short_the_idle_time(frozen: Callable[[str], Path]) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", SLEEPY, str(frozen("zoo.py:Once"))]
    process = subprocess.Popen(command, env={**os.environ, "PORT": str(port)})
    container = Gateway(process, f"http://127.0.0.1:{port}")
    try:
        container.until(lambda: is_ready(container))
        for _ in range(4):
            reply = container.request("POST", "/", b'{"do": "x"}')
            assert (reply.status, reply.headers["zerowake-depth"]) == (200, "hot")
            time.sleep(0.2)  # many times that
        told = container.request("GET", "/metrics").body.decode()
        starts = 'zerowake_restore_phase_seconds_count{function="once",phase="total"} '
        assert [line for line in told.splitlines() if line.startswith(starts)] == [f"{starts}1.0"]
    finally:
        container.stop()
