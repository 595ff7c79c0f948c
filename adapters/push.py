"""The base of adapters that are called over HTTP: the gateway's own server with a platform's routes.

A platform's class says what it offers (``capabilities``), reads its environment (``configure``) and
gives its ``routes``; whatever they do not know, the gateway's app answers: /invoke/{name}, /livez,
/readyz, /metrics, /docs. Events are taken everywhere.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from zerowake.adapters.port import Capabilities, Port
from zerowake.adapters.routes import Request, Response, Route, Table, problem_response
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.http import HttpIngress
from zerowake.runtime.gateway.port import Functions

if TYPE_CHECKING:
    from zerowake.runtime.gateway.asgi import ASGIApp
    from zerowake.runtime.metrics import Metrics

STREAMING = "chunked NDJSON, or SSE where Accept asks for it"
MID_STREAM = "SSE: an error event; else the connection is cut off"
CLOUD_EVENTS = ("CloudEvents 1.0", "Pub/Sub push")
PORT = Port("PORT", 8080)  # most platforms'


class Push(HttpIngress):
    """An ``Adapter`` over HTTP. ``routes`` may use ``functions`` and ``caller``."""

    capabilities: ClassVar[Capabilities]
    functions: Functions

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return listening(config, environ, PORT)

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None:
        super().__init__(config)
        self.environ = environ
        self.config = config

    def routes(self) -> list[Route]:
        """The platform's, looked through in this order."""
        return []

    def tell(self, problem: Mapping[str, Any], error: Exception) -> Response:
        """An error that a route has raised, in the platform's shape."""
        return problem_response(problem, error)

    def app(
        self, functions: Functions, metrics: "Metrics", *, with_orders: bool = False
    ) -> "ASGIApp":
        from zerowake.adapters.cloudevents import Events
        from zerowake.adapters.objects import Objects, allowed
        from zerowake.runtime.gateway.caller import Caller

        self.functions = functions
        self.caller = Caller(functions, metrics)
        limit_nbytes = self.config.max_body_nbytes
        app = super().app(functions, metrics, with_orders=with_orders)
        # Anybody may send events who reaches the port, so the operator names what may be fetched.
        objects = Objects(limit_nbytes, allowed(self.environ) or ())
        app = Table(Events(self.caller, objects).routes(), app, limit_nbytes, functions.arrived)
        return Table(self.routes(), app, limit_nbytes, functions.arrived, self.tell)

    @staticmethod
    def report_error(environ: Mapping[str, str], error: BaseException) -> None:
        """Nobody to tell: the exit code and the log do it."""

    # ---------------------------------------------------------------- what several platforms need

    def probe(self, request: Request) -> Response:
        """200 when calls are welcome, 503 before and while draining."""
        return Response(200 if self.functions.ready else 503)

    def only(self) -> str:
        """The function's name, where there is but one."""
        return self.functions.names()[0]


def listening(
    config: ServeConfig, environ: Mapping[str, str], where: Port, host: str = "0.0.0.0"
) -> ServeConfig:
    """``config`` with the address of a platform. Raises ConfigError for a port that is none."""
    chosen = port(environ, where.variable, where.default)
    return config._replace(host=host, port=chosen, port_from=where.variable)


def port(environ: Mapping[str, str], name: str, default: int) -> int:
    """The port that a variable names, where it is set and not empty. Raises ConfigError."""
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise ConfigError(f"{name} is {text!r:.40}; it must be a port number, 0 to 65535")
    return int(text)
