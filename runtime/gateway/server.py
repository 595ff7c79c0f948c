"""The gateway's process: an ingress, the pool, and an orderly end.

The ingress is open already when this file is imported, and the base zygote is on its way (``serve``):
callers wait, and what serves them is imported beside the base.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.opening import Opened
from zerowake.runtime.gateway.port import Ingress
from zerowake.runtime.metrics import Metrics

if TYPE_CHECKING:
    from zerowake.runtime.gateway.pool import Pool

log = logging.getLogger("zerowake.gateway")


def run(
    opened: list[Opened],
    config: ServeConfig,
    ingress: Ingress,
    bases: Mapping[Flavour, BaseProcess],
    reload: Callable[["Pool"], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or the ingress ends; then drain and return.

    reload: watches the sources and gives the pool new snapshots; runs beside the server. Raises
    what ended the ingress.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if ingress.many_connections:  # else its 4 ms of a start come to nothing
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(opened, config, ingress, bases, reload))


async def _serve(
    opened: list[Opened],
    config: ServeConfig,
    ingress: Ingress,
    bases: Mapping[Flavour, BaseProcess],
    reload: Callable[["Pool"], Coroutine[Any, Any, None]] | None,
) -> None:
    from zerowake.runtime.gateway.pool import Pool

    metrics = Metrics()
    pool = Pool(config, bases, metrics)
    while opened:
        pool.serve(opened.pop(0))  # its tables are of no use any more
    gc.freeze()
    gc.enable()  # the command begins without
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    serving = asyncio.create_task(ingress.serve(pool, metrics))
    watching = asyncio.create_task(reload(pool)) if reload is not None else None
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    if watching is not None:
        watching.cancel()
    ingress.drain()
    if not (serving.done() and serving.exception()):  # else no answer has a way any more
        log.info("draining for at most %g s (a second signal ends it now)", config.drain_s)
        draining = asyncio.create_task(_drain(ingress, serving, pool, config.drain_s))
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, draining.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await draining
    await pool.close()
    ingress.close()
    await serving


async def _drain(
    ingress: Ingress, serving: "asyncio.Task[None]", pool: "Pool", limit_s: float
) -> None:
    """Have done, at most ``limit_s``, what has been taken, and refuse what comes unasked."""
    started = time.monotonic()
    if not ingress.many_connections:  # it has asked for what it is still being given
        await asyncio.wait([serving], timeout=limit_s)
    await pool.drain(limit_s - (time.monotonic() - started))
