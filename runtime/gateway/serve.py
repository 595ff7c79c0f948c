"""``zerowake serve`` and ``zerowake run``: from targets on the command line to a running gateway.

The order is the point: open the ingress (early callers wait in the socket's backlog), start the base
zygote, look at the snapshots while it loads, and import what serves while it still does. Snapshots that
are fetched first may take minutes: then the ingress serves already, and its callers wait for them.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.runtime import logs
from zerowake.runtime.config import PREFIX, VARIABLES, Device, ServeConfig, shows_gpu
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.port import Ingress
from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.mapping import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from zerowake.runtime.gateway.opening import Opened
    from zerowake.runtime.gateway.pool import Pool
    from zerowake.runtime.remote import Localizing, OpenStore

log = logging.getLogger("zerowake.gateway")

MOST_FORM_NBYTES = 16 << 20


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
    _tell_unknown(os.environ)
    check_device(config.device)
    watch = _watching(targets, config) if reload else None
    fetched = {text: _fetch(text, open_store) for text in targets if "://" in text}
    ingress.open()
    bases = {
        flavour: BaseProcess(os.environ, config.environment, once=config.alone)
        for flavour in Flavour
    }
    if all(text in fetched or _looks_torch_free(text) for text in targets):
        bases[Flavour.LIGHT].start(libtorch=True)

    async def fetch_and_open() -> "list[Opened]":
        paths = {text: await localizing.path() for text, localizing in fetched.items()}
        return _open(targets, config, ingress, bases, reload=reload, paths=paths)

    opened = [] if fetched else _open(targets, config, ingress, bases, reload=reload, paths={})
    from zerowake.runtime.gateway.server import run

    run(opened, config, ingress, bases, arriving=fetch_and_open if fetched else None, reload=watch)


def _open(
    targets: list[str],
    config: ServeConfig,
    ingress: Ingress,
    bases: "Mapping[Flavour, BaseProcess]",
    *,
    reload: bool,
    paths: "Mapping[str, str]",
) -> "list[Opened]":
    """Look at what is here, and have the bases import what it needs. Raises as ``serve``.

    paths: of the snapshots that were fetched, by their URLs.
    """
    from zerowake.runtime.gateway.opening import open_target, shared_modules

    opened = [
        open_target(paths[text], config, schemas=False, url=text)
        if text in paths
        else open_target(text, config, reload=reload, schemas=False)
        for text in targets
    ]
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
    if ingress.many_connections:
        from zerowake.runtime.gateway.inputs import check_schemas

        for each in opened:  # where there is a schema 14 ms, beside the base, which imports now
            check_schemas(each.info)
    return opened


def _watching(
    targets: list[str], config: ServeConfig
) -> "Callable[[Pool], Coroutine[Any, Any, None]]":
    from zerowake.runtime.gateway.reloading import keep_fresh  # nothing of it is needed otherwise
    from zerowake.runtime.target import is_target

    sources = [text for text in targets if "://" not in text and is_target(text)]
    if not sources:
        raise ConfigError(
            "--reload watches source files, and only snapshots are named; name path/app.py:Class, "
            "or leave --reload out"
        )
    return lambda pool: keep_fresh(sources, config, pool)


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


def _tell_unknown(environ: "Mapping[str, str]") -> None:
    """Warn of variables that are none of ours and named much like one.

    Not of others: Kubernetes sets ZEROWAKE_PORT where a service is called so, authors their own.
    """
    for name in environ:
        if name.startswith(PREFIX) and name not in VARIABLES:
            from difflib import get_close_matches

            ours = [known.removeprefix(PREFIX) for known in VARIABLES]
            for near in get_close_matches(name.removeprefix(PREFIX), ours, 1, cutoff=0.75):
                log.warning("%s is no variable that is read; %s is", name, PREFIX + near)


def check_device(device: Device, devices: Path = Path("/dev")) -> None:
    """Raises ConfigError when a GPU is asked for and this machine shows none.

    devices: where its device files are looked for.
    """
    if device == "cuda" and not shows_gpu(devices):
        raise ConfigError(
            f"--device cuda, but there is no GPU here: no {devices}/nvidia0; check the driver "
            "(nvidia-smi), or take --device cpu or auto"
        )
