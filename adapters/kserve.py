"""KServe's predict protocols: v1 with instances, v2 (Open Inference Protocol) with tensors.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol and
https://github.com/kserve/open-inference-protocol. Its storage initializer has laid the snapshot at
/mnt/models; a ServingRuntime without one names us with ``--adapter kserve``. Streams go by /invoke.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from zerowake.adapters import inference_protocol
from zerowake.adapters.calls import all_or_first_error, body_of, each, instances, json_of, value_of
from zerowake.adapters.port import Capabilities
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, PORT, STREAMING, Push
from zerowake.adapters.routes import Request, Response, Route, answer_json
from zerowake.runtime.errors import BadRequest, UnknownFunction
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.jsontext import parse_json

HEADER_NBYTES = "inference-header-content-length"
MODEL_NAME = "MODEL_NAME"  # what the InferenceService is called, if not as the function
VERSIONED = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


class KServe(Push):
    """One instance, or one row of the tensors, is one item."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="KServe",
        shape="push",
        streaming=f"/invoke: {STREAMING}",
        mid_stream_error=MID_STREAM,
        events=CLOUD_EVENTS,
        concurrency="containerConcurrency (0: as many as come)",
        timeout="60 s",
        model="/mnt/models",
        port=PORT,
    )

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/v1/models", self._list),
            Route("GET", "/v1/models/{model}", self._ready_v1),
            Route("POST", "/v1/models/{model}:predict", self._predict),
            Route("GET", "/v2", self._server_metadata),
            Route("GET", "/v2/", self._server_metadata),
            Route("GET", "/v2/health/live", self._live, early=True),
            Route("GET", "/v2/health/ready", self._ready, early=True),
            *(Route("GET", path, self._metadata) for path in VERSIONED),
            *(Route("GET", f"{path}/ready", self._model_ready) for path in VERSIONED),
            *(Route("POST", f"{path}/infer", self._infer) for path in VERSIONED),
        ]

    def tell(self, problem: Mapping[str, Any], error: Exception) -> Response:
        response = super().tell(problem, error)
        return Response(
            response.status,
            answer_json({"error": problem["detail"]}).body,
            headers=response.headers,
        )

    # ---------------------------------------------------------------- health and metadata

    def _live(self, request: Request) -> Response:
        return answer_json({"live": True})

    def _ready(self, request: Request) -> Response:
        return answer_json({"ready": self.functions.ready}, 200 if self.functions.ready else 503)

    def _model_ready(self, request: Request) -> Response:
        self._model(request)
        return self._ready(request)

    def _ready_v1(self, request: Request) -> Response:
        name, _info = self._model(request)
        ready = self.functions.ready
        return answer_json({"name": name, "ready": ready}, 200 if ready else 503)

    def _list(self, request: Request) -> Response:
        return answer_json({"models": [self.environ.get(MODEL_NAME) or self.only()]})

    def _server_metadata(self, request: Request) -> Response:
        import zerowake

        extensions = ["binary_tensor_data"]
        return answer_json(
            {"name": "zerowake", "version": zerowake.__version__, "extensions": extensions}
        )

    def _metadata(self, request: Request) -> Response:
        name, info = self._model(request)
        return answer_json(inference_protocol.metadata(info, name))

    def _model(self, request: Request) -> tuple[str, FunctionInfo]:
        """The model as it was asked for, and the function. Raises UnknownFunction."""
        model, only = request.parts["model"], self.only()
        known = [only, *filter(None, [self.environ.get(MODEL_NAME)])]
        if model not in known:
            raise UnknownFunction(f"there is no model {model!r:.80}; served is {known[-1]}")
        return model, self.functions.find(only)

    # ---------------------------------------------------------------- calls

    async def _predict(self, request: Request) -> Response:
        _model, info = self._model(request)
        bodies = [body_of(info, value) for value in instances(parse_json(await request.body()))]
        results = await each(self.caller, info.name, bodies, request.id, request.origin)
        items = [json_of(info, chunks) for chunks in all_or_first_error(results, "instance")]
        return Response(200, b'{"predictions":[' + b",".join(items) + b"]}")

    async def _infer(self, request: Request) -> Response:
        model, info = self._model(request)
        length = request.headers.get(HEADER_NBYTES)
        if length is not None and not (
            length.isascii() and length.isdecimal() and len(length) < 19
        ):
            raise BadRequest(f"{HEADER_NBYTES} is {length!r:.40}; it must be a number of bytes")
        body = await request.body()
        asked = inference_protocol.read(info, body, None if length is None else int(length))
        bodies = [item if isinstance(item, bytes) else body_of(info, item) for item in asked.items]
        results = await each(self.caller, info.name, bodies, request.id, request.origin)
        values = [
            b"".join(chunks) if info.raw_output else value_of(info, chunks)
            for chunks in all_or_first_error(results, "item")
        ]
        answer, header_nbytes = inference_protocol.write(asked, model, values)
        if header_nbytes is None:
            return Response(200, answer)
        headers = {HEADER_NBYTES: str(header_nbytes)}
        return Response(200, answer, "application/octet-stream", headers)
