"""``zerowake.runtime.gateway.serve``: what is refused before it listens, and watching sources."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripted import GOOD
from support import function_info

from zerowake.adapters.stores import open_store
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import Chosen, FormName
from zerowake.runtime.gateway import http, opening
from zerowake.runtime.gateway import serve as serving
from zerowake.runtime.gateway.opening import Opened
from zerowake.snapshot.store import open_snapshot


class FakePool:
    def __init__(self) -> None:
        self.served = asyncio.Event()

    def digest(self, name: str) -> str:
        return "sha256:old"

    def serve(self, opened: Opened) -> None:
        self.served.set()


def test_no_failure_of_one_round_ends_the_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "app.py"
    source.touch()
    rounds: list[Any] = [FileNotFoundError("it is gone"), RuntimeError("a surprise"), object()]
    watches = 0

    async def awatch(root: Path, watch_filter: Any) -> AsyncIterator[set[Any]]:
        nonlocal watches
        watches += 1
        if watches == 1:
            raise OSError("no inotify watch is left")
        source.unlink(missing_ok=True)
        assert watch_filter("deleted", str(source))  # what is gone is still the source
        source.touch()
        for _ in list(rounds):
            yield set()
        await asyncio.Event().wait()

    def open_again(text: str, config: ServeConfig, *, reload: bool) -> Opened:
        if isinstance(found := rounds.pop(0), Exception):
            raise found
        return Opened(open_snapshot(GOOD), function_info("good"), Chosen(FormName.PLAIN))

    async def watch() -> None:
        pool = FakePool()
        watching = asyncio.create_task(
            serving._reload([f"{source}:App"], ServeConfig(), pool)  # type: ignore[arg-type]
        )
        await asyncio.wait_for(pool.served.wait(), 30)
        watching.cancel()

    monkeypatch.setattr("watchfiles.awatch", awatch)
    monkeypatch.setattr(opening, "open_target", open_again)
    monkeypatch.setattr(serving, "WATCH_AGAIN_S", 0.0)
    asyncio.run(watch())
    for said in ("cannot be watched: no inotify", "stays: it is gone", "stays: a surprise"):
        assert said in caplog.text


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


def test_reload_of_nothing_but_snapshots_says_what_to_name() -> None:
    config = ServeConfig(port=0)
    with pytest.raises(ConfigError, match=r"name path/app\.py:Class, or leave --reload out"):
        serving.serve([str(GOOD)], config, http.HttpIngress(config), open_store, reload=True)


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
