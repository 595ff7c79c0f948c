"""Azure Functions custom handlers: a web server beside the Functions host, which gives it the calls.

https://learn.microsoft.com/azure/azure-functions/functions-custom-handlers. Triggers come as POST
/<FunctionName> with the bindings' data; with enableProxyingHttpRequest HTTP requests come as they are,
under /api/. Whichever names function.json has, there is one function.
"""

import json
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from zerowake.adapters.calls import body_of, json_of
from zerowake.adapters.port import Capabilities, Port
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, STREAMING, Push, listening
from zerowake.adapters.routes import JSON, Passed, Request, Response, Route, answer_json
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import BadRequest
from zerowake.runtime.exchange import RequestHead
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.port import takes_requests
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.invocation import Origin
from zerowake.runtime.jsontext import parse_json

PORT = Port("FUNCTIONS_CUSTOMHANDLER_PORT", 8080)
URL_CHARACTERS = ":/?#[]@!$&'()*+,;=%"  # beside letters, digits and -._~ (RFC 3986)


class Azure(Push):
    """Answers triggers with ``ReturnValue``, HTTP triggers with the binding ``res`` as well."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="Azure Functions custom handler",
        shape="push",
        streaming=f"with enableProxyingHttpRequest: {STREAMING}",
        mid_stream_error=MID_STREAM,
        events=("every trigger of the host", *CLOUD_EVENTS),
        concurrency="as host.json says",
        request_nbytes=100 << 20,
        timeout="the plan's; 230 s over HTTP",
        start_s=60.0,
        port=PORT,
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return listening(config, environ, PORT, host="127.0.0.1")  # the host is beside us

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/{function}", self._trigger),
            Route("", "", self._proxied, early=True),
        ]

    def _proxied(self, request: Request) -> Passed | Coroutine[Any, Any, Passed]:
        if not request.path.startswith("/api/"):
            return Passed(request.path)
        return self._below_api(request)

    async def _below_api(self, request: Request) -> Passed:
        """function.json may have given the function any route here."""
        await self.functions.arrived()
        return Passed(request.path if takes_requests(self.functions, self.only()) else "/")

    async def _trigger(self, request: Request) -> Response:
        value = parse_json(await request.body())
        if (
            not isinstance(value, dict)
            or not isinstance(data := value.get("Data"), dict)
            or not data
        ):
            raise BadRequest('a trigger is {"Data": {binding: ...}, "Metadata": {...}}')
        name = self.only()
        info = self.functions.find(name)
        id_ = request.headers.get("x-azure-functions-invocationid", request.id)
        http = next((each for each in data.values() if _is_http(each)), None)
        if http is not None:
            return await self._http(info, http, id_, request.origin)
        decoded = {binding: _decoded(each) for binding, each in data.items()}
        given = next(iter(decoded.values())) if len(decoded) == 1 else decoded
        chunks = await self.caller.call(name, body_of(info, given), id_, request.origin)
        return _answer({}, json_of(info, chunks))

    async def _http(
        self, info: FunctionInfo, http: dict[str, Any], id_: str, origin: Origin
    ) -> Response:
        """An HTTP trigger's caller gets the function's status, which stands inside the answer."""
        body = http.get("Body")
        if not isinstance(body, str):
            given = b"" if body is None else json.dumps(body).encode()
        else:
            given = body.encode()
        try:
            if info.kind is Kind.HTTP:
                head, reply = await self.caller.exchange(info.name, _head(http), given, id_, origin)
                # The host's headers are an object: of several of one name it takes the last.
                return _answer({"res": _res(head.status, reply, dict(head.headers))}, b"null")
            chunks = await self.caller.call(info.name, given, id_, origin)
        except Exception as error:
            problem = problems.describe(error, f"{info.name} {id_}")
            status, headers, told = problems.reply(problem, error)
            names = {name.decode(): value.decode() for name, value in headers}
            return _answer({"res": _res(status, told, names)}, b"null")
        result = json_of(info, chunks)
        return _answer({"res": _res(200, result, {"content-type": JSON})}, result)


def _is_http(value: Any) -> bool:
    return isinstance(value, dict) and "Method" in value and "Url" in value


def _decoded(value: Any) -> Any:
    """The host gives most payloads as texts; one that is JSON is meant as that."""
    if isinstance(value, str):
        try:
            return parse_json(value.encode())
        except BadRequest:
            return value
    return value


def _res(status: int, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    return {"statusCode": status, "body": body.decode(errors="replace"), "headers": dict(headers)}


def _head(http: dict[str, Any]) -> RequestHead:
    """The request of an HTTP trigger: its headers' values are arrays. Raises BadRequest."""
    headers = http.get("Headers")
    try:
        url = urlsplit(quote(str(http["Url"]), safe=URL_CHARACTERS))
    except ValueError as error:
        raise BadRequest(f"the trigger's Url is none: {error}") from None
    return RequestHead(
        method=str(http["Method"]).upper(),
        path=f"/{url.path.removeprefix('/')}",
        query=url.query,
        headers=tuple(
            (_as_bytes(name).lower(), _as_bytes(value))
            for name, values in (headers if isinstance(headers, dict) else {}).items()
            for value in (values if isinstance(values, list) else [values])
        ),
        scheme=url.scheme or "http",
    )


def _as_bytes(text: Any) -> str:
    """As a head has it, each character a byte: the host's JSON may hold any."""
    return str(text).encode().decode("latin-1")


def _answer(outputs: dict[str, Any], result: bytes) -> Response:
    return answer_json({"Outputs": outputs, "Logs": [], "ReturnValue": json.loads(result)})
