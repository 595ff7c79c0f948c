"""``zerowake serve`` and ``zerowake run``: from targets on the command line to a running gateway.

The order is the point: open the ingress (early callers wait in the socket's backlog), start the base
zygote, look at the snapshots while it loads, and import what serves while it still does.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zerowake.runtime import logs
from zerowake.runtime.config import Device, ServeConfig, shows_gpu
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.port import Ingress
from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.mapping import read_file

if TYPE_CHECKING:
    from zerowake.runtime.gateway.pool import Pool
    from zerowake.runtime.remote import Localizing, OpenStore

log = logging.getLogger("zerowake.gateway")

MOST_FORM_NBYTES = 16 << 20
WATCH_AGAIN_S = 2.0  # when the watcher itself has failed, or its folder is gone


def serve(
    targets: list[str],
    config: ServeConfig,
    ingress: Ingress,
    open_store: "OpenStore",
    *,
    reload: bool = False,
) -> None:
    """Serve targets and snapshots until SIGTERM, or until ``ingress`` ends.

    open_store: the store of a snapshot that is named by its URL. Raises what is wrong with a target
    or a snapshot: TargetError, SnapshotError, UntrustedCode, StoreError, ConfigError (two functions
    of one name, an address that is taken).
    """
    logs.configure(config.log_format, config.log_level)
    for name in config.environment:
        if name not in os.environ:
            log.warning("--env %s: it is not set here, so functions will not see it", name)
    check_device(config.device)
    fetched = {text: _fetch(text, open_store) for text in targets if "://" in text}
    ingress.open()
    bases = {
        flavour: BaseProcess(os.environ, config.environment, once=config.alone)
        for flavour in Flavour
    }
    if all(text in fetched or _looks_torch_free(text) for text in targets):
        bases[Flavour.LIGHT].start(libtorch=True)
    targets = [fetched[text].path() if text in fetched else text for text in targets]
    from zerowake.runtime.gateway.inputs import check_schemas
    from zerowake.runtime.gateway.opening import open_target, shared_modules
    from zerowake.runtime.target import is_target

    sources = [text for text in targets if is_target(text)]
    if reload and not sources:
        raise ConfigError(
            "--reload watches source files, and only snapshots are named; name path/app.py:Class, "
            "or leave --reload out"
        )
    opened = [open_target(text, config, reload=reload, schemas=False) for text in targets]
    known = [digest for each in opened for digest in each.digests]
    for digest in sorted(set(config.trusted).difference(known)):
        log.warning("--trust %s: no snapshot that is served has this digest", digest)
    names = [each.info.name for each in opened]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"two functions are called {', '.join(sorted(twice))}; freeze one with another --name"
        )
    for flavour, base in bases.items():
        functions = [each for each in opened if each.flavour is flavour]
        if base.started and opened and not functions:
            base.dismiss()
        base.share(shared_modules(flavour, functions))
        if functions and not base.started:
            base.start()
    for each in opened:  # where there is a schema 14 ms, beside the base, which imports now
        check_schemas(each.info)
    from zerowake.runtime.gateway.server import run

    watch = (lambda pool: _reload(sources, config, pool)) if reload else None
    run(opened, config, ingress, bases, watch)


def _fetch(url: str, open_store: "OpenStore") -> "Localizing":
    from zerowake.runtime.remote import Localizing  # nothing of it is needed for other targets

    return Localizing(url, open_store, os.environ)


def _looks_torch_free(target: str) -> bool:
    """A quick look, before anything is imported that could tell: it only decides what is begun.

    At what ``snapshot.form`` reads and ``runtime.compiling`` writes.
    """
    try:
        forms = Path(target).glob("compiled/*/form.json")
        return any(b'"torch_free": true' in read_file(form, MOST_FORM_NBYTES) for form in forms)
    except (OSError, DamagedSnapshot):  # what is wrong is said later
        return False


def check_device(device: Device, devices: Path = Path("/dev")) -> None:
    """Raises ConfigError when a GPU is asked for and this machine shows none.

    devices: where its device files are looked for.
    """
    if device == "cuda" and not shows_gpu(devices):
        raise ConfigError(
            f"--device cuda, but there is no GPU here: no {devices}/nvidia0; check the driver "
            "(nvidia-smi), or take --device cpu or auto"
        )


async def _reload(sources: list[str], config: ServeConfig, pool: "Pool") -> None:
    """Freeze a source again whenever one of its files has changed, and put it in its place."""
    import asyncio

    from watchfiles import awatch

    from zerowake.runtime.cache import stop_freezing
    from zerowake.runtime.gateway.opening import open_target
    from zerowake.runtime.target import parse_target
    from zerowake.snapshot import code

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
