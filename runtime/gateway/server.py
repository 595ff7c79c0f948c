"""The gateway's process: a listening socket, uvicorn, the pool, and an orderly end.

It listens already when this file is imported, and the base zygote is on its way (``serve``): callers
wait in the socket's backlog, and the HTTP stack is imported beside the base.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import TYPE_CHECKING, Any

from zerowake.runtime.config import BACKLOG, ServeConfig
from zerowake.runtime.gateway.base import BaseProcess, Flavour
from zerowake.runtime.gateway.opening import Opened
from zerowake.runtime.metrics import Metrics

if TYPE_CHECKING:
    from zerowake.runtime.gateway.pool import Pool

log = logging.getLogger("zerowake.gateway")


def run(
    opened: list[Opened],
    config: ServeConfig,
    sock: socket.socket,
    bases: Mapping[Flavour, BaseProcess],
    reload: Callable[["Pool"], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    reload: watches the sources and gives the pool new snapshots; runs beside the server.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(opened, config, sock, bases, reload))


async def _serve(
    opened: list[Opened],
    config: ServeConfig,
    sock: socket.socket,
    bases: Mapping[Flavour, BaseProcess],
    reload: Callable[["Pool"], Coroutine[Any, Any, None]] | None,
) -> None:
    import uvicorn

    import zerowake
    from zerowake.runtime.gateway.app import create_app
    from zerowake.runtime.gateway.invoke import StreamBroken
    from zerowake.runtime.gateway.pool import Pool

    class Server(uvicorn.Server):
        """uvicorn stops listening at the first signal; we answer probes until we have drained."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

    # How a stream is cut off; it has been logged, without a traceback through uvicorn.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], StreamBroken))
    )
    metrics = Metrics()
    pool = Pool(config, bases, metrics)
    while opened:
        pool.serve(opened.pop(0))  # its tables are of no use any more
    app: Any = create_app(
        pool, metrics, max_body_nbytes=config.max_body_nbytes, version=zerowake.__version__
    )
    server = Server(
        uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    watching = asyncio.create_task(reload(pool)) if reload is not None else None
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("serving %s on http://%s:%d", ", ".join(pool.names()), shown, port)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    log.info("draining for at most %g s (a second signal ends it now)", config.drain_s)
    if watching is not None:
        watching.cancel()
    draining = asyncio.create_task(pool.drain(config.drain_s))
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, draining.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await draining
    await pool.close()
    server.should_exit = True
    await serving
