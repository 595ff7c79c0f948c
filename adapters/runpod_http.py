"""RunPod's load-balancing endpoints: requests come as they are, and /ping says where we stand.

https://docs.runpod.io/serverless/load-balancing/overview. 200 is healthy, 204 still initialising, and
whatever else takes the worker out; RunPod measures a cold start from the first 204 to the first 200.
"""

from collections.abc import Mapping
from typing import ClassVar

from zerowake.adapters.port import Capabilities, Port
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, STREAMING, Push, listening, port
from zerowake.adapters.routes import Request, Response, Route
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.gateway.http import listen

PORT = Port("PORT", 80)
HEALTH_PORT = "PORT_HEALTH"


class RunPodHttp(Push):
    """Calls on PORT; health on PORT_HEALTH, which may be the same."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="RunPod load balancer",
        shape="push",
        streaming=STREAMING,
        mid_stream_error=MID_STREAM,
        events=CLOUD_EVENTS,
        request_nbytes=30 << 20,
        response_nbytes=30 << 20,
        timeout="330 s",
        start_s=120.0,
        port=PORT,
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return listening(config, environ, PORT)

    def open(self) -> None:
        super().open()
        health = port(self.environ, HEALTH_PORT, self.config.port)
        if health != self.config.port:
            self._sockets.append(listen(self.config._replace(port=health, port_from=HEALTH_PORT)))

    def routes(self) -> list[Route]:
        path = self.environ.get("HEALTH_CHECK_PATH") or "/ping"
        return [Route("GET", path, self.probe, early=True)]

    def probe(self, request: Request) -> Response:
        if self.functions.ready:
            return Response(200)
        gone = any(each["state"] == "failed" for each in self.functions.describe())
        return Response(503 if gone or self.functions.draining else 204)
