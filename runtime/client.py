"""The command line's HTTP client of a gateway. Standard library only: it starts in milliseconds."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from zerowake.runtime.errors import ConfigError, RemoteError

CHUNK_NBYTES = 1 << 16


class Client:
    """Raises RemoteError with what the gateway says, ConfigError when there is none."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # Proxies are for the outside; a gateway is asked directly.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def invoke(self, name: str, body: bytes) -> tuple[str, Iterator[bytes]]:
        """The reply's content type, and its body as it arrives."""
        reply = self._open("POST", f"/invoke/{urllib.parse.quote(name)}", body)
        return reply.headers.get("content-type", ""), _chunks(reply, name)

    def functions(self) -> list[dict[str, Any]]:
        with self._open("GET", "/functions") as reply:
            functions: list[dict[str, Any]] = json.load(reply)
            return functions

    def sleep(self, name: str, depth: str) -> None:
        body = json.dumps({"depth": depth}).encode()
        self._open("POST", f"/functions/{urllib.parse.quote(name)}/sleep", body).close()

    def wake(self, name: str) -> None:
        self._open("POST", f"/functions/{urllib.parse.quote(name)}/wake", b"{}").close()

    def _open(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self._url + path, body, headers, method=method)
            return self._opener.open(request)
        except urllib.error.HTTPError as error:
            raise RemoteError(_problem(error)) from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"no gateway answers at {self._url} ({reason}); start one with zerowake serve, or "
                "name it with --url"
            ) from error


def _chunks(reply: http.client.HTTPResponse, name: str) -> Iterator[bytes]:
    with reply:
        try:
            while chunk := reply.read1(CHUNK_NBYTES):
                yield chunk
        except http.client.HTTPException as error:
            raise ConfigError(
                f"the stream of {name} broke off; the gateway's log says why, or ask for it as "
                "text/event-stream"
            ) from error


def _problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    text = error.read()
    try:
        problem = json.loads(text)
        detail = problem["detail"]
        for place in problem.get("errors", ()):
            detail += f"\n  {place['field'] or '(body)'}: {place['message']}"
        return {**problem, "detail": f"{problem['status']} {problem['code']}: {detail}"}
    except (ValueError, KeyError, TypeError):
        return {"status": error.code, "code": "http", "detail": f"{error.code} {error.reason}"}
