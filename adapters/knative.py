"""Knative and Cloud Run, which runs containers by Knative's contract.

https://knative.dev/docs/serving/, https://cloud.google.com/run/docs/container-contract. Both set
K_SERVICE and PORT; Cloud Run's containers are no pods, and have less time to drain.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from zerowake.adapters.port import Capabilities
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, PORT, STREAMING, Push
from zerowake.adapters.routes import Passed, Request, Response, Route
from zerowake.runtime.config import ServeConfig

PROBE_HEADER = "k-network-probe"
CLOUD_RUN_DRAIN_S = 9.0  # of the 10 s between SIGTERM and SIGKILL
OWN_PROBES = ("/livez", "/readyz", "/metrics")


class Knative(Push):
    """The container's port: calls, events, and the probes of kubelet and queue-proxy."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="Knative",
        shape="push",
        streaming=STREAMING,
        mid_stream_error=MID_STREAM,
        events=CLOUD_EVENTS,
        concurrency="containerConcurrency (0: as many as come)",
        timeout="300 s, at most 600 s",
        drain_s=30.0,
        port=PORT,
    )

    def routes(self) -> list[Route]:
        # Whatever path a probe has been given, the answer is whether calls are welcome.
        return [Route("GET", "", self._get, early=True)]

    def _get(self, request: Request) -> Response | Passed:
        value = request.headers.get(PROBE_HEADER)
        is_probe = value is not None or request.headers.get("user-agent", "").startswith(
            ("kube-probe/", "Knative-")
        )
        if not is_probe or request.path in OWN_PROBES:
            return Passed(request.path)
        response = self.probe(request)
        return replace(response, body=(value or "").encode(), content_type="text/plain")


class CloudRun(Knative):
    """Cloud Run services."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="Google Cloud Run",
        shape="push",
        streaming=STREAMING,
        mid_stream_error=MID_STREAM,
        events=(*CLOUD_EVENTS, "Eventarc"),
        concurrency="80, at most 1000",
        request_nbytes=32 << 20,
        timeout="300 s, at most 60 min",
        start_s=240.0,
        drain_s=10.0,
        port=PORT,
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        config = Knative.configure(environ, config)
        return config._replace(drain_s=min(config.drain_s, CLOUD_RUN_DRAIN_S))
