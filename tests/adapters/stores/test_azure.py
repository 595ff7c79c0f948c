"""Remote snapshots on Azure's own emulator, Azurite, through fsspec and adlfs.

adlfs brings Azure's libraries with it, so it has an environment of its own, and a process in it.
"""

import base64
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from apart import MOVE, Act, Ran, nothing, run_apart
from parts import npm, venv
from stores import Proxy, until
from support import free_ports

from zerowake.snapshot.store import is_whole

pytestmark = pytest.mark.long
PYTHON = ("adlfs==2026.8.0", "azure-storage-blob==12.31.1")
ACCOUNT, CONTAINER = "zerowake", "snapshots"
KEY, GUESSED = (base64.b64encode(word * 4).decode() for word in (b"the real", b"guessed!"))
WEIGHTS = "weights-00001.safetensors"
MB = 1_000_000

CREATE = """
    import sys
    from azure.storage.blob import BlobServiceClient

    BlobServiceClient.from_connection_string(sys.argv[1]).create_container(sys.argv[2])
"""
REPLACE = """
    import sys
    from azure.storage.blob import BlobServiceClient

    connection, container, name, nbytes = sys.argv[1:]
    blob = BlobServiceClient.from_connection_string(connection).get_blob_client(container, name)
    blob.upload_blob(bytes(int(nbytes)), overwrite=True)
"""


@dataclass
class Azure:
    """Azurite behind a proxy. direct: its address past the proxy."""

    proxy: Proxy
    direct: str


def connection(url: str, key: str = KEY) -> str:
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
        f"BlobEndpoint={url}/{ACCOUNT};"
    )


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    (port,) = free_ports(1)
    azure = Azure(Proxy(port), f"http://127.0.0.1:{port}")
    command = [*npm("azurite@3.35.0", "dist/src/blob/main.js"), "--blobPort", str(port)]
    command += ["--location", str(tmp_path_factory.mktemp("azurite")), "--silent"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
    )
    try:
        until(lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError)
        made = run_apart(venv(*PYTHON), CREATE, connection(azure.direct), CONTAINER, env={})
        assert made.returncode == 0, made.stderr
        yield azure
    finally:
        process.kill()
        process.wait()


def run(url: str, *arguments: object, on_pause: Act = nothing, key: str = KEY) -> Ran:
    env = {"AZURE_STORAGE_CONNECTION_STRING": connection(url, key)}
    return run_apart(venv(*PYTHON), MOVE, *arguments, env=env, on_pause=on_pause)


@pytest.fixture
def url(azure: Azure, big: Path, tmp_path: Path) -> str:
    azure.proxy.reset()
    url = f"az://{CONTAINER}/{tmp_path.name}/{big.name}"
    uploaded = run(azure.direct, "upload", url, big)
    assert uploaded.returncode == 0, uploaded.stderr
    return url


def test_uploaded_and_fetched_over_a_network_that_cuts_off(
    azure: Azure, url: str, big: Path, tmp_path: Path
) -> None:
    azure.proxy.cut_after, azure.proxy.cuts, azure.proxy.pause_s = 3 * MB, 4, 0.001
    fetched = run(azure.proxy.url, "fetch", url, tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    path = Path(fetched.stdout.strip())
    assert is_whole(path) and not azure.proxy.cuts
    assert (path / WEIGHTS).read_bytes() == (big / WEIGHTS).read_bytes()


def test_a_store_that_dies_and_comes_back(azure: Azure, url: str, tmp_path: Path) -> None:
    died: list[bool] = []

    def come_back() -> None:
        died.append(azure.proxy.dead)
        azure.proxy.dead = False

    azure.proxy.once_at(10 * MB, lambda: setattr(azure.proxy, "dead", True))
    fetched = run(azure.proxy.url, "fetch", url, tmp_path, on_pause=come_back)
    assert fetched.returncode == 0, fetched.stderr
    assert True in died and is_whole(Path(fetched.stdout.strip()))


def test_a_store_that_stays_dead(azure: Azure, url: str, tmp_path: Path) -> None:
    azure.proxy.once_at(10 * MB, lambda: setattr(azure.proxy, "dead", True))
    fetched = run(azure.proxy.url, "fetch", url, tmp_path)
    assert re.search(r"StoreInterrupted: .* tried 6 times\. Check the net", fetched.stderr)
    assert [entry.name for entry in (tmp_path / "remote").iterdir()] == ["locks"]


def test_an_object_that_is_replaced_meanwhile(
    azure: Azure, url: str, big: Path, tmp_path: Path
) -> None:
    def replace() -> None:
        name = f"{url.removeprefix(f'az://{CONTAINER}/')}/{WEIGHTS}"
        nbytes = (big / WEIGHTS).stat().st_size
        given = (connection(azure.direct), CONTAINER, name, nbytes)
        replaced = run_apart(venv(*PYTHON), REPLACE, *given, env={})
        assert replaced.returncode == 0, replaced.stderr

    azure.proxy.once_at(2 * MB, replace)
    azure.proxy.cut_after, azure.proxy.cuts = 3 * MB, 8  # so that some is asked for after that
    fetched = run(azure.proxy.url, "fetch", url, tmp_path)
    assert "StoreChanged" in fetched.stderr
    assert [entry.name for entry in (tmp_path / "remote").iterdir()] == ["locks"]


def test_what_is_not_there_and_without_the_right(azure: Azure, tmp_path: Path) -> None:
    wanted = f"az://{CONTAINER}/nothing"
    fetched = run(azure.direct, "fetch", wanted, tmp_path)
    assert f"SnapshotNotFound: there is no snapshot at {wanted}" in fetched.stderr
    fetched = run(azure.direct, "fetch", wanted, tmp_path, key=GUESSED)
    assert "StoreDenied" in fetched.stderr and fetched.pauses == 0
