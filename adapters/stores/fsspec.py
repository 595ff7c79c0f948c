"""Snapshots in any other store that fsspec has a file system for: Google Cloud Storage, Azure, SFTP.

Those try again by themselves, so their errors are final. They do not read at a version; digests
tell when an object was replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from zerowake.snapshot.errors import NotInStore, StoreDenied, StoreError
from zerowake.snapshot.storage import Found

_VERSIONS = ("generation", "etag", "ETag", "mtime", "last_modified", "updated", "created")


class FsspecStore:
    """The files of ``system`` below ``root``."""

    def __init__(self, system: Any, root: str, url: str) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._url = url

    @classmethod
    def open(cls, url: str) -> "FsspecStore":
        try:
            # Kept listings would hide what has been written since.
            system, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:  # its own words name the package, or the schemes
            raise StoreError(f"{url}: {error}; pip install what its scheme needs") from error
        except Exception as error:
            raise StoreError(f"{url} cannot be opened: {error}") from error
        return cls(system, root, url)

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
            self._system.put_file(str(source), f"{self._root}/{name}")

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
            said = f"{url}: {type(error).__name__}: {error}"
            status = getattr(error, "status", None) or getattr(error, "code", None)
            denied = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
            if denied or status in (401, 403):
                raise StoreDenied(f"{said}; check the credentials and what they may do") from error
            raise StoreError(
                f"{said}; check the network and the store, then start again"
            ) from error
