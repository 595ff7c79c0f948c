"""``zerowake.adapters.run``: which function it serves where none is named."""

from typing import Any

import pytest

from zerowake.adapters.run import run
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({"FUNCTION_TARGET": "hello"}, "main.py:hello"),
        ({"FUNCTION_TARGET": "hello", "FUNCTION_SOURCE": "src/app.py"}, "src/app.py:hello"),
        ({"FUNCTION_TARGET": "hello", "ZEROWAKE_SNAPSHOT": "/snapshot"}, "/snapshot"),
        ({"FUNCTION_SOURCE": "src/app.py"}, None),
    ],
)
def test_what_is_served(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], target: str | None
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        "zerowake.runtime.gateway.serve.serve", lambda targets, *rest: served.extend(targets)
    )
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
    run("/snapshot", adapter, ServeConfig(), environ, given_s)
    assert served[0].drain_s == drain_s


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
