"""Remote snapshots on the command line: brought here before they are opened, or uploaded when made.

Knows no store: ``open_store`` of a higher floor opens one by its URL.
"""

import asyncio
import logging
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from zerowake.runtime import process
from zerowake.runtime.cache import cache_directory
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.progress import ProgressBar
from zerowake.snapshot import remote
from zerowake.snapshot.errors import (
    NoCredentials,
    NotInStore,
    StoreDenied,
    StoreError,
    ZerowakeError,
)
from zerowake.snapshot.remote import is_remote, parse_url
from zerowake.snapshot.storage import Store, again
from zerowake.snapshot.store import MANIFEST_FILE

log = logging.getLogger("zerowake.remote")

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
    began_s: list[float] = []  # once there is something to fetch

    def progress(stage: str, done: int, total: int) -> None:
        if not began_s:  # for whoever serves: where there is no terminal, there is no bar
            began_s.append(time.monotonic())
            log.info("fetching %.1f MB from %s", total / 1e6, wanted.url)
        bar.update(stage, done, total)

    with ProgressBar() as bar:
        path = remote.fetch(
            wanted,
            open_store(wanted.url),
            cache,
            progress=progress,
            note=lambda said: bar.note(f"note: {said}"),
        )
    if began_s:
        log.info("fetched %s in %.1f s", wanted.url, time.monotonic() - began_s[0])
    return str(path)


class Localizing:
    """The same in a process of its own, for one that serves afterwards.

    What a store's client imports and allocates (58 MB with boto3) ends with it, and base zygotes can
    be started meanwhile. To be made while this process has one thread.
    """

    def __init__(self, text: str, open_store: OpenStore, environ: Mapping[str, str]) -> None:
        self._text = text
        self._read, write = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._read)
            process.end_with_parent({process.PARENT: str(parent)})
            _localize_and_exit(text, open_store, environ, write)
        process.AWAITED.add(self._pid)
        os.close(write)

    async def path(self) -> str:
        """Waits for it. Raises as ``localize``."""
        reader = asyncio.StreamReader()
        protocol, file = asyncio.StreamReaderProtocol(reader), os.fdopen(self._read, "rb")
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        try:
            said = await reader.read()
        except asyncio.CancelledError:  # the process that fetches ends with us
            log.info("told to stop while %s was fetched; the next start fetches it", self._text)
            raise
        finally:
            pipe.close()
        _, status = os.waitpid(self._pid, 0)
        process.AWAITED.discard(self._pid)
        if not said:
            reason = process.exit_reason(status)
            raise StoreError(f"{self._text}: the process that fetched it ended: {reason}")
        found = pickle.loads(said)  # of our own child
        if isinstance(found, Exception):
            raise found
        return str(found)


def _localize_and_exit(
    text: str, open_store: OpenStore, environ: Mapping[str, str], write: int
) -> NoReturn:
    code = 1
    try:
        found: str | Exception
        try:
            found = localize(text, open_store, environ)
        except ZerowakeError as error:
            found = error
        with open(write, "wb") as file:
            file.write(pickle.dumps(found))
        code = 0
    except KeyboardInterrupt:  # the parent has been told as well
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def check_place(url: str, open_store: OpenStore, bar: ProgressBar) -> None:
    """Say what stands against an upload below ``url``, as far as it shows without writing.

    Raises ConfigError where ``url`` is a snapshot itself, StoreError.
    """
    store = open_store(url)
    if store.read_only:
        raise StoreError(f"--out {url}: {store.read_only}")
    try:
        again(lambda: store.stat(MANIFEST_FILE), None)
    except NotInStore:  # as it should be
        return
    except NoCredentials:
        raise
    except StoreDenied as error:  # who may only write is not let look either
        bar.note(f"note: {error}; whether it can be written shows only at the upload")
        return
    raise ConfigError(
        f"--out {url} is a snapshot; name the folder above it, {url.rstrip('/').rpartition('/')[0]}"
    )


def push(path: Path, url: str, open_store: OpenStore, bar: ProgressBar) -> str:
    """Upload the snapshot at ``path`` below ``url``; its own URL. Raises SnapshotError, StoreError."""
    own = f"{url.rstrip('/')}/{path.name}"
    remote.upload(path, open_store(own), bar.update)
    return own
