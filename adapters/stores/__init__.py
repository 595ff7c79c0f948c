"""Object stores that remote snapshots are fetched from and uploaded to, by the scheme of their URL.

``open_store`` imports only what the scheme needs, and says which package to install where it is
missing.
"""

from typing import TYPE_CHECKING

from zerowake.snapshot.errors import StoreError

if TYPE_CHECKING:
    from zerowake.snapshot.storage import Store


def open_store(url: str) -> "Store":
    """The store with the objects below ``url``. s3://, http(s)://, and what fsspec knows.

    Raises StoreError for a URL that is none, and where a package is missing; reaches nothing yet.
    """
    scheme = url.partition("://")[0]
    if scheme == "s3":
        try:
            from zerowake.adapters.stores.s3 import S3Store
        except ModuleNotFoundError as error:
            raise _missing(url, error, "zerowake[s3]") from error
        return S3Store.open(url)
    if scheme in ("http", "https"):
        from zerowake.adapters.stores.http import HttpStore

        return HttpStore(url)
    try:
        from zerowake.adapters.stores.fsspec import FsspecStore
    except ModuleNotFoundError as error:
        raise _missing(url, error, "zerowake[remote]") from error
    return FsspecStore.open(url)


def _missing(url: str, error: ModuleNotFoundError, extra: str) -> StoreError:
    return StoreError(f"{url} needs the package {error.name}: pip install '{extra}'")
