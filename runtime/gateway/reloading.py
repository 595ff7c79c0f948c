"""``zerowake serve --reload``: sources that are frozen again when they change.

Knows no process and no call: what is new goes to the pool.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from watchfiles import awatch

from zerowake.runtime.cache import stop_freezing
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.gateway.opening import open_target
from zerowake.runtime.gateway.pool import Pool
from zerowake.runtime.target import parse_target
from zerowake.snapshot import code

log = logging.getLogger("zerowake.gateway")

WATCH_AGAIN_S = 2.0  # when the watcher itself has failed, or its folder is gone


async def keep_fresh(sources: list[str], config: ServeConfig, pool: Pool) -> None:
    """Freeze a source again whenever one of its files has changed, and serve that in its place.

    sources: as targets. Runs until it is cancelled; what is wrong with a source is logged, and the
    old one stays.
    """

    async def watch(text: str) -> None:
        target = parse_target(text)
        files = {target.entry}

        def is_source(_change: object, path: str) -> bool:
            # Only the author's files: freezing itself may write below the same folder.
            with contextlib.suppress(Exception):  # gone or unreadable now: those known still count
                found = code.collect(target.entry, target.root).files
                files.update(target.root / name for name in found)
            return Path(path) in files or Path(path) == target.root

        while True:
            async for changes in awatch(target.root, watch_filter=is_source):
                await refresh(text)
                if any(Path(path) == target.root for _change, path in changes):
                    break  # the folder is gone, or another one has its name: watched anew
            while not target.root.is_dir():
                await asyncio.sleep(WATCH_AGAIN_S)
            await refresh(text)

    async def refresh(text: str) -> None:
        try:
            opened = await asyncio.to_thread(open_target, text, config, reload=True)
            if opened.snapshot.digest != pool.digest(opened.info.name):
                log.info("%s has changed: %s", text, opened.snapshot.path.name)
                pool.serve(opened)
        except Exception as error:
            log.error("%s: the old one stays: %s", text, error)

    async def keep_watching(text: str) -> None:
        while True:
            try:
                await watch(text)
            except Exception as error:  # no inotify watch is left, say
                log.error("%s: the old one stays, its source cannot be watched: %s", text, error)
            await asyncio.sleep(WATCH_AGAIN_S)

    try:
        await asyncio.gather(*map(keep_watching, sources))
    finally:
        await asyncio.to_thread(stop_freezing)  # it may take a while to go
