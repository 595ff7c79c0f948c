"""The gateway's own ingress: HTTP, through uvicorn, which is imported when it is served.

It listens before that, so that early callers wait in the socket's backlog.
"""

import contextlib
import errno
import logging
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

from zerowake.runtime.config import BACKLOG, ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.port import Functions

if TYPE_CHECKING:
    import uvicorn

    from zerowake.runtime.gateway.asgi import ASGIApp
    from zerowake.runtime.metrics import Metrics

log = logging.getLogger("zerowake.gateway")


class HttpIngress:
    """An ``Ingress`` that listens on ``config``'s address. A platform's overrides ``app``."""

    many_connections: ClassVar[bool] = True

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._sockets: list[socket.socket] = []
        self._server: uvicorn.Server | None = None

    def open(self) -> None:
        """Raises ConfigError when the address is taken, not ours or unknown."""
        self._sockets.append(listen(self._config))

    def app(
        self, functions: Functions, metrics: "Metrics", *, with_orders: bool = True
    ) -> "ASGIApp":
        """What answers requests. with_orders: as for ``create_app``."""
        import zerowake
        from zerowake.runtime.gateway.app import create_app

        return create_app(
            functions,
            metrics,
            max_body_nbytes=self._config.max_body_nbytes,
            version=zerowake.__version__,
            with_orders=with_orders,
        )

    async def serve(self, functions: Functions, metrics: "Metrics") -> None:
        import uvicorn

        from zerowake.runtime.gateway.invoke import StreamBroken

        class Server(uvicorn.Server):
            """uvicorn stops listening at the first signal; we answer probes until we have drained."""

            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None, None, None]:
                yield

        # How a stream is cut off; it has been logged, without a traceback through uvicorn.
        logging.getLogger("uvicorn.error").addFilter(
            lambda record: not (record.exc_info and isinstance(record.exc_info[1], StreamBroken))
        )
        app: Any = self.app(functions, metrics)
        self._server = Server(
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
        host, port = self._sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        names = ", ".join(functions.names()) or "nothing yet"
        log.info("serving %s on http://%s:%d", names, shown, port)
        await self._server.serve(sockets=self._sockets)

    def drain(self) -> None:
        """Nothing: probes are answered to the end, and ``Functions`` refuses new calls."""

    def close(self) -> None:
        if self._server is not None:
            self._server.should_exit = True


def listen(config: ServeConfig) -> socket.socket:
    """Bind and listen. Raises ConfigError when the address is taken, not ours or unknown."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except socket.gaierror as error:
        sock.close()
        raise ConfigError(
            f"there is no host {config.host}: {error.strerror}; give --host an address of this "
            "machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        ) from error
    except OSError as error:
        sock.close()
        another = f"{config.port_from} (0 takes a free one)"
        if error.errno == errno.EADDRNOTAVAIL:
            another = "--host (127.0.0.1, or 0.0.0.0 for all addresses of this machine)"
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; "
            f"choose another with {another}"
        ) from error
    sock.listen(BACKLOG)
    return sock
