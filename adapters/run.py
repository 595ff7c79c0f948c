"""``zerowake run``: one function on whatever platform this is, started from nothing.

The platform stops the whole container, so there is no zygote to keep and nothing sleeps: the gateway
and one instance start side by side, and the platform's own protocol brings the calls.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from zerowake.adapters import find
from zerowake.adapters.stores import open_store
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError

log = logging.getLogger("zerowake.adapters")

SNAPSHOT, TRUST = "ZEROWAKE_SNAPSHOT", "ZEROWAKE_TRUST"


def run(
    target: str | None, adapter: str | None, config: ServeConfig, environ: Mapping[str, str]
) -> None:
    """Serve ``target`` until the platform ends us.

    target: a source, a snapshot or the URL of one; None takes ZEROWAKE_SNAPSHOT. Raises what is wrong with it, with
    the environment, or with the platform's answers, after the platform was told.
    """
    kind = find(environ, adapter)
    config = kind.configure(environ, replace(config, alone=True, environment=tuple(environ)))
    ingress = kind(environ, config)
    try:
        from zerowake.runtime.gateway.serve import serve

        trusted = tuple(environ.get(TRUST, "").replace(",", " ").split())
        target = target or environ.get(SNAPSHOT)
        if not target:
            raise ConfigError(
                f"nothing to run: name a snapshot or path/app.py:Class, or set {SNAPSHOT}"
            )
        if "://" in target:  # nothing is imported for other ones
            from zerowake.runtime.remote import localize

            target = localize(target, open_store, environ)
        serve([target], replace(config, trusted=(*config.trusted, *trusted)), ingress)
    except Exception as error:
        ingress.report_init_error(error)
        raise
