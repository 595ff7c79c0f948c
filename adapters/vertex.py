"""Vertex AI custom containers: a health route, and a predict route that takes instances.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements. What rawPredict and
streamRawPredict send to the same route goes to the function as it is.
"""

from collections.abc import Mapping
from typing import ClassVar

from zerowake.adapters.calls import all_or_first_error, body_of, each, instances, json_of
from zerowake.adapters.port import Capabilities, Port
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, STREAMING, Push, listening
from zerowake.adapters.routes import Passed, Request, Response, Route
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.jsontext import parse_json

PORT = Port("AIP_HTTP_PORT", 8080)


class Vertex(Push):
    """One instance is one item: those of a request run as batches of the model."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="Google Vertex AI",
        shape="push",
        streaming=f"streamRawPredict: {STREAMING}",
        mid_stream_error=MID_STREAM,
        events=CLOUD_EVENTS,
        request_nbytes=1_500_000,
        response_nbytes=1_500_000,
        timeout="60 s",
        model="$AIP_STORAGE_URI",
        port=PORT,
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return listening(config, environ, PORT)

    def routes(self) -> list[Route]:
        health = self.environ.get("AIP_HEALTH_ROUTE") or "/health"
        predict = self.environ.get("AIP_PREDICT_ROUTE") or "/predict"
        return [Route("GET", health, self.probe, early=True), Route("POST", predict, self._predict)]

    async def _predict(self, request: Request) -> Response | Passed:
        body = await request.body()
        name = self.only()
        info = self.functions.find(name)
        own = "instances" in info.input_schema.get("properties", {})
        if own or info.raw_input or b'"instances"' not in body:
            return Passed(f"/invoke/{name}")
        bodies = [body_of(info, value) for value in instances(parse_json(body))]
        results = await each(self.caller, name, bodies, request.id, request.origin)
        items = [json_of(info, chunks) for chunks in all_or_first_error(results, "instance")]
        return Response(200, b'{"predictions":[' + b",".join(items) + b"]}")
