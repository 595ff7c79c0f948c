"""Snapshots on a web server, for reading; of the standard library, so nothing has to be installed.

A server that knows ranges is read in parts, any other in one go; parts are of one version where
the server tells them apart (ETag or Last-Modified).
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from zerowake.snapshot.errors import (
    NotInStore,
    StoreChanged,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.storage import CHUNK_NBYTES, Found

TIMEOUT_S = 30.0  # without a byte


class HttpStore:
    """The files below ``url``. Proxies and certificates are found as urllib finds them."""

    read_only = (
        "web servers are only read from; freeze into a folder and copy it there, or name an object "
        "store (s3://, gs://, az://)"
    )

    def __init__(self, url: str) -> None:
        if "?" in url:
            raise StoreError(
                f"{url.partition('?')[0]}?... has a query, which names one object; wanted the address "
                "of a folder"
            )
        self._url = url.rstrip("/")

    def stat(self, name: str) -> Found:
        with self._errors(name), self._open("HEAD", name) as reply:
            nbytes = reply.headers.get("Content-Length")
            if nbytes is None:
                raise StoreError(f"{self._at(name)}: the server does not say how long it is")
            version = _version(reply.headers)
            return Found(int(nbytes), version, reply.headers.get("Accept-Ranges") == "bytes")

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{start + nbytes - 1}"} if found.ranged else {}
        with self._errors(name), self._open("GET", name, headers) as reply:
            if _version(reply.headers) != found.version:
                raise StoreChanged(f"{self._at(name)} was replaced while it was read; start again")
            skip = 0 if reply.status == 206 else start  # the whole file, whatever was asked for
            while skip and (data := reply.read(min(skip, CHUNK_NBYTES))):
                skip -= len(data)
            while data := reply.read1(min(nbytes, CHUNK_NBYTES)):
                yield data
                nbytes -= len(data)

    def write(self, name: str, source: Path) -> None:
        raise StoreError(f"{self._at(name)}: {self.read_only}")

    def _at(self, name: str) -> str:
        return f"{self._url}/{quote(name)}"

    def _open(
        self, method: str, name: str, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        said = {"Accept-Encoding": "identity", **(headers or {})}
        request = urllib.request.Request(self._at(name), headers=said, method=method)
        reply: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return reply

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """urllib's errors as ours."""
        url = self._at(name)
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise NotInStore(f"{url} is not there ({error.code})") from error
            if error.code in (401, 403, 407):
                raise StoreDenied(
                    f"{url}: {error}; the server must let this machine read"
                ) from error
            if error.code in (412, 416):
                raise StoreChanged(f"{url} was replaced while it was read; start again") from error
            if error.code >= 500 or error.code in (408, 429):
                raise StoreInterrupted(f"{url}: {error}") from error
            raise StoreError(f"{url}: {error}") from error
        except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
            raise StoreInterrupted(f"{url}: {error}") from error


def _version(headers: http.client.HTTPMessage) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""
