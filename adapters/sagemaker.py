"""SageMaker hosting: /ping and /invocations on 8080, and the routes of multi-model endpoints.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and
https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html: a model that is loaded is a
snapshot that is served under the name that SageMaker gives it, and awake.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from zerowake.adapters.model import snapshot_in
from zerowake.adapters.port import Capabilities, Port
from zerowake.adapters.push import CLOUD_EVENTS, STREAMING, Push, listening
from zerowake.adapters.routes import Passed, Request, Response, Route, answer_json
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import BadRequest, InvocationError, UnknownFunction
from zerowake.runtime.jsontext import parse_json
from zerowake.runtime.memory import available_nbytes

log = logging.getLogger("zerowake.adapters")

PORT = Port("SAGEMAKER_BIND_TO_PORT", 8080)
MULTI = "SAGEMAKER_MULTI_MODEL"
PREFIX = "x-amzn-sagemaker-"
RESERVE_NBYTES = 256 << 20  # left free when a model is loaded: its calls need memory as well


class AlreadyLoaded(InvocationError):
    status, code = 409, "already_loaded"


class NoMemory(InvocationError):
    """SageMaker unloads models that are not used, and asks again."""

    status, code = 507, "no_memory"


class SageMaker(Push):
    """Requests go to the function as they are, and so do its replies, streams included."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="Amazon SageMaker",
        shape="push",
        streaming=STREAMING,
        mid_stream_error="the connection is cut off: ModelStreamError",
        events=("asynchronous inference", *CLOUD_EVENTS),
        request_nbytes=25 << 20,
        timeout="60 s; asynchronous 1 h",
        start_s=3600.0,
        hooks="loads and unloads models of multi-model endpoints",
        model="/opt/ml/model",
        port=PORT,
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        config = listening(config, environ, PORT)
        if _is_multi(environ):  # models come and go, and are forks of what they share
            config = config._replace(alone=False, depth=Depth.HOT)
        return config

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None:
        super().__init__(environ, config)
        self._urls: dict[str, str] = {}  # of loaded models, and of those being loaded
        self._loading = asyncio.Lock()  # one at a time: each looks at the memory that is left

    def routes(self) -> list[Route]:
        routes = [
            Route("GET", "/ping", self.probe, early=True),
            Route("POST", "/invocations", self._invoke),
        ]
        if not _is_multi(self.environ):
            return routes
        return [
            *routes,
            Route("POST", "/models", self._load),
            Route("GET", "/models", self._list),
            Route("GET", "/models/{model}", self._get),
            Route("DELETE", "/models/{model}", self._unload),
            Route("POST", "/models/{model}/invoke", self._invoke),
        ]

    def _invoke(self, request: Request) -> Passed:
        headers = request.headers
        told = [name for name in headers if name.startswith(PREFIX)]
        log.debug("invocation with %s", ", ".join(told) or "no headers of SageMaker's")
        reply = {}
        if (custom := headers.get(f"{PREFIX}custom-attributes")) is not None:
            reply["X-Amzn-SageMaker-Custom-Attributes"] = custom
        id_ = headers.get(f"{PREFIX}inference-id")
        path = f"/invoke/{request.parts['model']}" if request.parts else "/"
        return Passed(path, {} if id_ is None else {"x-request-id": id_}, reply)

    # ---------------------------------------------------------------- several models

    async def _load(self, request: Request) -> Response:
        order = parse_json(await request.body())
        match order:
            case {"model_name": str(name), "url": str(url)} if name and "/" not in name:
                pass
            case _:
                raise BadRequest('an order to load is {"model_name": ..., "url": a folder}')
        if name in self._urls:
            raise AlreadyLoaded(f"{name} is loaded already, from {self._urls[name]}")
        self._urls[name] = url
        try:
            async with self._loading:
                await self._serve(name, snapshot_in(Path(url.removeprefix("file://"))))
        except BaseException:  # also when SageMaker has given up
            del self._urls[name]
            raise
        return answer_json({"modelName": name, "modelUrl": url})

    async def _serve(self, name: str, path: Path) -> None:
        wanted = sum(file.stat().st_size for file in path.glob("weights*")) + RESERVE_NBYTES
        if wanted > (available := available_nbytes()):
            raise NoMemory(
                f"{name} needs {wanted >> 20} MiB, {RESERVE_NBYTES >> 20} of them for its calls, and "
                f"{available >> 20} are free; unload another model"
            )
        await self.functions.load(str(path), name)

    async def _list(self, request: Request) -> Response:
        return answer_json({"models": [self._described(name) for name in self.functions.names()]})

    async def _get(self, request: Request) -> Response:
        name = request.parts["model"]
        self.functions.find(name)
        return answer_json(self._described(name))

    async def _unload(self, request: Request) -> Response:
        name = request.parts["model"]
        if name not in self.functions.names():
            raise UnknownFunction(f"{name} is not loaded")
        await self.functions.remove(name)
        self._urls.pop(name, None)
        return answer_json({})

    def _described(self, name: str) -> dict[str, Any]:
        return {"modelName": name, "modelUrl": self._urls.get(name, "")}


def _is_multi(environ: Mapping[str, str]) -> bool:
    return environ.get(MULTI, "").lower() == "true"
