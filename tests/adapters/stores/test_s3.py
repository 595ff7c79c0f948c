"""Remote snapshots on a real S3 server, through a network that is slow, cuts off, resets and dies."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import BUCKET, S3, Proxy
from support import PATIENCE_S, Gateway, free_ports, is_ready, zerowake

from zerowake.adapters.stores import open_store
from zerowake.snapshot import remote
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    SnapshotNotFound,
    StoreChanged,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.remote import Remote
from zerowake.snapshot.store import open_snapshot

WEIGHTS = "weights-00001.safetensors"
MB = 1_000_000


@pytest.fixture
def uploaded(s3: S3, big: Path, tmp_path: Path) -> Remote:
    """The big snapshot in the store, under a prefix of this test's own."""
    url = f"s3://{BUCKET}/{tmp_path.name}/{big.name}"
    remote.upload(big, open_store(url))
    s3.proxy.reset()
    return Remote(url)


def fetch(wanted: Remote, cache: Path, **options: Any) -> Path:
    return remote.fetch(wanted, open_store(wanted.url), cache, **options)


def key(wanted: Remote, name: str) -> dict[str, str]:
    return {"Bucket": BUCKET, "Key": f"{wanted.url.removeprefix(f's3://{BUCKET}/')}/{name}"}


def content(folder: Path) -> dict[str, bytes]:
    """All files, but for the one that says why there is no form: that is this machine's own."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".why"
    }


def kept(cache: Path) -> list[str]:
    """What fetching has left in the cache besides its locks."""
    return [entry.name for entry in (cache / "remote").iterdir() if entry.name != "locks"]


def test_what_was_uploaded_is_fetched_once(
    s3: S3, uploaded: Remote, big: Path, tmp_path: Path
) -> None:
    stages = set()
    path = fetch(uploaded, tmp_path, progress=lambda stage, done, total: stages.add(stage))
    assert content(path) == content(big) and stages == {"fetch", "verify"}
    seen = s3.proxy.seen
    assert seen > 40 * MB
    assert fetch(uploaded, tmp_path) == path
    assert s3.proxy.seen < seen + MB, "only the manifest is read again"
    assert remote.cached(Remote(uploaded.url, open_snapshot(big).digest), tmp_path) == path
    assert remote.cached(uploaded, tmp_path) is None, "not pinned: the store may hold another now"


def test_the_manifest_comes_last(s3: S3, big: Path, tmp_path: Path) -> None:
    prefix = f"{tmp_path.name}/{big.name}/"
    present: list[set[str]] = []
    remote.upload(
        big,
        open_store(f"s3://{BUCKET}/{prefix}"),
        progress=lambda stage, done, total: present.append(set(s3.objects(prefix))),
    )
    assert "manifest.json" not in present[-2] and present[-1] == set(content(big))


def test_uploading_over_a_network_that_cuts_off(s3: S3, big: Path, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}/{big.name}"
    s3.proxy.cuts = 2  # replies that never come
    remote.upload(big, open_store(url))
    assert not s3.proxy.cuts
    assert content(fetch(Remote(url), tmp_path)) == content(big)


def test_cut_connections_cost_only_what_was_not_read(
    s3: S3, uploaded: Remote, big: Path, tmp_path: Path
) -> None:
    s3.proxy.cut_after, s3.proxy.cuts = 3 * MB, 8
    pauses: list[float] = []
    assert content(fetch(uploaded, tmp_path, pause=pauses.append)) == content(big)
    assert pauses and not s3.proxy.cuts
    assert s3.proxy.seen < 42 * MB


def test_a_slow_store(s3: S3, uploaded: Remote, big: Path, tmp_path: Path) -> None:
    s3.proxy.chunk_nbytes, s3.proxy.pause_s = 1 << 14, 0.001
    assert content(fetch(uploaded, tmp_path)) == content(big)


def test_a_store_that_dies_and_comes_back(
    s3: S3, uploaded: Remote, big: Path, tmp_path: Path
) -> None:
    def die() -> None:
        s3.proxy.dead = True

    died: list[bool] = []

    def come_back(seconds: float) -> None:
        died.append(s3.proxy.dead)
        s3.proxy.dead = False

    s3.proxy.once_at(10 * MB, die)
    path = fetch(uploaded, tmp_path, pause=come_back)
    assert True in died and content(path) == content(big)


def test_a_store_that_stays_dead(s3: S3, uploaded: Remote, big: Path, tmp_path: Path) -> None:
    s3.proxy.once_at(10 * MB, lambda: setattr(s3.proxy, "dead", True))
    # Whichever of the files that are fetched side by side finds it first.
    with pytest.raises(
        StoreInterrupted, match=r"(json|safetensors).* tried 6 times\. Check the net"
    ):
        fetch(uploaded, tmp_path, pause=lambda seconds: None)
    assert kept(tmp_path) == []
    s3.proxy.reset()
    assert content(fetch(uploaded, tmp_path)) == content(big)


def test_a_store_that_nobody_listens_at(
    uploaded: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
    pauses: list[float] = []
    with pytest.raises(StoreInterrupted, match="Could not connect to the endpoint"):
        fetch(uploaded, tmp_path, pause=pauses.append)
    assert len(pauses) == 5


def test_an_object_that_is_replaced_meanwhile(s3: S3, uploaded: Remote, tmp_path: Path) -> None:
    other = b"\1" * s3.direct.head_object(**key(uploaded, WEIGHTS))["ContentLength"]
    s3.proxy.once_at(2 * MB, lambda: s3.direct.put_object(**key(uploaded, WEIGHTS), Body=other))
    s3.proxy.cut_after, s3.proxy.cuts = 2 * MB, 20  # so that some is asked for after that
    with pytest.raises(StoreChanged, match=f"{WEIGHTS} was replaced while it was read"):
        fetch(uploaded, tmp_path, pause=lambda seconds: None)
    assert kept(tmp_path) == []


def test_an_object_with_other_bytes(s3: S3, uploaded: Remote, big: Path, tmp_path: Path) -> None:
    data = bytearray((big / WEIGHTS).read_bytes())
    data[30 * MB] ^= 1
    s3.direct.put_object(**key(uploaded, WEIGHTS), Body=bytes(data))
    with pytest.raises(DamagedSnapshot, match=f"{uploaded.url}: block 7 of {WEIGHTS} is damaged"):
        fetch(uploaded, tmp_path)
    assert kept(tmp_path) == []


def test_an_object_that_is_missing_or_shorter(s3: S3, uploaded: Remote, tmp_path: Path) -> None:
    s3.direct.put_object(**key(uploaded, "proof.json"), Body=b"{}")
    with pytest.raises(DamagedSnapshot, match=r"proof.json has 2 bytes, the manifest says"):
        fetch(uploaded, tmp_path)
    s3.direct.delete_object(**key(uploaded, "proof.json"))
    with pytest.raises(
        DamagedSnapshot, match=r"lacks a file that its manifest names: .*proof.json"
    ):
        fetch(uploaded, tmp_path)
    s3.direct.delete_object(**key(uploaded, "manifest.json"))
    with pytest.raises(SnapshotNotFound, match=r"no manifest.json"):
        fetch(uploaded, tmp_path)
    assert kept(tmp_path) == []


def test_another_snapshot_than_the_pinned_one(uploaded: Remote, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds sha256:.*, wanted sha256:0000"):
        fetch(Remote(uploaded.url, "sha256:" + "0" * 64), tmp_path)


def test_without_the_right(
    uploaded: Remote, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    with pytest.raises(StoreDenied, match=r"access denied .* check the credentials"):
        fetch(uploaded, tmp_path)
    with pytest.raises(StoreDenied, match="s3:PutObject"):
        remote.upload(big, open_store(uploaded.url))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreDenied, match="set AWS_PROFILE"):
        fetch(uploaded, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL_S3", "nonsense"), ("AWS_PROFILE", "nobody")]
)
def test_settings_that_make_no_client(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=rf"^s3://b/x: .*{value}.*; check boto3's settings"):
        open_store("s3://b/x")


def command(*arguments: object, cache: Path, **options: Any) -> "subprocess.Popen[str]":
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "zerowake", *map(str, arguments)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_two_processes_fetch_it_once(s3: S3, uploaded: Remote, tmp_path: Path) -> None:
    second = Proxy(s3.proxy.port)
    processes: list[subprocess.Popen[str]] = []
    said: list[str] = []

    def start_second() -> None:  # while the first has 10 MB, and gets no more until the other waits
        env = {"AWS_ENDPOINT_URL_S3": second.url}
        processes.append(command("inspect", uploaded.url, cache=tmp_path, env=env))
        stderr = processes[-1].stderr
        assert stderr is not None
        said.append(stderr.readline())

    s3.proxy.once_at(10 * MB, start_second)
    first = command("inspect", uploaded.url, cache=tmp_path)
    shown, errors = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, errors
    assert "is being fetched; waiting for it" in said[0]
    assert processes[0].communicate(timeout=PATIENCE_S)[0] == shown
    assert second.seen < MB < s3.proxy.seen


def test_a_process_that_is_killed(s3: S3, uploaded: Remote, big: Path, tmp_path: Path) -> None:
    s3.proxy.once_at(10 * MB, lambda: process.kill())
    process = command("inspect", uploaded.url, cache=tmp_path)
    process.communicate(timeout=PATIENCE_S)
    (left,) = kept(tmp_path / "zerowake")
    assert left.startswith(".zerowake-staging-")
    path = fetch(uploaded, tmp_path / "zerowake")
    assert content(path) == content(big) and kept(tmp_path / "zerowake") == [path.name]


def test_a_disk_that_takes_no_more(s3: S3, uploaded: Remote, tmp_path: Path) -> None:
    most = 8 * MB
    process = command(
        "inspect",
        uploaded.url,
        cache=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "cannot be kept in" in errors and "set XDG_CACHE_HOME" in errors
    assert kept(tmp_path / "zerowake") == []


def test_frozen_into_a_store_and_served_elsewhere(
    s3: S3, tmp_path: Path, launch: Callable[..., Gateway], state: Path
) -> None:
    out = f"s3://{BUCKET}/{tmp_path.name}"
    run = zerowake("freeze", Path(__file__).parents[2] / "apps" / "tiny.py:Tiny", "--out", out)
    assert run.returncode == 0, run.stderr
    url = run.stdout.splitlines()[-1]
    assert url.startswith(f"{out}/tiny-")
    assert list((state / "cache" / "zerowake" / "uploads").iterdir()) == []
    names = s3.objects(f"{url.removeprefix(f's3://{BUCKET}/')}/")
    assert sum(name.startswith("compiled/") and name.endswith("form.json") for name in names) == 1

    elsewhere = {"ZEROWAKE_STATE": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path)}
    refused = zerowake("serve", url, env={**os.environ, **elsewhere})
    assert refused.returncode == 1 and "--trust sha256:" in refused.stderr
    digest = refused.stderr.partition("--trust ")[2].split()[0].rstrip(".")
    gateway = launch(f"{url}#{digest}", "--trust", digest, env=elsewhere)
    assert len(gateway.call("tiny", [[1.0, 2.0, 3.0]]).json()[0]) == 40
    reason = gateway.function("tiny")["reason"]
    assert "was not compiled by this user" in reason  # so it is not used, and its digest is named
    assert f"compile it here: zerowake compile {url}#{digest}" in reason
    form = re.findall("--trust (sha256:[0-9a-f]{64})", reason)[0]
    gateway.stop()

    container = {
        **os.environ,
        **elsewhere,
        "PORT": str(free_ports(1)[0]),
        "ZEROWAKE_SNAPSHOT": url,
        "ZEROWAKE_TRUST": f"{digest},{form}",
    }
    process = command("run", cache=tmp_path, env=container)
    running = Gateway(process, f"http://127.0.0.1:{container['PORT']}")
    try:
        running.until(lambda: is_ready(running))
        assert len(running.call("tiny", [[1.0, 2.0, 3.0]]).json()[0]) == 40
        metrics = running.request("GET", "/metrics").body
        assert b'form="compiled"' in metrics
    finally:
        running.stop()
