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
from zerowake.runtime.errors import Draining
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.opening import Opened
from zerowake.runtime.gateway.port import Ingress
from zerowake.runtime.gateway.zygote_link import mark_seen
from zerowake.runtime.metrics import Metrics

if TYPE_CHECKING:
    from zerowake.runtime.gateway.pool import Pool

log = logging.getLogger("zerowake.gateway")

LEFT_S = 1.0

Arriving = Callable[[], Coroutine[Any, Any, list[Opened]]]
Reload = Callable[["Pool"], Coroutine[Any, Any, None]]


def run(
    opened: list[Opened],
    config: ServeConfig,
    ingress: Ingress,
    bases: Mapping[Flavour, BaseProcess],
    *,
    arriving: Arriving | None = None,
    reload: Reload | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or the ingress ends; then drain and return.

    arriving: brings more functions, which callers wait for. reload: watches the sources and gives the
    pool new snapshots; both run beside the server. Raises what ended the ingress, or is wrong with
    what was to arrive; alone, also why the function can never run again, as the platform that starts
    containers is then to start another one, or to show why none lives.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if ingress.many_connections:  # else its 4 ms of a start come to nothing
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(opened, config, ingress, bases, arriving, reload))


async def _serve(
    opened: list[Opened],
    config: ServeConfig,
    ingress: Ingress,
    bases: Mapping[Flavour, BaseProcess],
    arriving: Arriving | None,
    reload: Reload | None,
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
    arrival = None
    if arriving is not None:
        arrival = asyncio.create_task(_arrive(arriving(), pool, stop))
        pool.expect(arrival)
    losing = asyncio.create_task(_lose(pool, stop)) if config.alone else None
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    serving = asyncio.create_task(ingress.serve(pool, metrics))
    watching = asyncio.create_task(reload(pool)) if reload is not None else None
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    if watching is not None:
        watching.cancel()
    if losing is not None:
        losing.add_done_callback(mark_seen)
        losing.cancel()
    if arrival is not None:
        arrival.cancel()
    ingress.drain()
    if not (serving.done() and serving.exception()):  # else no answer has a way any more
        log.info("draining for at most %g s (a second signal ends it now)", config.drain_s)
        draining = asyncio.create_task(_drain(ingress, serving, pool, config.drain_s))
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, draining.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await draining
    await pool.close()
    if not ingress.many_connections:  # it may still hold what the functions' processes have left
        await asyncio.wait([serving], timeout=LEFT_S)
    ingress.close()
    await asyncio.wait([serving])
    if arrival is not None:  # what is wrong with it has ended the ingress as well
        with contextlib.suppress(Draining):
            await arrival
    await serving
    if losing is not None:
        with contextlib.suppress(Draining, asyncio.CancelledError):
            await losing


async def _arrive(
    arriving: Coroutine[Any, Any, list[Opened]], pool: "Pool", stop: asyncio.Event
) -> None:
    """Raises Draining when it is cancelled, for the sake of those who wait for it."""
    try:
        opened = await arriving
    except asyncio.CancelledError:
        raise Draining("the server was told to stop before its functions were there") from None
    except BaseException:
        stop.set()
        raise
    while opened:
        pool.serve(opened.pop(0))
    log.info("serving %s", ", ".join(pool.names()))


async def _lose(pool: "Pool", stop: asyncio.Event) -> None:
    """Raises why the function can never run again, once it is so; Draining as ``_arrive``."""
    why = await pool.over()
    stop.set()
    raise why


async def _drain(
    ingress: Ingress, serving: "asyncio.Task[None]", pool: "Pool", limit_s: float
) -> None:
    """Have done, at most ``limit_s``, what has been taken, and refuse what comes unasked."""
    started = time.monotonic()
    if not ingress.many_connections:  # it has asked for what it is still being given
        await asyncio.wait([serving], timeout=limit_s)
    await pool.drain(limit_s - (time.monotonic() - started))
