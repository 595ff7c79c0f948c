"""A process that serves a function of functions-framework: that package's own server, or ours."""

import http.client
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support import PATIENCE_S

OURS = ("server-timing", "zerowake-invocation", "zerowake-depth")
SERVERS = ("date", "server", "connection", "transfer-encoding")  # theirs is another server


class Told(NamedTuple):
    """status, headers in their order within a name, body; output: what the function wrote down."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    output: Any

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A process that serves one function from a folder of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.decode(errors="replace").rstrip("\n"))

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not (value := what()):
            said = "\n".join(self.log)
            assert self.process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.05)
        return value

    def listens(self) -> bool:
        try:
            self.raw("GET", "/robots.txt")
            return True
        except OSError:
            return False

    def raw(
        self,
        method: str,
        path: str,
        body: "bytes | Iterator[bytes] | None" = None,
        headers: dict[str, str] | None = None,
    ) -> Told:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request(method, path, body, {"Host": "functions.test", **(headers or {})})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        pairs = [(name.lower(), value) for name, value in reply.getheaders()]
        return Told(reply.status, pairs, data, None)

    def exchange(self, method: str, path: str, body: Any = None, headers: Any = None) -> Told:
        """The reply without what is a server's own, and what the function has written down."""
        output = self.folder / "function_output.json"
        output.unlink(missing_ok=True)
        told = self.raw(method, path, body, headers)
        kept = [pair for pair in told.headers if pair[0] not in (*OURS, *SERVERS)]
        kept.sort(key=lambda pair: pair[0])
        found = json.loads(output.read_text()) if output.exists() else None
        return Told(told.status, kept, told.body, found)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
