"""Several items of one request or event as calls of one function, and values to and from its bodies.

Calls of one request are made at once, so that they run as batches of the model. Knows no HTTP.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from zerowake.runtime.errors import BadRequest, BadResult, RemoteError
from zerowake.runtime.exchange import encoded
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.gateway.problems import describe
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.invocation import NOWHERE, Origin
from zerowake.runtime.jsontext import encode_json, parse_json

AT_ONCE = 256  # calls of one request or event in the queue, which is shared with others


async def each(
    caller: Caller,
    name: str,
    bodies: Sequence[bytes | Exception],
    given_id: str = "",
    origin: Origin = NOWHERE,
) -> list[list[bytes] | Exception]:
    """Call the function with each body; results as of ``Caller.call``, errors in their places.

    An error among ``bodies`` stays where it is: an item that is malformed does not take the others
    along. Cancelling it cancels all calls.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one(place: int, body: bytes | Exception) -> list[bytes] | Exception:
        if isinstance(body, Exception):
            return body
        async with room:
            try:
                id_ = f"{given_id}-{place}" if given_id else ""
                return await caller.call(name, body, id_, origin)
            except Exception as error:
                return error

    return list(await asyncio.gather(*(one(i, body) for i, body in enumerate(bodies))))


def all_or_first_error(results: Sequence[list[bytes] | Exception], what: str) -> list[list[bytes]]:
    """The results. Raises the error of the first item that has one, which it calls ``what`` i."""
    for place, result in enumerate(results):
        if isinstance(result, Exception):
            problem = describe(result, f"{what} {place}")
            more = sum(isinstance(other, Exception) for other in results) - 1
            others = f" ({more} more of {len(results)} failed)" if more else ""
            raise RemoteError({**problem, "detail": f"{what} {place}: {problem['detail']}{others}"})
    return [result for result in results if not isinstance(result, Exception)]


def instances(value: Any) -> list[Any]:
    """The instances of a Vertex or KServe v1 request, each with its parameters. Raises BadRequest."""
    found = value.get("instances") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise BadRequest('a request is {"instances": [...], "parameters": {...}}')
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters is a {type(parameters).__name__}; wanted an object")
    if not parameters:
        return found
    if not all(isinstance(instance, dict) for instance in found):
        raise BadRequest("parameters are fields of every instance, so instances must be objects")
    return [{**parameters, **instance} for instance in found]


def body_of(info: FunctionInfo, value: Any) -> bytes:
    """The body that calls the function with a value of JSON. Raises BadRequest.

    A function that takes bytes gets those of ``{"b64": ...}``, or of a text.
    """
    if not info.raw_input:
        try:
            return encode_json(value)
        except BadResult:  # of a value that was JSON
            raise BadRequest("the values are nested too deeply") from None
    match value:
        case str():
            return value.encode()
        case {"b64": str(text)} if len(value) == 1:
            return decode_base64(text)
    raise BadRequest(f'{info.name} takes bytes: a text, or {{"b64": base64 text}}')


def json_of(info: FunctionInfo, chunks: list[bytes]) -> bytes:
    """A result as JSON text: a stream as the array of its items, bytes as ``{"b64": ...}``."""
    if info.raw_output:
        return json.dumps(encoded(b"".join(chunks))).encode()
    if info.kind is Kind.STREAM:
        return b"[" + b",".join(chunks) + b"]"
    return b"".join(chunks)


def value_of(info: FunctionInfo, chunks: list[bytes]) -> Any:
    """A result as a value of JSON."""
    return parse_json(json_of(info, chunks), "the result")


def decode_base64(text: Any) -> bytes:
    """Raises BadRequest."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadRequest(f"there is base64 that does not decode: {error}") from None
