"""``zerowake run``: one function on whatever platform this is, started from nothing.

The platform stops the whole container, so there is no zygote to keep and nothing sleeps: the gateway
and one instance start side by side, and the platform's own protocol brings the calls.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zerowake.adapters import KNOWN, detect, find, name_of, under
from zerowake.adapters.model import snapshot_in
from zerowake.adapters.stores import open_store
from zerowake.runtime import logs
from zerowake.runtime.cli_options import digest
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError

if TYPE_CHECKING:
    from zerowake.adapters.port import Adapter

log = logging.getLogger("zerowake.adapters")

SNAPSHOT, TRUST = "ZEROWAKE_SNAPSHOT", "ZEROWAKE_TRUST"
PORT = "the variable that the adapter takes its port from"  # unless it names one
OBJECTS = "ZEROWAKE_OBJECTS"  # as ``objects.ALLOWED``, which a start does without
FUNCTION, SOURCE = "FUNCTION_TARGET", "FUNCTION_SOURCE"


def run(
    target: str | None,
    adapter: str | None,
    config: ServeConfig,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    drain_s: float | None = None,
) -> None:
    """Serve ``target`` until the platform ends us.

    target: a source, a snapshot or its URL; None takes ZEROWAKE_SNAPSHOT, or FUNCTION_TARGET in
    FUNCTION_SOURCE, or what lies where the platform lays models. root: of the file system that the
    platform has laid something in. drain_s: as in ``config``, which has it from here; None for as
    long as the platform gives. Raises what is wrong with the target, with the environment, or with
    the platform's answers, after the platform was told.
    """
    kind: type[Adapter] | None = None
    try:
        kind = find(environ, adapter, target or "", root)
        config = config._replace(drain_s=kind.capabilities.drain_s if drain_s is None else drain_s)
        _run(kind, target, config, environ, root)
    except Exception as error:
        # Also where there is no adapter of the name that is asked for: the platform is there.
        (kind or find({}, detect(environ, root=root))).report_error(environ, error)
        raise


def _run(
    kind: "type[Adapter]",
    target: str | None,
    config: ServeConfig,
    environ: Mapping[str, str],
    root: Path,
) -> None:
    if target in {known.argument for known in KNOWN.values()}:
        target = None  # the platform's word, which names no model
    config = kind.configure(
        environ, config._replace(alone=True, environment=tuple(environ), port_from=PORT)
    )
    logs.configure(config.log_format)
    log.info("running on: %s (adapter %s)", kind.capabilities.platform, name_of(kind))
    ingress = kind(environ, config)
    from zerowake.runtime.gateway.serve import serve

    trusted = _trusted(environ)
    if OBJECTS in environ:
        from zerowake.adapters.objects import allowed

        allowed(environ)  # what is wrong with it is said now, not at the first event
    target = target or environ.get(SNAPSHOT) or _named_source(environ)
    target = target or _laid_out(kind.capabilities.model, environ, root)
    if not target and config.alone:  # else functions may come later
        raise ConfigError(
            f"nothing to run: name a snapshot or path/app.py:Class, or set {SNAPSHOT}, or "
            f"{FUNCTION} and {SOURCE} for a function in source"
        )
    serve(
        [target] if target else [],
        config._replace(trusted=(*config.trusted, *trusted)),
        ingress,
        open_store,
    )


def _trusted(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The digests in ZEROWAKE_TRUST, apart by spaces or commas. Raises ConfigError."""
    try:
        return tuple(map(digest, environ.get(TRUST, "").replace(",", " ").split()))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{TRUST}: {error}") from None


def _named_source(environ: Mapping[str, str]) -> str:
    """The function that the settings of functions-framework name; "" when they name none."""
    function = environ.get(FUNCTION)
    return f"{environ.get(SOURCE) or 'main.py'}:{function}" if function else ""


def _laid_out(place: str, environ: Mapping[str, str], root: Path) -> str:
    """What stands for the model that the platform has laid at ``place``; "" when there is none.

    A URL is that of the snapshot itself: nothing is listed in a store.
    """
    if place.startswith("$"):
        place = environ.get(place[1:], "")
    if not place or "://" in place:
        return place
    folder = under(root, place)
    return str(snapshot_in(folder)) if folder.is_dir() else ""
