"""``zerowake.adapters.aws.invocations``: events in, exactly one answer to each, whatever happens."""

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fake_api import LOST, RESET, Answer, FakeApi
from fake_functions import FakeFunctions, Predict, echo

from zerowake.adapters.aws import invocations, records, runtime_api
from zerowake.adapters.aws.http import PRELUDE_TYPE
from zerowake.adapters.aws.invocations import Invocations
from zerowake.adapters.aws.runtime_api import Line, RuntimeApiError
from zerowake.adapters.objects import Objects
from zerowake.runtime.errors import FunctionFailed, QueueFull
from zerowake.runtime.gateway.app import create_app
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics


class Slot:
    """One slot: it polls and answers, as the adapter's do."""

    def __init__(self, functions: FakeFunctions, *, streaming: bool) -> None:
        self.functions = functions
        self.api = FakeApi()
        metrics = Metrics()
        app = create_app(functions, metrics, max_body_nbytes=1 << 20, version="0")
        caller = Caller(functions, metrics)
        self._invocations = Invocations(
            caller, lambda: app, streaming=streaming, objects=lambda: Objects(1 << 20, None)
        )
        self.ended: asyncio.Task[None]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Slot"]:
        async with self.api.running():
            self.ended = asyncio.create_task(self._run())
            yield self
            self.ended.cancel()
            await asyncio.wait([self.ended])

    async def call(self, event: object, **told: Any) -> Answer:
        return await self.api.answer(self.api.invoke(event, **told))

    async def _run(self) -> None:
        line = Line(self.api.address)
        try:
            while True:
                await self._invocations.answer(line, await line.next())
        finally:
            line.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_api, "RETRIES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(records, "FULL_S", 0.0)


def run(
    test: Callable[[Slot], Awaitable[None]],
    predict: Predict = echo,
    *,
    streaming: bool = False,
    **known: Any,
) -> None:
    async def main() -> None:
        async with Slot(FakeFunctions(predict, **known), streaming=streaming).running() as slot:
            await test(slot)

    asyncio.run(main())


def http(method: str = "POST", path: str = "/", body: str | None = "1", **more: Any) -> Any:
    context = {"http": {"method": method, "path": path}}
    return {"version": "2.0", "rawPath": path, "requestContext": context, "body": body, **more}


def sqs(*bodies: str, group: Callable[[int], str] | None = None) -> Any:
    def record(place: int, body: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "messageId": f"m{place}",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-west-1:1:queue",
            "body": body,
            "attributes": {},
        }
        if group is not None:
            found["eventSourceARN"] += ".fifo"
            found["attributes"] = {"MessageGroupId": group(place)}
        return found

    return {"Records": list(itertools.starmap(record, enumerate(bodies)))}


def failures(answer: Answer) -> list[str]:
    assert answer.kind == "response", answer.body
    return [each["itemIdentifier"] for each in answer.json()["batchItemFailures"]]


async def counting(call: Invocation) -> None:
    """A stream of 0, 1, ... as many as the body says; of a negative one the last is an error."""
    count = int(call.body)
    for number in range(abs(count)):
        await call.sink.item(b"%d" % number)
    if count < 0:
        raise ValueError("it is over")


async def picky(call: Invocation) -> None:
    if call.body == b'"bad"':
        raise ValueError("this one is bad")
    await call.sink.item(call.body)


# ---------------------------------------------------------------------------- exactly one answer


KINDS = [
    (1, "response"),
    ("bad", "error"),
    (http(), "response"),
    (sqs("1", '"bad"'), "response"),
    (sqs('"bad"'), "error"),
]


@pytest.mark.parametrize("fault", [400, 403, 413, RESET, LOST])
@pytest.mark.parametrize(("event", "verb"), KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_next_one_is_answered_after_any_fault(
    event: object, verb: str, fault: int | str, streaming: bool
) -> None:
    async def test(slot: Slot) -> None:
        slot.api.faults = {verb: [fault]}
        first = slot.api.invoke(event)
        second = await slot.call("fine")
        assert second.body == b'"fine"'
        if fault in (RESET, LOST):  # none is lost, and the API has taken none twice
            assert slot.api.answers[first].complete
        tries = slot.api.requests.count("response") + slot.api.requests.count("error")
        assert tries <= 3  # the fault's and one more for the first, one for the second

    run(test, picky, streaming=streaming)


@pytest.mark.parametrize(("event", "verb"), KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_an_api_that_breaks_is_the_end(event: object, verb: str, streaming: bool) -> None:
    async def test(slot: Slot) -> None:
        slot.api.faults = {verb: [500]}
        slot.api.invoke(event)
        await asyncio.wait([slot.ended])
        assert isinstance(slot.ended.exception(), RuntimeApiError)
        answers = [verb for verb in slot.api.requests if verb in ("response", "error")]
        assert len(answers) == 1

    run(test, picky, streaming=streaming)


def test_an_answer_that_is_too_large_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocations, "RESPONSE_NBYTES", 1000)

    async def test(slot: Slot) -> None:
        answer = await slot.call("x" * 1000)
        assert (answer.kind, answer.json()["errorType"]) == ("error", "Function.AnswerTooLarge")
        answer = await slot.call(http(body='"' + "x" * 1000 + '"'))
        assert (answer.kind, answer.json()["statusCode"]) == ("response", 502)
        slot.api.faults = {"response": [413]}  # the platform's limit may be another one
        answer = await slot.call("x")
        assert (answer.kind, answer.json()["errorType"]) == ("error", "Function.AnswerTooLarge")

    run(test)


# ---------------------------------------------------------------------------- deadlines


async def hanging(call: Invocation) -> None:
    await asyncio.Event().wait()


def test_a_deadline_ends_the_wait_with_an_answer() -> None:
    async def test(slot: Slot) -> None:
        answer = await slot.call(1, left_s=0)
        assert answer.json()["errorType"] == "Function.PredictTimeout"
        answer = await slot.call(http(), left_s=0)
        assert answer.json()["statusCode"] == 504
        answer = await slot.call(sqs("1", "2"), left_s=0)
        assert answer.json()["errorType"] == "Function.PredictTimeout"
        assert slot.functions.calls == slot.functions.cancelled

    run(test, hanging)


def test_records_that_are_done_by_the_deadline_are_done() -> None:
    async def first_hangs(call: Invocation) -> None:
        if call.body == b"1":
            await asyncio.Event().wait()

    async def test(slot: Slot) -> None:
        answer = await slot.call(sqs("1", "2", "3"), left_s=invocations.MARGIN_S + 0.2)
        assert failures(answer) == ["m0"]
        assert [call.body for call in slot.functions.cancelled] == [b"1"]

    run(test, first_hangs)


def test_a_stream_ends_at_its_deadline_in_trailers() -> None:
    async def forever(call: Invocation) -> None:
        await call.sink.item(b"0")
        await asyncio.Event().wait()

    async def test(slot: Slot) -> None:
        answer = await slot.call(1, left_s=invocations.MARGIN_S + 0.2)
        assert answer.body == b"0\n"
        assert trailer(answer)["errorType"] == "Function.PredictTimeout"
        assert len(slot.functions.cancelled) == 1

    run(test, forever, streaming=True, kind="stream")


# ---------------------------------------------------------------------------- chunks


def trailer(answer: Answer) -> Any:
    return json.loads(base64.b64decode(answer.trailers["lambda-runtime-function-error-body"]))


def test_each_chunk_goes_out_when_it_is_there() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def gated(call: Invocation) -> None:
        for number, gate in enumerate(gates):
            await gate.wait()
            await call.sink.item(b"%d" % number)

    async def test(slot: Slot) -> None:
        id_ = slot.api.invoke(1)
        for place, gate in enumerate(gates):
            gate.set()
            assert (await slot.api.chunks(id_, place + 1))[-1] == b"%d\n" % place
        answer = await slot.api.answer(id_)
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.trailers == {}

    run(test, gated, streaming=True, kind="stream")


def test_a_request_gets_a_prelude_and_then_the_body() -> None:
    async def test(slot: Slot) -> None:
        answer = await slot.call(http(body="2"))
        head, _, body = answer.body.partition(bytes(8))
        assert json.loads(head)["statusCode"] == 200
        assert "content-length" not in json.loads(head)["headers"]
        assert body == b"0\n1\n"
        assert answer.headers["content-type"] == PRELUDE_TYPE
        answer = await slot.call(http(body="no number"))
        head, _, body = answer.body.partition(bytes(8))
        assert json.loads(head)["statusCode"] == json.loads(body)["status"] == 400
        assert answer.trailers == {}

    run(test, counting, streaming=True, kind="stream")


def test_an_error_in_mid_stream_stands_in_the_trailers() -> None:
    async def test(slot: Slot) -> None:
        for event in (-2, http(body="-2")):
            answer = await slot.call(event)
            assert answer.body.endswith(b"0\n1\n")
            assert trailer(answer)["errorMessage"] == "ValueError: it is over"

    run(test, counting, streaming=True, kind="stream")


def test_an_error_before_the_first_chunk_is_no_stream() -> None:
    async def test(slot: Slot) -> None:
        slot.functions.refusals = [FunctionFailed("it does not run")] * 2
        answer = await slot.call(1)
        assert (answer.kind, answer.json()["errorType"]) == ("error", "Function.FunctionFailed")
        answer = await slot.call(http())
        assert json.loads(answer.body.partition(bytes(8))[0])["statusCode"] == 503

    run(test, counting, streaming=True, kind="stream")


def test_a_reader_that_leaves_gives_the_call_up() -> None:
    gate = asyncio.Event()

    async def slow(call: Invocation) -> None:
        await call.sink.item(b"0")
        if len(call.body) == 1:
            await gate.wait()

    async def test(slot: Slot) -> None:
        for event in (1, http()):
            id_ = slot.api.invoke(event)
            await slot.api.chunks(id_, 1)
            slot.api.answers[id_].leave()
            answer = await slot.call(22)  # the slot is free again
            assert answer.body == b"0\n"
            assert slot.api.refused.count(id_) == 1  # our word that it was given up came second
        assert [call.body for call in slot.functions.cancelled] == [b"1", b"1"]

    run(test, slow, streaming=True, kind="stream")


# ---------------------------------------------------------------------------- requests and values


def test_a_stream_in_one_piece_where_nobody_asked_for_chunks() -> None:
    async def test(slot: Slot) -> None:
        answer = await slot.call(3)
        assert answer.json() == [0, 1, 2]
        assert (await slot.call(-3)).json()["errorMessage"] == "ValueError: it is over"
        assert json.loads((await slot.call(http(body="2"))).json()["body"].split()[0]) == 0

    run(test, counting, kind="stream")


def test_a_request_that_cannot_be_read_gets_a_reply() -> None:
    async def test(slot: Slot) -> None:
        reply = (await slot.call(http(body="%%%", isBase64Encoded=True))).json()
        assert reply["statusCode"] == 400
        assert "base64" in json.loads(reply["body"])["detail"]
        assert (await slot.call(http("GET", "/nowhere/livez"))).json()["statusCode"] == 404
        reply = (await slot.call(http("HEAD", "/livez", None))).json()
        assert (reply["statusCode"], reply["body"]) == (200, "")
        assert (await slot.call(http("PUT"))).json()["statusCode"] == 405

    run(test)


# ---------------------------------------------------------------------------- records


def test_records_fail_alone() -> None:
    async def test(slot: Slot) -> None:
        assert failures(await slot.call(sqs("1", '"bad"', "3", "no JSON"))) == ["m1", "m3"]
        assert failures(await slot.call(sqs("1"))) == []
        answer = await slot.call(sqs('"bad"', '"bad"'))  # all: as powertools' BatchProcessor
        assert answer.json()["errorMessage"] == "ValueError: this one is bad"

    run(test, picky)


def test_a_queue_keeps_the_order_of_each_group() -> None:
    async def test(slot: Slot) -> None:
        bodies = ["1", '"bad"', "3", "4", "5", "6"]
        answer = await slot.call(sqs(*bodies, group=lambda place: "ab"[place % 2]))
        assert failures(answer) == ["m1", "m3", "m5"]  # what follows the bad one in its group
        run_for = [call.body for call in slot.functions.calls]
        assert [body for body in run_for if body in (b"1", b"3", b"5")] == [b"1", b"3", b"5"]
        assert b"4" not in run_for

    run(test, picky)


def test_a_stream_goes_on_from_its_lowest_failure() -> None:
    def record(place: int, value: str) -> dict[str, Any]:
        data = base64.b64encode(value.encode()).decode()
        kinesis = {"sequenceNumber": f"{place}", "data": data}
        return {"eventSource": "aws:kinesis", "kinesis": kinesis}

    async def test(slot: Slot) -> None:
        told = [record(place, '"bad"' if place in (2, 4) else "1") for place in range(6)]
        assert failures(await slot.call({"Records": told})) == ["2"]

    run(test, picky)


def kinesis_records(*told: tuple[str, str, str]) -> dict[str, Any]:
    """(shard, partition key, value) of each."""
    return {
        "Records": [
            {
                "eventSource": "aws:kinesis",
                "eventID": f"{shard}:{place}",
                "kinesis": {
                    "sequenceNumber": f"{place}",
                    "partitionKey": key,
                    "data": base64.b64encode(value.encode()).decode(),
                },
            }
            for place, (shard, key, value) in enumerate(told)
        ]
    }


def test_records_of_one_key_run_in_order_and_others_beside_them() -> None:
    running: dict[bytes, int] = {}
    together = 0

    async def watched(call: Invocation) -> None:
        nonlocal together
        key = call.body[:2]
        assert not running.get(key), "two of one key at once"
        running[key] = 1
        together = max(together, sum(running.values()))
        for _ in range(5):
            await asyncio.sleep(0)
        running[key] = 0
        await call.sink.item(b"1")

    async def test(slot: Slot) -> None:
        told = [("s-0", f"k{place % 3}", f'"{place % 3}-{place}"') for place in range(12)]
        assert failures(await slot.call(kinesis_records(*told))) == []
        ran = [call.body.decode() for call in slot.functions.calls]
        for key in range(3):
            own = [body for body in ran if body.startswith(f'"{key}-')]
            assert own == [value for _, _, value in told if value.startswith(f'"{key}-')]
        assert together == 3

    run(test, watched)


def test_after_a_failure_nothing_more_of_its_shard_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "AT_ONCE", 2)

    async def test(slot: Slot) -> None:
        told = [("s-0", f"k{place}", '"bad"' if place == 3 else f"{place}") for place in range(9)]
        told += [("s-1", f"k{place}", f"1{place}") for place in range(3)]
        assert failures(await slot.call(kinesis_records(*told))) == ["3"]
        ran = [call.body for call in slot.functions.calls]
        assert ran[:4] == [b"0", b"1", b"2", b'"bad"']
        assert not {b"6", b"7", b"8"} & set(ran)  # 4 may have begun beside it
        assert ran[-3:] == [b"10", b"11", b"12"]  # the other shard

    run(test, picky)


def test_what_comes_before_a_failure_in_its_shard_still_runs() -> None:
    """So that the stream goes on from there and not from further back."""

    async def slow(call: Invocation) -> None:
        await asyncio.sleep(0)
        await picky(call)

    async def test(slot: Slot) -> None:
        told = [("s-0", "a", "0"), ("s-0", "a", "1"), ("s-0", "b", '"bad"'), ("s-0", "a", "3")]
        assert failures(await slot.call(kinesis_records(*told))) == ["2"]
        ran = {call.body for call in slot.functions.calls}
        assert ran == {b"0", b"1", b'"bad"'}

    run(test, slow)


def test_sources_that_take_no_ids_get_an_error() -> None:
    async def test(slot: Slot) -> None:
        event = {"detail-type": "t", "source": "s", "detail": "bad", "id": "i"}
        answer = await slot.call(event)
        assert answer.json()["errorMessage"] == "ValueError: this one is bad"
        kafka = {"eventSource": "aws:kafka", "records": {"t-0": [{"value": "MQ==", "offset": 1}]}}
        assert (await slot.call(kafka)).json() is None

    run(test, picky)


def sns(*messages: str) -> Any:
    return {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": each}} for each in messages]}


def test_results_for_the_destinations_of_asynchronous_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(slot: Slot) -> None:
        assert (await slot.call(sns("1", "2"))).json() == [1, 2]
        event = {"detail-type": "t", "source": "s", "detail": {"a": 1}, "id": "i"}
        assert (await slot.call(event)).json() == [{"a": 1}]
        monkeypatch.setattr(records, "RESPONSE_NBYTES", 100)
        assert (await slot.call(sns('"' + "x" * 100 + '"'))).json() is None  # done all the same

    run(test)

    async def raw(slot: Slot) -> None:
        assert (await slot.call(sns("ab", "c"))).json() == ["YWI=", "Yw=="]

    run(raw, raw_input=True, raw_output=True)

    async def stream(slot: Slot) -> None:
        assert (await slot.call(sns("3"))).json() == [[0, 1, 2]]

    run(stream, counting, kind="stream")


def test_more_records_than_the_queue_holds() -> None:
    async def test(slot: Slot) -> None:
        slot.functions.refusals = [QueueFull("full")] * 500
        assert failures(await slot.call(sqs(*["1"] * 1000))) == []
        assert len(slot.functions.calls) == 1000

    run(test)
