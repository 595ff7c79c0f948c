"""Remote snapshots on the command line: brought here before they are opened, or uploaded when made.

Knows no store: ``open_store`` of a higher floor opens one by its URL.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from zerowake.runtime.cache import cache_directory
from zerowake.runtime.progress import ProgressBar
from zerowake.snapshot import remote
from zerowake.snapshot.remote import is_remote, parse_url
from zerowake.snapshot.storage import Store

OpenStore = Callable[[str], Store]


def localize(text: str, open_store: OpenStore, environ: Mapping[str, str]) -> str:
    """``text``, or the path of the snapshot in the cache where it is the URL of one.

    Raises SnapshotError, StoreError.
    """
    if not is_remote(text):
        return text
    wanted = parse_url(text)
    cache = cache_directory(environ)
    if (path := remote.cached(wanted, cache)) is not None:
        return str(path)
    with ProgressBar() as bar:
        path = remote.fetch(
            wanted,
            open_store(wanted.url),
            cache,
            progress=bar.update,
            note=lambda said: bar.note(f"note: {said}"),
        )
    return str(path)


def push(path: Path, url: str, open_store: OpenStore, bar: ProgressBar) -> str:
    """Upload the snapshot at ``path`` below ``url``; its own URL. Raises SnapshotError, StoreError."""
    own = f"{url.rstrip('/')}/{path.name}"
    remote.upload(path, open_store(own), bar.update)
    return own
