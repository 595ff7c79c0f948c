"""Snapshots in any other store that fsspec has a file system for: Google Cloud Storage, Azure, SFTP.

They do not read at a version; digests tell when an object was replaced.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from zerowake.snapshot.errors import (
    NotInStore,
    StoreChanged,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.storage import Found

_VERSIONS = ("generation", "etag", "ETag", "mtime", "last_modified", "updated", "created")
# Not reached, reset or timed out; ended early. By name, for each file system has the errors of its
# own client: Python's, aiohttp's, requests', google-auth's and azure-core's.
_BROKEN = frozenset(
    {
        "ConnectionError",
        "TimeoutError",
        "Timeout",
        "ClientConnectionError",
        "ClientPayloadError",
        "ChunkedEncodingError",
        "TransportError",
        "ServiceRequestError",
        "ServiceResponseError",
        "IncompleteReadError",
    }
)


class FsspecStore:
    """The files of ``system`` below ``root``.

    uploader: makes the file system for uploads, when one is made.
    """

    read_only = ""

    def __init__(self, system: Any, root: str, url: str, uploader: Callable[[], Any]) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._url = url
        self._uploader = functools.cache(uploader)

    @classmethod
    def open(cls, url: str) -> "FsspecStore":
        try:
            system, root = _system(url)
        except (ImportError, ValueError) as error:  # its own words name the package, or the schemes
            raise StoreError(f"{url}: {error}; pip install what its scheme needs") from error
        except Exception as error:
            raise StoreError(f"{url} cannot be opened: {error}") from error
        # How often a read is tried is decided in ``storage``; the parts of an upload are its client's.
        _try_once(system)
        return cls(system, root, url, lambda: _system(url)[0])

    def stat(self, name: str) -> Found:
        with self._errors(name):
            info = self._system.info(f"{self._root}/{name}")
            if info["type"] != "file" or info["size"] is None:
                raise NotInStore(f"{self._url}/{name} is no file")
            version = next((info[key] for key in _VERSIONS if info.get(key)), "")
            return Found(int(info["size"]), str(version))

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        with self._errors(name):
            yield self._system.cat_file(f"{self._root}/{name}", start=start, end=start + nbytes)

    def write(self, name: str, source: Path) -> None:
        with self._errors(name):
            self._uploader().put_file(str(source), f"{self._root}/{name}")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        url = f"{self._url}/{name}"
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise NotInStore(f"{url} is not there") from error
        except Exception as error:  # each file system has its own
            said = f"{url}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            status = _status(error)
            denied = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
            if denied or status in (401, 403):
                raise StoreDenied(f"{said}; check the credentials and what they may do") from error
            if status in (412, 416):
                raise StoreChanged(f"{url} was replaced while it was read; start again") from error
            broken = any(each.__name__ in _BROKEN for each in type(error).__mro__)
            broken = broken or getattr(error, "retryable", False) is True  # google-auth's
            if status >= 500 or status in (408, 429) or broken:
                raise StoreInterrupted(said) from error
            raise StoreError(
                f"{said}; check the network and the store, then start again"
            ) from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of ``url``, and the path in it. Kept listings would hide what has been
    written since."""
    found: tuple[Any, str] = fsspec.url_to_fs(
        url, use_listings_cache=False, skip_instance_cache=True
    )
    return found


def _try_once(system: Any) -> None:
    """Have the clients of Google and Azure try once: their own tries take half a minute and a
    whole one, and there is no setting for it. Where these names are gone, it only takes longer."""
    package = type(system).__module__.partition(".")[0]
    if package == "gcsfs":
        with suppress(AttributeError):
            system._request = functools.partial(inspect.unwrap(type(system)._request), system)
    elif package == "adlfs":
        with suppress(AttributeError):
            system.service_client._config.retry_policy.total_retries = 0


def _status(error: Exception) -> int:
    """Of the HTTP reply that an error stands for; 0 where it stands for none."""
    for name in ("status", "code", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit():
            return int(value)
    return 0
