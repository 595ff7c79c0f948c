"""One blocking HTTP client on loopback: first answers, and calls on a connection kept open.

Knows nothing of who serves.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
POLL_S = 0.010
_NOT_YET = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Right = Callable[[Reply], bool]


class Connection:
    """A keep-alive connection; `ensure_open` renews it when the server has closed it."""

    def __init__(self, port: int, timeout_s: float = 120.0) -> None:
        self._http = http.client.HTTPConnection(HOST, port, timeout=timeout_s)

    def ensure_open(self) -> None:
        if self._http.sock is not None:
            self._http.sock.setblocking(False)
            try:
                closed = not self._http.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                closed = False
            except OSError:
                closed = True
            if closed:
                self._http.close()
            else:
                self._http.sock.settimeout(self._http.timeout)
        if self._http.sock is None:
            self._http.connect()

    def send(self, method: str, path: str, value: Any = None) -> Reply:
        body = None if value is None else json.dumps(value).encode()
        self._http.request(method, path, body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        headers = {name.lower(): text for name, text in answer.getheaders()}
        return Reply(answer.status, headers, answer.read())

    def close(self) -> None:
        self._http.close()


def first_answer(
    port: int,
    path: str,
    value: Any,
    right: Right,
    alive: Callable[[], bool],
    limit_s: float = 120.0,
    poll_s: float = POLL_S,
) -> Reply:
    """Polls with a fresh connection each time until an answer is right.

    Raises RuntimeError when the server has ended, TimeoutError after `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while True:
        connection = Connection(port)
        try:
            reply = connection.send("POST", path, value)
            if right(reply):
                return reply
            seen = f"status {reply.status}: {reply.body[:200]!r}"
        except _NOT_YET as error:
            seen = repr(error)
        finally:
            connection.close()
        if not alive():
            raise RuntimeError(f"the server ended before its first right answer; last: {seen}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no right answer in {limit_s:.0f} s; last: {seen}")
        time.sleep(poll_s)
