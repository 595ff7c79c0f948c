"""``zerowake.runtime.remote.Localizing``: a snapshot that another process brings here."""

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zerowake.runtime import logs
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.progress import ProgressBar
from zerowake.runtime.remote import Localizing, check_place
from zerowake.snapshot.errors import NotInStore, SnapshotNotFound, StoreDenied, StoreError
from zerowake.snapshot.storage import Found, Store

URL = "test://store/add"


@pytest.fixture(autouse=True)
def logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as it was afterwards."""
    found = logging.getLogger("zerowake")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(found, name, getattr(found, name))


class Folder:
    """Objects in a folder."""

    read_only = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stat(self, name: str) -> Found:
        try:
            return Found((self._folder / name).stat().st_size, "v1")
        except OSError as error:
            raise NotInStore(name) from error

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        yield (self._folder / name).read_bytes()[start : start + nbytes]

    def write(self, name: str, source: Path) -> None:
        shutil.copyfile(source, self._folder / name)


class ReadOnly(Folder):
    read_only = "it is only read from"


class WriteOnly(Folder):
    """As S3 has it for who may not list: what is not there is denied."""

    def stat(self, name: str) -> Found:
        raise StoreDenied("access denied")


def test_where_a_snapshot_is_to_be_uploaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar() as bar:
        check_place(URL, lambda url: Folder(tmp_path), bar)
        assert capfd.readouterr().err == ""
        check_place(URL, lambda url: WriteOnly(tmp_path), bar)
        assert "note: access denied; whether it can be written" in capfd.readouterr().err
        with pytest.raises(StoreError, match=rf"^--out {URL}: it is only read from$"):
            check_place(URL, lambda url: ReadOnly(tmp_path), bar)
        (tmp_path / "manifest.json").touch()
        with pytest.raises(
            ConfigError, match=r"is a snapshot; name the folder above it, test://store$"
        ):
            check_place(URL, lambda url: Folder(tmp_path), bar)


def localizing(open_store: Callable[[str], Store], cache: Path) -> Localizing:
    return Localizing(URL, open_store, {"XDG_CACHE_HOME": str(cache)})


def test_it_is_brought_here_and_what_that_takes_is_not(
    frozen: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def open_store(url: str) -> Store:
        assert url == URL
        sys.modules["a_client_of_50_mb"] = sys
        return Folder(frozen("zoo.py:Add"))

    logs.configure("text")
    path = Path(asyncio.run(localizing(open_store, tmp_path).path()))
    assert asyncio.run(localizing(open_store, tmp_path).path()) == str(path)
    fetching, fetched = capfd.readouterr().err.splitlines()  # once: then it is there
    assert re.search(rf" INFO    fetching 0\.0 MB from {URL}$", fetching)
    assert re.search(rf" INFO    fetched {URL} in \d+\.\d s$", fetched)
    assert path.is_relative_to(tmp_path) and (path / "manifest.json").is_file()
    assert "a_client_of_50_mb" not in sys.modules


def test_what_is_wrong_is_told_as_if_it_had_happened_here(tmp_path: Path) -> None:
    def denied(url: str) -> Store:
        raise StoreDenied(f"{url}: access denied")

    with pytest.raises(StoreDenied, match=r"^test://store/add: access denied$"):
        asyncio.run(localizing(denied, tmp_path).path())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SnapshotNotFound):
        asyncio.run(localizing(lambda url: Folder(tmp_path / "empty"), tmp_path).path())


@pytest.mark.parametrize(
    "end, said",
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
        (lambda: sys.exit(3), "exit code 1"),
    ],
)
def test_its_end_is_an_error(tmp_path: Path, end: Callable[[], None], said: str) -> None:
    def open_store(url: str) -> Store:
        end()
        raise AssertionError

    with pytest.raises(StoreError, match=f"the process that fetched it ended: {said}"):
        asyncio.run(localizing(open_store, tmp_path).path())


def test_a_stop_meanwhile_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    fetch = localizing(lambda url: time.sleep(3600), tmp_path)  # type: ignore[arg-type, return-value]

    async def stop() -> None:
        task = asyncio.create_task(fetch.path())
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(stop())
    finally:
        os.kill(fetch._pid, signal.SIGKILL)
        os.waitpid(fetch._pid, 0)
    assert f"told to stop while {URL} was fetched" in capfd.readouterr().err
