"""Events that are pushed over HTTP: CloudEvents 1.0 and Pub/Sub's messages.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md, read
with the official SDK, which is imported for the first event. A function is called with an event's
data. Any 2xx means that it has been handled; what may be tried again has 429 or 5xx, as everywhere.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zerowake.adapters.calls import decode_base64, each, json_of
from zerowake.adapters.objects import ObjectRef, Objects, of_cloud_event, of_gcs_message
from zerowake.adapters.routes import JSON, Passed, Request, Response, Route
from zerowake.runtime.errors import BadRequest, InvocationError, RemoteError
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.gateway.port import takes_requests
from zerowake.runtime.gateway.problems import describe
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.jsontext import parse_json
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    from cloudevents.core.base import BaseCloudEvent

VERSION = "1.0"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
RESULT_TYPE = "dev.zerowake.result"
PUBSUB_TYPE = "google.cloud.pubsub.topic.v1.messagePublished"  # a push message inside an event


class NotInstalled(InvocationError):
    status, code = 501, "not_installed"


@dataclass(frozen=True, slots=True)
class Event:
    """A CloudEvent. body: what the function gets, unless it gets the content of ``object``."""

    id: str
    source: str
    type: str
    body: bytes
    object: ObjectRef | None = None


class Events:
    """The routes of events, at / for the only function and at /invoke/{name}."""

    def __init__(self, caller: Caller, objects: Objects) -> None:
        self._caller = caller
        self._objects = objects

    def routes(self) -> list[Route]:
        return [Route("", "/", self._route), Route("", "/invoke/{name}", self._route)]

    def _route(self, request: Request) -> "Response | Passed | Any":
        functions = self._caller.functions
        names = [request.parts["name"]] if request.parts else functions.names()
        if len(names) == 1 and takes_requests(functions, names[0]):
            return Passed(request.path)  # it reads events itself
        if request.method == "OPTIONS" and "webhook-request-origin" in request.headers:
            return _agree(request)
        if request.method != "POST" or len(names) != 1 or functions.draining:
            return Passed(request.path)
        (name,) = names
        kind = request.content_type
        if kind == BATCH:
            return self._batch(name, request)
        if kind == STRUCTURED:
            return self._one(name, request, lambda info, body: _structured(info, body))
        if kind.startswith("application/cloudevents"):
            raise BadRequest(
                f"events come as {STRUCTURED}, as {BATCH} or in headers, not as {kind}"
            )
        if "ce-specversion" in request.headers:
            return self._one(name, request, lambda info, body: _binary(info, request.headers, body))
        # A body whose length is not told is not looked into: the platform's messages tell it.
        if kind == JSON and request.headers.get("content-length", "").isdecimal():
            return self._perhaps_message(name, request)
        return Passed(request.path)

    async def _one(
        self, name: str, request: Request, read: Callable[[FunctionInfo, bytes], Event]
    ) -> Response:
        info = self._caller.functions.find(name)
        event = read(info, await request.body())
        if _is_own(event, info):
            return Response(202)
        chunks = await self._caller.call(name, await self._body(event), event.id, request.origin)
        return _binary_reply(event, info, chunks)

    async def _body_or_why_not(self, event: Event | Exception) -> bytes | Exception:
        """One object that cannot be fetched does not take the other events along."""
        try:
            return event if isinstance(event, Exception) else await self._body(event)
        except ZerowakeError as error:
            return error

    async def _body(self, event: Event) -> bytes:
        return event.body if event.object is None else await self._objects.content(event.object)

    async def _perhaps_message(self, name: str, request: Request) -> Response | Passed:
        body = await request.body()
        message = _pubsub_message(body)
        if message is None:
            return Passed(request.path)
        info = self._caller.functions.find(name)
        id_ = str(message.get("messageId") or message.get("message_id"))
        found = of_gcs_message(message.get("attributes")) if info.raw_input else None
        data = await self._body(Event(id_, "", "", _message_data(message), found))
        chunks = await self._caller.call(name, data, id_, request.origin)
        return Response(200, json_of(info, chunks))

    async def _batch(self, name: str, request: Request) -> Response:
        """All events at once; when one fails the sender has to know, and to send all again.

        Raises the problem of one that may be tried again, if there is such a one, else of another.
        """
        info = self._caller.functions.find(name)
        values = parse_json(await request.body())
        if not isinstance(values, list):
            raise BadRequest(f"a batch of events is an array; found {type(values).__name__}")
        events = [_event_of(info, value) for value in values]
        bodies = await asyncio.gather(*map(self._body_or_why_not, events))
        results = await each(self._caller, name, bodies, request.id, request.origin)
        failed = {i: describe(r, name) for i, r in enumerate(results) if isinstance(r, Exception)}
        if failed:
            raise RemoteError(_worst(failed, values))
        replies = [
            _reply(event, info, result)
            for event, result in zip(events, results, strict=True)
            if isinstance(event, Event) and isinstance(result, list)
        ]
        return Response(200, b"[" + b",".join(map(_as_json, replies)) + b"]", BATCH)


def _agree(request: Request) -> Response:
    """Abuse protection: a sender asks whether its events are wanted.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection
    """
    told = {"allow": "POST", "webhook-allowed-origin": request.headers["webhook-request-origin"]}
    if (rate := request.headers.get("webhook-request-rate")) is not None:
        told["webhook-allowed-rate"] = rate
    return Response(200, headers=told)


# ---------------------------------------------------------------------------- reading


def _event_of(info: FunctionInfo, value: Any) -> Event | BadRequest:
    """One event of a batch, or why it is none."""
    try:
        return _structured(info, json.dumps(value).encode())
    except BadRequest as error:
        return error


def _structured(info: FunctionInfo, body: bytes) -> Event:
    http = _sdk()
    value = parse_json(body)
    if not isinstance(value, dict):
        raise BadRequest(f"an event is an object; found {type(value).__name__}")
    _require(value, "")
    if "data_base64" in value:
        decode_base64(value["data_base64"])  # the SDK's own decoder skips what is no base64
    event = _checked(
        lambda: http.from_structured_event(http.HTTPMessage({"content-type": STRUCTURED}, body))
    )
    return _read(info, event, event.get_data())


def _binary(info: FunctionInfo, headers: dict[str, str], body: bytes) -> Event:
    http = _sdk()
    _require(headers, "ce-")
    event = _checked(lambda: http.from_binary_event(http.HTTPMessage(headers, body)))
    kind = (event.get_datacontenttype() or JSON).lower()
    is_text = kind.startswith("text/") and not info.raw_input
    return _read(info, event, event.get_data() if is_text else body)


def _require(attributes: Mapping[str, Any], prefix: str) -> None:
    """The SDK makes up an id and a version where there is none; an event must bring them.

    It also reads 0.3, whose data may be encoded otherwise, and to which no reply of ours would fit.
    """
    for name in ("id", "specversion"):
        if f"{prefix}{name}" not in attributes:
            raise BadRequest(f"this is no CloudEvent: it has no {name}")
    if (version := attributes[f"{prefix}specversion"]) != VERSION:
        raise BadRequest(f"this event has specversion {version!r:.40}; wanted {VERSION}")


def _read(info: FunctionInfo, event: "BaseCloudEvent", data: Any) -> Event:
    found = None
    if event.get_type() == PUBSUB_TYPE:
        message = _pubsub_message(data if isinstance(data, bytes) else json.dumps(data).encode())
        if message is not None:
            data = _message_data(message)
            found = of_gcs_message(message.get("attributes"))
    elif info.raw_input:
        found = of_cloud_event(event.get_type(), event.get_source(), _plain(data))
    if not isinstance(data, bytes):
        if info.raw_input:
            data = data.encode() if isinstance(data, str) else b"" if data is None else data
        if not isinstance(data, bytes):
            data = json.dumps(data, ensure_ascii=False).encode()
    attributes = event.get_id(), event.get_source(), event.get_type()
    return Event(*attributes, data, found if info.raw_input else None)


def _plain(data: Any) -> Any:
    """Data as a value, where it may tell of an object: a picture need not be read as JSON."""
    if isinstance(data, bytes) and data[:1] == b"{" and b'"bucket"' in data:
        with contextlib.suppress(BadRequest):
            return parse_json(data)
    return data


def _checked(read: Callable[[], "BaseCloudEvent"]) -> "BaseCloudEvent":
    try:
        return read()
    except Exception as error:  # whatever the SDK trips over, it is in what was sent
        raise BadRequest(f"this is no CloudEvent: {' '.join(str(error).split())}") from None


def _sdk() -> Any:
    try:
        from cloudevents.core.bindings import http
    except ImportError as error:
        raise NotInstalled(
            "events need the CloudEvents SDK: pip install 'zerowake[events]', or for an image "
            f"zerowake bundle --with cloudevents ({error})"
        ) from None
    return http


def _pubsub_message(body: bytes) -> dict[str, Any] | None:
    """The message in the body of a Pub/Sub push request; None for any other body.

    https://cloud.google.com/pubsub/docs/push#receive_push
    """
    if b'"subscription"' not in body or b'"message"' not in body:
        return None
    try:
        value = parse_json(body)
    except BadRequest:
        return None  # the function's own check says what is wrong
    match value:
        case {"message": dict(message), "subscription": str(subscription)}:
            if subscription.startswith("projects/") and {"messageId", "message_id"} & set(message):
                return message
    return None


def _message_data(message: dict[str, Any]) -> bytes:
    """A message without data has attributes only."""
    if message.get("data"):
        return decode_base64(message["data"])
    return json.dumps(message.get("attributes") or {}).encode()


# ---------------------------------------------------------------------------- answering


def _is_own(event: Event, info: FunctionInfo) -> bool:
    """A broker gives replies to whoever wants all events: also to the one that has replied."""
    return event.type == RESULT_TYPE and event.source == _source(info)


def _source(info: FunctionInfo) -> str:
    return f"/functions/{info.name}"


def _reply(event: Event, info: FunctionInfo, chunks: list[bytes]) -> dict[str, Any]:
    """The result as an event. The same event has the same reply, so that a repetition is known."""
    digest = hashlib.sha256(f"{event.source}\0{event.id}\0{info.name}".encode()).hexdigest()
    return {
        "specversion": VERSION,
        "id": digest[:32],
        "source": _source(info),
        "type": RESULT_TYPE,
        "datacontenttype": "application/octet-stream" if info.raw_output else JSON,
        "data": b"".join(chunks) if info.raw_output else json_of(info, chunks),
    }


def _binary_reply(event: Event, info: FunctionInfo, chunks: list[bytes]) -> Response:
    reply = _reply(event, info, chunks)
    data, kind = reply.pop("data"), reply.pop("datacontenttype")
    return Response(200, data, kind, {f"ce-{name}": value for name, value in reply.items()})


def _as_json(reply: dict[str, Any]) -> bytes:
    import base64

    data: bytes = reply.pop("data")
    if reply["datacontenttype"] != JSON:
        return json.dumps({**reply, "data_base64": base64.b64encode(data).decode()}).encode()
    return json.dumps(reply).encode()[:-1] + b',"data":' + data + b"}"


def _worst(failed: dict[int, dict[str, Any]], values: list[Any]) -> dict[str, Any]:
    """The problem of a batch: one that may be tried again decides its status."""
    ordered = sorted(failed.values(), key=lambda problem: not _may_retry(problem["status"]))
    names = [str(v.get("id", i)) if isinstance(v, dict) else str(i) for i, v in enumerate(values)]
    told = ", ".join(names[i][:80] for i in list(failed)[:20])
    return {
        **ordered[0],
        "detail": f"{len(failed)} of {len(values)} events failed ({told}): {ordered[0]['detail']}",
        "errors": [{"field": f"/{i}", "message": p["detail"]} for i, p in failed.items()],
    }


def _may_retry(status: int) -> bool:
    return status == 429 or status >= 500
