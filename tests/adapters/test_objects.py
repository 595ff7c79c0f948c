"""Content of objects that events tell of, from a real S3 server, and over the routes of events."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote_plus

import pytest
from platforms import PUSH, PushContainer, event
from stores import BUCKET, S3

from zerowake.adapters.objects import (
    ObjectNotAllowed,
    ObjectRef,
    Objects,
    allowed,
    of_cloud_event,
    of_gcs_message,
    of_s3_detail,
    of_s3_record,
)
from zerowake.runtime.errors import BadRequest, ConfigError, TooLarge
from zerowake.snapshot.errors import NotInStore, StoreChanged, StoreDenied

MB = 1_000_000
STORE = f"s3://{BUCKET}"


def put(s3: S3, key: str, data: bytes) -> dict[str, Any]:
    """The record of its notification."""
    told = s3.direct.put_object(Bucket=BUCKET, Key=key, Body=data)
    return record(key, size=len(data), eTag=told["ETag"].strip('"'))


def record(key: str, name: str = "ObjectCreated:Put", **told: Any) -> dict[str, Any]:
    return {
        "eventSource": "aws:s3",
        "eventName": name,
        "s3": {"bucket": {"name": BUCKET}, "object": {"key": quote_plus(key, safe="/"), **told}},
    }


def content(found: ObjectRef | None, limit_nbytes: int = 100 * MB, **more: Any) -> bytes:
    assert found is not None
    return asyncio.run(Objects(limit_nbytes, more.get("allowed")).content(found))


# ---------------------------------------------------------------------------- what events say


def test_keys_of_notifications_are_encoded_and_those_of_eventbridge_are_not() -> None:
    found = of_s3_record(record("a b+c/ü%.png", size=3, eTag="e", versionId="v"))
    assert found == ObjectRef(STORE, "a b+c/ü%.png", '"e"', "v", 3)
    detail = {"bucket": {"name": BUCKET}, "object": {"key": "a+b", "etag": "e", "size": 3}}
    assert of_s3_detail("Object Created", detail) == ObjectRef(STORE, "a+b", '"e"', nbytes=3)
    assert of_s3_detail("Object Deleted", detail) == ObjectRef(
        STORE, "a+b", '"e"', nbytes=3, removed=True
    )


@pytest.mark.parametrize("value", [{}, {"s3": 1}, {"s3": {"bucket": {"name": 1}, "object": {}}}])
def test_what_tells_of_no_object(value: dict[str, Any]) -> None:
    assert of_s3_record(value) is None
    assert of_s3_detail("Object Created", value) is None
    assert of_cloud_event("com.amazonaws.s3.ObjectCreated:Put", "s", value) is None
    assert of_cloud_event("google.cloud.storage.object.v1.finalized", "s", value) is None
    assert of_cloud_event("com.example.order", "aws.s3", value) is None
    assert of_cloud_event("t", "s", [value]) is None
    assert of_gcs_message(value) is None


def test_sizes_that_are_none_are_not_believed() -> None:
    for size in (True, -1, "3", None, 1.5):
        assert of_s3_record(record("k", size=size)) == ObjectRef(STORE, "k")


def test_cloud_events_and_pubsub_messages() -> None:
    one = record("k", size=3, eTag="e")
    wanted = ObjectRef(STORE, "k", '"e"', nbytes=3)
    assert of_cloud_event("com.amazonaws.s3.ObjectCreated:Put", "aws:s3.r.b", one) == wanted
    detail = {"bucket": {"name": BUCKET}, "object": {"key": "k", "etag": "e", "size": 3}}
    bridge = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
    assert of_cloud_event("anything", "/bridge", bridge) == wanted
    assert of_cloud_event("Object Created", "aws.s3", detail) == wanted
    gcs = {"bucket": "b", "name": "a+b", "generation": 12}
    type_ = "google.cloud.storage.object.v1."
    assert of_cloud_event(f"{type_}finalized", "/s", gcs) == ObjectRef("gs://b", "a+b", "12")
    deleted = of_cloud_event(f"{type_}deleted", "/s", gcs)
    assert deleted is not None and deleted.removed
    attributes = {"bucketId": "b", "objectId": "a+b", "objectGeneration": "12"}
    found = of_gcs_message({"eventType": "OBJECT_FINALIZE", **attributes})
    assert found == ObjectRef("gs://b", "a+b", "12")
    assert of_gcs_message({"eventType": "order", **attributes}) is None


def test_what_may_be_fetched_is_named() -> None:
    assert allowed({}) is None
    assert allowed({"ZEROWAKE_OBJECTS": "s3://a, gs://b/in"}) == ("s3://a", "gs://b/in")
    for wrong in ("uploads", "s3://a nonsense", "S3://a", "s3:/a"):
        with pytest.raises(ConfigError, match=r"ZEROWAKE_OBJECTS names .* wanted URLs of buckets"):
            allowed({"ZEROWAKE_OBJECTS": wrong})
    for url in ("s3://ab", "s3://a", "gs://b/other"):
        store, _, key = url.rpartition("/")
        with pytest.raises(ObjectNotAllowed, match="ZEROWAKE_OBJECTS"):
            content(ObjectRef(store, key or "k"), allowed=("s3://a", "gs://b/in"))


# ---------------------------------------------------------------------------- from the server


@pytest.mark.parametrize("nbytes", [0, 1, 5, 40 * MB])
@pytest.mark.parametrize("key", ["in/a b+c.png", "ü%20/=&?#x"])
def test_the_bytes_are_those_of_the_object(s3: S3, key: str, nbytes: int) -> None:
    data = (bytes(range(256)) * (nbytes // 256 + 1))[:nbytes]
    assert content(of_s3_record(put(s3, key, data))) == data
    plain = ObjectRef(STORE, key)  # neither its size nor its version are told
    assert content(plain) == data


def test_parts_are_read_side_by_side_over_a_network_that_cuts_off(s3: S3) -> None:
    found = of_s3_record(put(s3, "big", bytes(40 * MB)))
    s3.proxy.reset()
    s3.proxy.cut_after, s3.proxy.cuts = 3 * MB, 4
    assert content(found) == bytes(40 * MB)
    assert not s3.proxy.cuts
    assert s3.proxy.connections > 4


def test_each_failure_has_its_cause(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_s3_record(put(s3, "k", b"old"))
    with pytest.raises(TooLarge, match="3 bytes, and a call takes 2"):
        content(old, limit_nbytes=2)
    put(s3, "k", b"new")
    with pytest.raises(StoreChanged, match="another event"):
        content(old)
    with pytest.raises(StoreChanged):
        content(replace(old, nbytes=-1) if old else None)
    with pytest.raises(NotInStore, match="not there"):
        content(of_s3_record(record("nothing", size=3, eTag="e")))
    with pytest.raises(BadRequest, match="was removed"):
        content(of_s3_record(record("k", "ObjectRemoved:Delete")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreDenied, match="s3:GetObject"):
        content(old)


def test_a_version_that_is_kept_is_still_read_when_there_is_a_newer_one(s3: S3) -> None:
    s3.direct.create_bucket(Bucket="versions")
    enabled = {"Status": "Enabled"}
    s3.direct.put_bucket_versioning(Bucket="versions", VersioningConfiguration=enabled)
    first = s3.direct.put_object(Bucket="versions", Key="k", Body=b"first")
    s3.direct.put_object(Bucket="versions", Key="k", Body=b"the second")
    told = ObjectRef("s3://versions", "k", first["ETag"], first["VersionId"], 5)
    assert content(told) == b"first"


def test_the_loop_goes_on_meanwhile_and_one_who_leaves_ends_the_fetch(s3: S3) -> None:
    found = of_s3_record(put(s3, "slow", bytes(2 * MB)))
    assert found is not None
    s3.proxy.dead = True
    before = threading.active_count()

    async def main() -> None:
        fetch = asyncio.create_task(Objects(100 * MB, None).content(found))
        while not s3.proxy.connections:
            await asyncio.sleep(0.01)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch

    asyncio.run(main())  # waits for its threads
    seen = s3.proxy.connections
    assert threading.active_count() < before + 20
    assert s3.proxy.connections == seen < 6  # it has not used up its tries


# ---------------------------------------------------------------------------- over HTTP

Start = Callable[..., PushContainer]


def s3_event(one: dict[str, Any], **more: Any) -> dict[str, Any]:
    kind = f"com.amazonaws.s3.{one['eventName']}"
    return event(one, type=kind, source="aws:s3.us-east-1.snapshots", **more)


def test_cloud_events(s3: S3, start: Start) -> None:
    container = start(PUSH[0], "zoo.py:Reverse", ZEROWAKE_OBJECTS=STORE).until_ready()
    one = put(s3, "in/a b.txt", b"abc")
    reply = container.event(s3_event(one))
    assert (reply.status, reply.body) == (200, b"cba"), reply.body
    binary = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "aws:s3",
        "ce-type": "com.amazonaws.s3.ObjectCreated:Put",
        "content-type": "application/json",
    }
    reply = container.request("POST", "/", json.dumps(one).encode(), binary)
    assert (reply.status, reply.body) == (200, b"cba")
    detail = {"bucket": {"name": BUCKET}, "object": {"key": "in/a b.txt", "size": 3}}
    reply = container.event(event(detail, type="Object Created", source="aws.s3"))
    assert (reply.status, reply.body) == (200, b"cba")

    assert container.event([s3_event(one), s3_event(one, id="e2")]).status == 200
    missing = s3_event(record("nothing", size=1, eTag="e"), id="e3")
    reply = container.event([s3_event(one), missing])
    assert (reply.status, reply.json()["code"]) == (404, "not_in_store")
    assert "1 of 2 events failed (e3)" in reply.json()["detail"]

    other = of_other_bucket(one)
    reply = container.event(s3_event(other))
    assert (reply.status, reply.json()["code"]) == (403, "object_not_allowed")

    attributes = {"eventType": "OBJECT_FINALIZE", "bucketId": "elsewhere", "objectId": "k"}
    message = {"messageId": "1", "attributes": attributes, "data": base64.b64encode(b"{}").decode()}
    pushed = {"message": message, "subscription": "projects/p/subscriptions/s"}
    told = {"content-type": "application/json"}
    reply = container.request("POST", "/", json.dumps(pushed).encode(), told)
    assert (reply.status, reply.json()["code"]) == (403, "object_not_allowed")


def of_other_bucket(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "s3": {**one["s3"], "bucket": {"name": "private"}}}


def test_nothing_is_fetched_unless_the_operator_has_named_it(s3: S3, start: Start) -> None:
    container = start(PUSH[0], "zoo.py:Reverse").until_ready()
    reply = container.event(s3_event(put(s3, "k", b"abc")))
    assert (reply.status, reply.json()["code"]) == (403, "object_not_allowed")
    assert "name its bucket in ZEROWAKE_OBJECTS" in reply.json()["detail"]
    other = event(None, data_base64=base64.b64encode(b'{"bucket": 1}').decode())
    assert container.event(other).status == 200


def test_a_function_of_json_gets_what_the_event_says(s3: S3, start: Start) -> None:
    container = start(PUSH[0], "zoo.py:Echo").until_ready()
    one = put(s3, "k", b"abc")
    before = s3.proxy.connections
    reply = container.event(s3_event({**one, "value": "it"}))
    assert reply.json() == {"echo": "it"} or reply.status == 422, reply.body
    assert s3.proxy.connections == before
