"""The operators' routes, a FastAPI app: /functions, sleep, wake, /openapi.json, /docs.

Knows no invocation. Importing FastAPI takes 300 ms, so this file is imported by the first request
that wants one of these routes, not by a gateway that is starting.
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import InvalidInput
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.openapi import document, problem_responses
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.jsontext import pointer
from zerowake.runtime.process import private_nbytes
from zerowake.snapshot.errors import ZerowakeError


class SleepOrder(BaseModel):
    """How deep a function shall sleep."""

    model_config = ConfigDict(extra="forbid")

    depth: Literal["prewarmed", "zygote", "cold"]


class Standing(BaseModel):
    """Where a function stands after the order was carried out."""

    name: str
    depth: Depth


_JSON_ORDER = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SleepOrder.model_json_schema()}},
    }
}


async def _order(request: Request) -> SleepOrder:
    """The body as JSON, whatever its content type says: ``curl -d`` calls everything a form."""
    try:
        return SleepOrder.model_validate_json(await request.body())
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from error


async def _same_origin(request: Request) -> None:
    """A page of another site must not give orders through a browser that can reach us."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise problems.CrossOrigin(f"orders are not taken from pages of {origin:.200}")


def create_control(functions: Functions, version: str, *, with_orders: bool) -> FastAPI:
    """with_orders: serve /functions and take orders, beside the documentation."""
    app = FastAPI(title="Zerowake", version=version, docs_url=None, redoc_url=None)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _docs()

    if with_orders:
        _add_orders(app, functions)

    def openapi() -> dict[str, Any]:
        control = get_openapi(title=app.title, version=version, routes=app.routes)
        return document([functions.find(name) for name in functions.names()], control, version)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
    for kind in (ZerowakeError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _tell)
    return app


def _add_orders(app: FastAPI, functions: Functions) -> None:
    @app.get("/functions", tags=["operation"], summary="The functions and their processes")
    async def list_functions() -> list[dict[str, Any]]:
        described = functions.describe()
        # In a thread: the kernel walks a process's whole memory for this, about 20 ms each.
        await asyncio.to_thread(_add_memory, described)
        return described

    @app.post(
        "/functions/{name}/sleep",
        tags=["operation"],
        summary="Put a function to sleep",
        responses=_documented(403, 404, 409, 422, 503),
        openapi_extra=_JSON_ORDER,
        dependencies=[Depends(_same_origin)],
    )
    async def sleep(name: str, order: Annotated[SleepOrder, Depends(_order)]) -> Standing:
        depth = Depth(order.depth)
        await functions.sleep(name, depth)
        return Standing(name=name, depth=depth)

    @app.post(
        "/functions/{name}/wake",
        tags=["operation"],
        summary="Wake a function",
        responses=_documented(403, 404, 422, 503),
        dependencies=[Depends(_same_origin)],
    )
    async def wake(name: str) -> Standing:
        await functions.wake(name)
        return Standing(name=name, depth=Depth.HOT)


def _docs() -> Response:
    """A page of our own: FastAPI's takes its script from a CDN, which is not there offline."""
    page = Path(__file__).with_name("docs.html").read_text("utf-8")
    inline = "'unsafe-inline'"
    policy = f"default-src 'none'; script-src {inline}; style-src {inline}; connect-src 'self'"
    policy += "; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_memory(described: list[dict[str, Any]]) -> None:
    """Unique set size plus page tables (bytes) of each process; None when it has ended."""
    for function in described:
        for entry in function["processes"]:
            entry["private_nbytes"] = private_nbytes(entry["pid"])


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {int(status): entry for status, entry in problem_responses(*statuses).items()}


async def _tell(request: Request, error: Exception) -> Response:
    """Any error of these routes as a problem."""
    path = request.url.path
    if isinstance(error, RequestValidationError):
        error = _invalid(error)
    elif isinstance(error, HTTPException):
        if error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            error = problems.MethodNotAllowed(request.method, path, allow)
        else:
            error = problems.NoSuchRoute(f"there is nothing at {path}; /docs shows what there is")
    status, headers, body = problems.reply(problems.describe(error, path), error)
    return Response(body, status, {key.decode(): value.decode() for key, value in headers})


def _invalid(error: RequestValidationError) -> InvalidInput:
    # The first step of a loc says where FastAPI looked ("body"), the rest is the path in it.
    errors = [
        {"field": pointer(tuple(found["loc"][1:])), "message": found["msg"]}
        for found in error.errors()
    ]
    return InvalidInput(
        f"the body does not fit at {errors[0]['field']!r}: {errors[0]['message']}", errors=errors
    )
