"""Events over HTTP: what the official SDK sends is understood, and what is malformed is never run."""

import base64
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_binary_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from platforms import PUSH, PushContainer, event
from support import Reply

from zerowake.adapters import cloudevents

CONTAINER = PUSH[0]
On = Callable[..., PushContainer]


def sdk_event(data: Any, **more: Any) -> CloudEvent:
    attributes = {"id": "e-1", "source": "/tests", "type": "com.example.order"}
    return CloudEvent(attributes={**attributes, **more}, data=data)


def send(container: PushContainer, message: HTTPMessage, path: str = "/") -> Reply:
    return container.request("POST", path, message.body, dict(message.headers))


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
@pytest.mark.parametrize("path", ["/", "/invoke/batched"])
def test_an_event_of_the_sdk_is_a_call_and_its_reply_an_event(
    on: On, write: Callable[[CloudEvent], HTTPMessage], path: str
) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    extras = {"time": datetime.now(UTC), "subject": "a ü %", "datacontenttype": "application/json"}
    reply = send(container, write(sdk_event({"do": "ok"}, **extras)), path)
    assert reply.status == 200
    headers = {name.lower(): value for name, value in reply.headers.items()}
    told = from_binary_event(HTTPMessage(headers, reply.body))
    assert told.get_data() == {"did": "ok", "batch": 1}
    assert (told.get_type(), told.get_source()) == ("dev.zerowake.result", "/functions/batched")
    again = send(container, write(sdk_event({"do": "ok"}, **extras)), path)
    assert again.headers["ce-id"] == told.get_id()  # whoever gets both knows them for the same
    assert told.get_id() != "e-1"


def test_own_replies_that_come_back_are_acknowledged_and_not_run(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    before = container.count("ok")
    own = event({"do": "ok"}, source="/functions/batched", type="dev.zerowake.result")
    assert container.event(own).status == 202
    assert container.count("ok") == before


@pytest.mark.parametrize(
    "data, headers",
    [
        (b"abc", {"content-type": "application/octet-stream"}),
        (b"\xff\x00\xfe", {"content-type": "image/png"}),
        (b"abc", {"content-type": "text/plain"}),
        (b'{"a": 1}', {"content-type": "application/json"}),
        (b"abc", {}),
    ],
)
def test_bytes_reach_a_function_of_bytes(on: On, data: bytes, headers: dict[str, str]) -> None:
    container = on(CONTAINER, "zoo.py:Reverse")
    told = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", **headers}
    reply = container.request("POST", "/", data, told)
    assert (reply.status, reply.body) == (200, data[::-1])
    structured = event(None, data_base64=base64.b64encode(data).decode())
    del structured["data"]
    reply = container.event(structured)
    assert (reply.status, reply.body) == (200, data[::-1])
    batch = container.event([structured])
    assert batch.status == 200
    assert base64.b64decode(batch.json()[0]["data_base64"]) == data[::-1]


def test_a_text_is_a_value_of_json(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Once")
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    body = json.dumps({"do": "x"}).encode()
    headers["content-type"] = "application/json; charset=utf-8"
    assert container.request("POST", "/", body, headers).json() == "x"
    headers["content-type"] = "text/plain"
    refused = container.request("POST", "/", b"x", headers)
    assert refused.status == 422  # a text, where an object is wanted


def test_a_batch_is_answered_with_a_batch(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    reply = container.event([event({"do": str(i)}, id=str(i)) for i in range(5)])
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/cloudevents-batch+json"
    assert [one["data"]["did"] for one in reply.json()] == [str(i) for i in range(5)]
    assert len({one["id"] for one in reply.json()}) == 5
    assert max(one["data"]["batch"] for one in reply.json()) > 1
    assert container.event([]).json() == []


def test_a_batch_whose_failures_are_final_is_not_asked_for_again(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    reply = container.event([event({"do": "ok"}), event({"do": "refuse"}), {"id": "x"}, 5])
    assert reply.status in (400, 422)  # 4xx: a sender gives them up
    assert [error["field"] for error in reply.json()["errors"]] == ["/1", "/2", "/3"]


NO_ID = {"specversion": "1.0", "source": "/s", "type": "t", "data": {"do": "ok"}}


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("application/cloudevents+json", b""),
        ("application/cloudevents+json", b"{"),
        ("application/cloudevents+json", b"[]"),
        ("application/cloudevents+json", b"null"),
        ("application/cloudevents+json", b"\xff"),
        ("application/cloudevents+json", json.dumps(NO_ID).encode()),
        ("application/cloudevents+json", json.dumps({**NO_ID, "id": 7}).encode()),
        ("application/cloudevents+json", json.dumps({**NO_ID, "id": ""}).encode()),
        ("application/cloudevents+json", json.dumps(event(1, specversion="7.0")).encode()),
        ("application/cloudevents+json", json.dumps(event(1, specversion="0.3")).encode()),
        ("application/cloudevents+json", json.dumps(event(1, specversion=1.0)).encode()),
        ("application/cloudevents+json", json.dumps(event(1, time="yesterday")).encode()),
        ("application/cloudevents+json", json.dumps(event(1, BAD_NAME="x")).encode()),
        (
            "application/cloudevents+json",
            json.dumps({**NO_ID, "id": "1", "data_base64": "%"}).encode(),
        ),
        ("application/cloudevents-batch+json", b"{}"),
        ("application/cloudevents-batch+json", b"[1"),
        ("application/cloudevents+avro", b"x"),
    ],
)
def test_what_is_no_event_is_refused(on: On, content_type: str, body: bytes) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    before = container.count("ok")
    reply = container.request("POST", "/", body, {"content-type": content_type})
    assert reply.status == 400 and reply.json()["code"] == "bad_request"
    assert container.count("ok") == before


@pytest.mark.parametrize("missing", ["ce-id", "ce-source", "ce-type"])
def test_headers_without_a_required_attribute_are_no_event(on: On, missing: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    del headers[missing]
    reply = on(CONTAINER, "zoo.py:Batched").request("POST", "/", b'{"do": "ok"}', headers)
    assert reply.status == 400 and missing.removeprefix("ce-") in reply.json()["detail"]


@pytest.mark.parametrize("version", ["0.3", "1.1"])
def test_headers_of_another_version_are_refused(on: On, version: str) -> None:
    headers = {"ce-specversion": version, "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    reply = on(CONTAINER, "zoo.py:Batched").request("POST", "/", b'{"do": "ok"}', headers)
    assert reply.status == 400
    assert f"specversion '{version}'; wanted 1.0" in reply.json()["detail"]


def test_without_the_sdk_both_ways_to_get_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudevents.core.bindings", None)
    with pytest.raises(cloudevents.NotInstalled) as missing:
        cloudevents._sdk()
    for remedy in ("pip install 'zerowake[events]'", "zerowake bundle --with cloudevents"):
        assert remedy in str(missing.value)


def test_a_sender_that_asks_is_told_that_its_events_are_welcome(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    asked = {"WebHook-Request-Origin": "eventgrid.azure.net", "WebHook-Request-Rate": "120"}
    reply = container.request("OPTIONS", "/", headers=asked)
    assert reply.status == 200
    assert reply.headers["allow"] == "POST"
    assert reply.headers["webhook-allowed-origin"] == "eventgrid.azure.net"
    assert reply.headers["webhook-allowed-rate"] == "120"
    assert container.request("OPTIONS", "/").status == 405


def pubsub(data: bytes | None, **message: Any) -> dict[str, Any]:
    told = {"messageId": "136969346945", "publishTime": "2026-01-01T00:00:00Z", **message}
    if data is not None:
        told["data"] = base64.b64encode(data).decode()
    return {"message": told, "subscription": "projects/p/subscriptions/s", "deliveryAttempt": 1}


def test_a_pushed_message_is_unwrapped(on: On) -> None:
    container = on(CONTAINER, "zoo.py:Batched")
    headers = {"content-type": "application/json"}

    def push(body: dict[str, Any]) -> Reply:
        return container.request("POST", "/", json.dumps(body).encode(), headers)

    assert push(pubsub(b'{"do": "ok"}')).json() == {"did": "ok", "batch": 1}
    assert push(pubsub(None, attributes={"do": "attributes"})).json()["did"] == "attributes"
    assert push(pubsub(b'{"do": "raise"}')).status == 500  # comes again
    assert push(pubsub(b"not json")).status == 400
    assert push(pubsub(b"") | {"message": {"messageId": "1", "data": "%%%"}}).status == 400
    event_ = event(pubsub(b'{"do": "ok"}'), type="google.cloud.pubsub.topic.v1.messagePublished")
    assert container.event(event_).json() == {"did": "ok", "batch": 1}
