"""``zerowake.runtime.gateway.reloading``: sources that are watched, whatever happens to them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripted import GOOD
from support import function_info

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.forms import Chosen, FormName
from zerowake.runtime.gateway import reloading
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
            reloading.keep_fresh([f"{source}:App"], ServeConfig(), pool)  # type: ignore[arg-type]
        )
        await asyncio.wait_for(pool.served.wait(), 30)
        watching.cancel()

    monkeypatch.setattr(reloading, "awatch", awatch)
    monkeypatch.setattr(reloading, "open_target", open_again)
    monkeypatch.setattr(reloading, "WATCH_AGAIN_S", 0.0)
    asyncio.run(watch())
    for said in ("cannot be watched: no inotify", "stays: it is gone", "stays: a surprise"):
        assert said in caplog.text
