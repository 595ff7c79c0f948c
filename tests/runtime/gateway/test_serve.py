"""``zerowake.runtime.gateway.serve``: what is refused before it listens, and what is begun on a guess."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import GOOD

from zerowake.adapters.stores import open_store
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway import http, opening, server
from zerowake.runtime.gateway import serve as serving


def test_a_gpu_that_is_not_there_is_refused_before_torch_is_asked(tmp_path: Path) -> None:
    (tmp_path / "null").touch()
    serving.check_device("auto", tmp_path)
    with pytest.raises(ConfigError, match="there is no GPU here"):
        serving.check_device("cuda", tmp_path)
    (tmp_path / "nvidia0").touch()
    serving.check_device("cuda", tmp_path)


def test_an_address_of_another_machine_is_a_matter_of_the_host() -> None:
    with pytest.raises(ConfigError, match="choose another with --host"):
        http.listen(ServeConfig(host="192.0.2.1", port=0))


def test_a_variable_that_is_a_slip_of_ours_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TRSUT", "TRUST", "PORT"):  # Kubernetes sets the last one
        monkeypatch.setenv(f"ZEROWAKE_{name}", "x")
    config = ServeConfig(port=0)
    with pytest.raises(ConfigError, match="only snapshots"):
        serving.serve([str(GOOD)], config, http.HttpIngress(config), open_store, reload=True)
    said = capsys.readouterr().err
    assert "ZEROWAKE_TRSUT is no variable that is read; ZEROWAKE_TRUST is" in said
    assert said.count("no variable") == 1


def test_reload_of_nothing_but_snapshots_says_what_to_name() -> None:
    config = ServeConfig(port=0)
    with pytest.raises(ConfigError, match=r"name path/app\.py:Class, or leave --reload out"):
        serving.serve([str(GOOD)], config, http.HttpIngress(config), open_store, reload=True)


def test_it_listens_then_the_base_starts_and_then_snapshots_are_opened(
    frozen: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all that is slow goes on beside the base, and early callers wait."""
    shutil.copytree(frozen("zoo.py:Add"), tmp_path / "snapshot")
    form = tmp_path / "snapshot" / "compiled" / "0123456789abcdef" / "form.json"
    form.parent.mkdir(parents=True)
    form.write_bytes(b'{"torch_free": true}')  # only looked at
    events: list[str] = []

    class Base:
        def __init__(self, *given: Any, once: bool) -> None:
            self.started = False

        def start(self, *, libtorch: bool = False) -> None:
            self.started = True
            events.append(f"a base starts, libtorch={libtorch}")

        def share(self, modules: list[str]) -> None:
            if self.started:
                events.append("it is told what to import")

    def noted(what: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            events.append(what)
            return does(*given, **named)

        return call

    config = ServeConfig(port=0)
    ingress = http.HttpIngress(config)
    monkeypatch.setattr(serving, "BaseProcess", Base)
    monkeypatch.setattr(http.HttpIngress, "open", noted("it listens", lambda self: None))
    monkeypatch.setattr(opening, "open_target", noted("a snapshot is opened", opening.open_target))
    monkeypatch.setattr(server, "run", noted("it serves", lambda *given, **named: None))
    serving.serve([str(tmp_path / "snapshot")], config, ingress, open_store)
    assert events == [
        "it listens",
        "a base starts, libtorch=True",
        "a snapshot is opened",
        "it is told what to import",
        "it serves",
    ]


def test_a_strangers_form_is_not_waited_for(tmp_path: Path) -> None:
    form = tmp_path / "compiled" / "0123456789abcdef" / "form.json"
    form.parent.mkdir(parents=True)
    os.mkfifo(form)
    assert not serving._looks_torch_free(str(tmp_path))
    form.unlink()
    form.symlink_to("/dev/zero")
    assert not serving._looks_torch_free(str(tmp_path))
    form.unlink()
    form.write_bytes(b'{"torch_free": true}')
    assert serving._looks_torch_free(str(tmp_path))
    os.truncate(form, 1 << 40)
    assert not serving._looks_torch_free(str(tmp_path))
