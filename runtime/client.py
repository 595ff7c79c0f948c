"""The command line's HTTP client of a gateway. Standard library only: it starts in milliseconds."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from zerowake.runtime.errors import ConfigError, RemoteError, UnknownFunction

CHUNK_NBYTES = 1 << 16
SSE = "text/event-stream"


class Client:
    """Raises RemoteError with what the gateway says, ConfigError when there is none."""

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        # Proxies are for the outside; a gateway is asked directly.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def invoke(self, name: str, body: bytes) -> tuple[str, Iterator[bytes]]:
        """The reply's content type, and its body as it arrives; of a stream each item as a line.

        A stream that ends in an error raises RemoteError after its items.
        """
        reply = self._open("POST", f"/invoke/{urllib.parse.quote(name)}", body, f"{SSE}, */*")
        content_type = reply.headers.get("content-type", "")
        if content_type.startswith(SSE):
            return content_type, _items(_chunks(reply, reply.readline, name))
        return content_type, _chunks(reply, partial(reply.read1, CHUNK_NBYTES), name)

    def functions(self) -> list[dict[str, Any]]:
        with self._open("GET", "/functions") as reply:
            functions: list[dict[str, Any]] = json.load(reply)
            return functions

    def sleep(self, name: str, depth: str) -> None:
        body = json.dumps({"depth": depth}).encode()
        self._open("POST", f"/functions/{urllib.parse.quote(name)}/sleep", body).close()

    def wake(self, name: str) -> None:
        self._open("POST", f"/functions/{urllib.parse.quote(name)}/wake", b"{}").close()

    def _open(self, method: str, path: str, body: bytes | None = None, accept: str = "*/*") -> Any:
        headers = {"Content-Type": "application/json", "Accept": accept}
        try:
            request = urllib.request.Request(self._url + path, body, headers, method=method)
            return self._opener.open(request)
        except urllib.error.HTTPError as error:
            problem = _problem(error)
            ordered = path.startswith("/functions") and error.code == 404
            if ordered and problem["code"] != UnknownFunction.code:  # there are no such routes
                problem["detail"] += "; only `zerowake serve` lists functions and takes orders"
            raise RemoteError(problem) from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"no gateway answers at {self._url} ({reason}); start one with zerowake serve, or "
                "name it with --url"
            ) from error


def _checked(url: str) -> str:
    """``url``, with http:// where no scheme is given. Raises ConfigError when it is none."""
    full = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(full)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        good = False
    if not good or not full.isprintable() or " " in full:
        raise ConfigError(f"--url {url!r} is no URL of a gateway; write http://HOST:PORT")
    return full


def _chunks(
    reply: http.client.HTTPResponse, read: Callable[[], bytes], name: str
) -> Iterator[bytes]:
    with reply:
        try:
            while chunk := read():
                yield chunk
        except (http.client.HTTPException, OSError) as error:
            raise ConfigError(
                f"the reply of {name} broke off; the gateway's log says why"
            ) from error


def _items(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each event of an event stream; the gateway writes one line for each."""
    failed = False
    for line in lines:
        field, _, value = line.partition(b": ")
        if field == b"event":
            failed = value.strip() == b"error"
        elif field == b"data" and failed:
            raise RemoteError(_told(json.loads(value)))
        elif field == b"data":
            yield value


def _told(problem: dict[str, Any]) -> dict[str, Any]:
    """``problem`` with a detail that has its status, its code and each place in the body."""
    detail = problem["detail"]
    for place in problem.get("errors", ()):
        detail += f"\n  {place['field'] or '(body)'}: {place['message']}"
    return {**problem, "detail": f"{problem['status']} {problem['code']}: {detail}"}


def _problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    text = error.read()
    try:
        return _told(json.loads(text))
    except (ValueError, KeyError, TypeError):
        return {"status": error.code, "code": "http", "detail": f"{error.code} {error.reason}"}
