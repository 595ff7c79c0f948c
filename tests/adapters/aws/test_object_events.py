"""S3's events on Lambda: the content, from a real server, for a function that takes bytes."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from emulator import Emulator
from stores import BUCKET, S3
from test_invocations import Slot, run

from zerowake.runtime.invocation import Invocation


def s3_event(*records: dict[str, Any]) -> dict[str, Any]:
    return {"Records": list(records)}


def record(key: str, **told: Any) -> dict[str, Any]:
    return {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": BUCKET}, "object": {"key": key, **told}},
    }


async def reverse(call: Invocation) -> None:
    await call.sink.item(call.body[::-1])


def test_the_content_is_the_input(s3: S3) -> None:
    told = s3.direct.put_object(Bucket=BUCKET, Key="in/a b", Body=b"abc")
    one = record("in/a+b", size=3, eTag=told["ETag"].strip('"'))
    detail = {"bucket": {"name": BUCKET}, "object": {"key": "in/a b", "size": 3}}
    bridge = {"id": "1", "detail-type": "Object Created", "source": "aws.s3", "detail": detail}

    async def test(slot: Slot) -> None:
        wanted = [base64.b64encode(b"cba").decode()]
        assert (await slot.call(s3_event(one))).json() == wanted
        assert (await slot.call(bridge)).json() == wanted

    run(test, reverse, raw_input=True, raw_output=True)


def test_a_function_of_json_gets_the_record(s3: S3) -> None:
    one = record("in/a+b", size=3, eTag="e")

    async def test(slot: Slot) -> None:
        before = s3.proxy.connections
        assert (await slot.call(s3_event(one))).json() == [one]
        assert s3.proxy.connections == before

    run(test)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (record("nothing", size=3, eTag="e"), "NotInStore"),
        (record("here", size=3, eTag="0" * 32), "StoreChanged"),
        (record("here", size=(1 << 20) + 1, eTag="e"), "BodyTooLarge"),
        ({**record("here"), "eventName": "ObjectRemoved:Delete"}, "BadRequest"),
    ],
)
def test_one_that_cannot_be_fetched_fails_with_the_cause_and_takes_no_other_along(
    s3: S3, told: dict[str, Any], code: str
) -> None:
    put = s3.direct.put_object(Bucket=BUCKET, Key="here", Body=b"abc")
    fine = record("here", size=3, eTag=put["ETag"].strip('"'))

    async def test(slot: Slot) -> None:
        answer = await slot.call(s3_event(told, fine))
        assert answer.json()["errorType"] == f"Function.{code}"
        assert [call.body for call in slot.functions.calls] == [b"abc"]  # the other has run

    run(test, reverse, raw_input=True, raw_output=True)


def test_an_object_that_does_not_come_ends_at_the_deadline(s3: S3) -> None:
    s3.proxy.dead = True

    async def test(slot: Slot) -> None:
        answer = await slot.call(s3_event(record("k", size=3, eTag="e")), left_s=0.3)
        assert answer.json()["errorType"] == "Function.PredictTimeout"

    run(test, reverse, raw_input=True, raw_output=True)


def test_on_the_emulator(s3: S3, emulate: Callable[..., Emulator]) -> None:
    put = s3.direct.put_object(Bucket=BUCKET, Key="in/a b", Body=b"abc")
    event = s3_event(record("in/a+b", size=3, eTag=put["ETag"].strip('"')))
    environment = emulate("zoo.py:Reverse")
    reply = environment.invoke(json.dumps(event).encode())
    assert reply.json() == [base64.b64encode(b"cba").decode()]
