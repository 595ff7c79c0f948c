"""Remote snapshots on web servers: one that knows ranges and one that does not, both cut off."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from stores import Proxy

from zerowake.adapters.stores import open_store
from zerowake.snapshot import remote
from zerowake.snapshot.errors import (
    SnapshotNotFound,
    StoreChanged,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.remote import Remote

WEIGHTS = "weights-00001.safetensors"
MB = 1_000_000


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that went away is no news here."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own: whole files with Last-Modified."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


class Ranged(Quiet):
    """Ranges and entity tags, as nginx has them."""

    def send_head(self) -> None:  # type: ignore[override]
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(HTTPStatus.NOT_FOUND)
        data = path.read_bytes()
        start, end = 0, len(data)
        asked = self.headers.get("Range")
        if asked is not None:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) + 1
        self.send_response(HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(end - start))
        if asked is not None:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:end])
        return None


class Locked(Quiet):
    def send_head(self) -> None:  # type: ignore[override]
        self.send_error(HTTPStatus.UNAUTHORIZED)


@pytest.fixture
def site(big: Path, tmp_path: Path) -> Path:
    """A copy of the big snapshot, which a test may change."""
    folder = tmp_path / "site" / big.name
    folder.mkdir(parents=True)
    for file in big.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(big)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return folder


@pytest.fixture(params=[Quiet, Ranged])
def web(request: pytest.FixtureRequest, site: Path) -> Iterator[Proxy]:
    handler = functools.partial(request.param, directory=str(site.parent))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Proxy(server.server_address[1])
        server.shutdown()


def fetch(web: Proxy, name: str, cache: Path, pauses: list[float] | None = None) -> Path:
    url = f"{web.url}/{name}"
    pause = (lambda seconds: None) if pauses is None else pauses.append
    return remote.fetch(Remote(url), open_store(url), cache, pause=pause)


def test_it_is_fetched_whole(web: Proxy, site: Path, tmp_path: Path) -> None:
    path = fetch(web, site.name, tmp_path)
    for file in site.rglob("*"):
        if file.is_file() and file.suffix != ".why":  # which is this machine's own
            assert (path / file.relative_to(site)).read_bytes() == file.read_bytes()
    assert web.seen < 42 * MB


def test_what_is_cut_off_is_asked_for_again(web: Proxy, site: Path, tmp_path: Path) -> None:
    web.cut_after, web.cuts = 6 * MB, 3
    pauses: list[float] = []
    path = fetch(web, site.name, tmp_path, pauses)
    assert (path / WEIGHTS).read_bytes() == (site / WEIGHTS).read_bytes()
    assert len(pauses) == 3 and not web.cuts


def test_a_server_that_dies(web: Proxy, site: Path, tmp_path: Path) -> None:
    web.once_at(10 * MB, lambda: setattr(web, "dead", True))
    with pytest.raises(StoreInterrupted, match="tried 6 times"):
        fetch(web, site.name, tmp_path)
    assert [entry.name for entry in (tmp_path / "remote").iterdir()] == ["locks"]


def test_a_file_that_is_replaced_meanwhile(web: Proxy, site: Path, tmp_path: Path) -> None:
    def replace() -> None:
        data = bytes(len((site / WEIGHTS).read_bytes()))
        other = site / "other"  # the server may be reading the old one
        other.write_bytes(data)
        os.utime(other, (2_000_000_000, 2_000_000_000))
        other.rename(site / WEIGHTS)

    web.once_at(2 * MB, replace)
    web.cut_after, web.cuts = 2 * MB, 1
    with pytest.raises(StoreChanged, match=f"{WEIGHTS} was replaced while it was read"):
        fetch(web, site.name, tmp_path)


def test_what_is_not_there(web: Proxy, tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound, match=r"no manifest\.json"):
        fetch(web, "nothing", tmp_path)


def test_a_web_server_is_only_read_from(big: Path) -> None:
    with pytest.raises(StoreError, match="web servers are only read from"):
        remote.upload(big, open_store("http://127.0.0.1:9/x"))


def test_without_the_right(tmp_path: Path) -> None:
    with Server(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/big"
        with pytest.raises(StoreDenied, match="Unauthorized"):
            remote.fetch(Remote(url), open_store(url), tmp_path)
        server.shutdown()
