"""What every platform can rely on, asked of each adapter on a real process in its environment."""

import http.client
import json
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from platforms import PULL, PUSH, Answer, Platform, PullPlatform, PushContainer, PushPlatform, event
from support import PATIENCE_S

from zerowake.adapters import KNOWN, find

LARGE_NBYTES = 1 << 20  # which every platform takes, and gives back
Start = Callable[..., Any]  # a container of the platform's kind
BATCHED, COUNT, ONCE = "zoo.py:Batched", "zoo.py:Count", "zoo.py:Once"

of_several_items = pytest.mark.parametrize(
    "platform", [each for each in PUSH if each.many], ids=lambda platform: platform.name
)
of_events = pytest.mark.parametrize(
    "pull", [each for each in PULL if each.events], ids=lambda pull: pull.name
)


def total(container: PushContainer, metric: str) -> float:
    lines = container.request("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def until_running(container: PushContainer, gate: Path) -> "Future[Answer]":
    """A call that has begun, and runs until ``gate`` is there."""
    before = total(container, "zerowake_batch_size_sum")
    call = container.callers.submit(container.call, {"do": f"gate:{gate}"})
    container.until(lambda: total(container, "zerowake_batch_size_sum") > before)
    return call


def until_queued(container: PushContainer, values: list[dict[str, str]]) -> "list[Future[Answer]]":
    """Calls that wait behind the one that runs."""
    calls = [container.callers.submit(container.call, value) for value in values]
    container.until(lambda: total(container, "zerowake_queued") == len(values))
    return calls


# ---------------------------------------------------------------------------- requests


def test_a_request_is_answered_with_the_result(anywhere: Platform, on: Start) -> None:
    answer = on(anywhere, BATCHED).call({"do": "ok"})
    assert answer == Answer(200, {"did": "ok", "batch": 1})


def test_a_large_call_comes_and_goes_whole(anywhere: Platform, on: Start) -> None:
    text = "0123456789abcdef" * (LARGE_NBYTES // 16)
    assert on(anywhere, ONCE).call({"do": text}) == Answer(200, text)


@pytest.mark.parametrize(
    "do, status, said",
    [("refuse", 422, "not acceptable"), ("raise", 500, "this item is bad"), (5, 422, "")],
)
def test_an_error_has_its_status_and_says_why(
    anywhere: Platform, on: Start, do: object, status: int, said: str
) -> None:
    answer = on(anywhere, BATCHED).call({"do": do})
    assert answer.status == status and said in answer.error and answer.error


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b"\xff\xfe", b"[]", b"null", b"{}", b'{"instances": 5}']
)
def test_a_malformed_request_is_the_callers_fault(
    platform: PushPlatform, on: Start, body: bytes
) -> None:
    container = on(platform, BATCHED)
    path = platform.path(container.function_name)
    reply = container.request("POST", path, body, {"content-type": "application/json"})
    assert reply.status in (400, 422), reply.body
    assert platform.error(reply.json())


@of_several_items
def test_items_of_one_request_are_answered_in_order(platform: PushPlatform, on: Start) -> None:
    answer = on(platform, BATCHED).many([{"do": str(i)} for i in range(6)])
    assert answer.status == 200
    assert [item["did"] for item in answer.value] == [str(i) for i in range(6)]
    assert max(item["batch"] for item in answer.value) > 1  # they ran as batches


@of_several_items
def test_one_bad_item_fails_the_request_and_is_named(platform: PushPlatform, on: Start) -> None:
    answer = on(platform, BATCHED).many([{"do": "ok"}, {"do": "raise"}, {"do": "ok"}])
    assert answer.status == 500
    assert "instance 1" in answer.error and "this item is bad" in answer.error


def test_requests_that_wait_run_as_batches_and_a_bad_one_fails_alone(
    platform: PushPlatform, on: Start, tmp_path: Path
) -> None:
    container, gate = on(platform, BATCHED), tmp_path / "gate"
    first = until_running(container, gate)
    calls = until_queued(container, [{"do": do} for do in ("0", "raise", "2", "refuse")])
    gate.touch()
    answers = [call.result() for call in (first, *calls)]
    assert [answer.status for answer in answers] == [200, 200, 500, 200, 422]
    assert [answers[place].value["did"] for place in (1, 3)] == ["0", "2"]
    again = tmp_path / "again"
    first = until_running(container, again)
    calls = until_queued(container, [{"do": "ok"}] * 4)
    again.touch()
    assert [call.result().value["batch"] for call in calls] == [4] * 4
    assert first.result().status == 200


def test_a_body_over_the_limit_is_refused_unread(platform: PushPlatform, on: Start) -> None:
    container = on(platform, BATCHED)
    connection = container.connect()
    connection.putrequest("POST", platform.path(container.function_name))
    connection.putheader("content-length", str(1 << 30))
    connection.putheader("content-type", "application/json")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and "bytes" in platform.error(json.loads(response.read()))
    connection.close()


def test_orders_of_operators_are_not_taken_from_callers(platform: PushPlatform, on: Start) -> None:
    container = on(platform, BATCHED)
    name = container.function_name
    for method, path in [
        ("GET", "/functions"),
        ("POST", f"/functions/{name}/sleep"),
        ("POST", f"/functions/{name}/wake"),
    ]:
        reply = container.request(method, path, b'{"depth": "cold"}' if method == "POST" else None)
        assert reply.status in (400, 404), (path, reply)
    document = container.request("GET", "/openapi.json").json()
    assert not [path for path in document["paths"] if path.startswith("/functions")]
    assert container.call({"do": "ok"}).status == 200


# ---------------------------------------------------------------------------- events


def test_an_event_is_answered_with_an_event(platform: PushPlatform, on: Start) -> None:
    container = on(platform, BATCHED)
    reply = container.event(event({"do": "ok"}))
    assert reply.status == 200 and reply.json() == {"did": "ok", "batch": 1}
    assert reply.headers["ce-type"] == "dev.zerowake.result"
    assert container.event(event({"do": "raise"})).status == 500
    assert container.event({"specversion": "1.0", "data": {}}).status == 400


def test_a_batch_of_events_with_a_bad_one_is_to_come_again(
    platform: PushPlatform, on: Start
) -> None:
    container = on(platform, BATCHED)
    events = [event({"do": do}, id=f"id-{do}") for do in ("ok", "refuse", "raise", "ok")]
    reply = container.event(events)
    assert reply.status == 500
    problem = reply.json()
    assert [error["field"] for error in problem["errors"]] == ["/1", "/2"]
    assert "id-refuse" in problem["detail"] and "id-raise" in problem["detail"]
    assert "this item is bad" in problem["detail"]


# ---------------------------------------------------------------------------- streams


def test_chunks_of_a_stream_come_one_by_one(platform: PushPlatform, on: Start) -> None:
    response = on(platform, COUNT).open_stream({"start": 0, "stop": 4})
    assert response.status == 200 and response.getheader("content-type") == "application/x-ndjson"
    assert response.read() == b"0\n1\n2\n3\n"


def test_an_error_in_mid_stream_is_no_good_end(platform: PushPlatform, on: Start) -> None:
    container = on(platform, COUNT)
    value = {"start": 0, "stop": 4, "fail_at": 2, "pause_s": 0.05}
    response = container.open_stream(value)
    with pytest.raises(http.client.IncompleteRead) as cut_off:
        response.read()
    assert cut_off.value.partial == b"0\n1\n"
    events = container.open_stream(value, "text/event-stream").read().decode()
    assert "event: error" in events and "failed at 2" in events


def test_who_leaves_has_the_stream_ended(platform: PushPlatform, on: Start) -> None:
    container = on(platform, COUNT)
    before = container.count("cancelled")
    response = container.open_stream({"start": 0, "stop": 100_000, "pause_s": 0.01})
    assert response.readline() == b"0\n"
    response.close()
    container.until(lambda: container.count("cancelled") == before + 1)
    again = container.open_stream({"start": 0, "stop": 1})  # its instance is free
    assert again.read() == b"0\n"


def test_who_leaves_before_the_answer_has_the_call_cancelled(
    platform: PushPlatform, on: Start, tmp_path: Path
) -> None:
    container = on(platform, BATCHED)
    before, gate = container.count("cancelled"), tmp_path / "gate"
    connection = container.connect()
    body = json.dumps(platform.wrap({"do": f"gate:{gate}"}))
    headers = {"content-type": "application/json"}
    connection.request("POST", platform.path(container.function_name), body, headers)
    container.until(lambda: container.call({"do": "ok"}).status if gate.exists() else True)
    connection.close()
    container.until(lambda: container.count("cancelled") == before + 1)
    gate.touch()
    assert container.call({"do": "ok"}).status == 200


# ---------------------------------------------------------------------------- a container's life


def test_a_call_that_takes_too_long_is_ended(anywhere: Platform, on: Start) -> None:
    answer = on(anywhere, ONCE).call({"do": "hang"})
    assert answer.status == 504 and "timeout_s=2" in answer.error
    assert on(anywhere, ONCE).call({"do": "next"}) == Answer(200, "next")


def test_a_call_before_it_is_ready_is_held(anywhere: Platform, start: Start) -> None:
    container = start(anywhere, BATCHED)

    def first() -> Answer | None:
        try:
            return container.call({"do": "ok"})
        except ConnectionError:  # it does not listen yet
            assert container.process.poll() is None, "\n".join(container.log)
            return None

    assert container.until(first) == Answer(200, {"did": "ok", "batch": 1})
    assert container.state() == "ready"


def test_while_it_starts_probes_are_answered_and_calls_held(
    platform: PushPlatform, start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    container = start(platform, "zoo.py:NeverWakes", ZEROWAKE_TEST_WAKE_GATE=str(gate))
    assert container.function_name  # it listens
    call = container.callers.submit(container.call, 5)
    path, _ready, starting, _failed = platform.probe
    reply = container.request("GET", path, headers=platform.probe_headers)
    assert reply.status == starting and not call.done()
    gate.touch()
    assert call.result() == Answer(200, 5)
    container.until_ready()


def test_a_function_that_cannot_start_is_not_ready_and_says_why(
    platform: PushPlatform, start: Start
) -> None:
    container = start(platform, "zoo.py:NeverWakes", ZEROWAKE_TEST_WAKE_FAILS="1")
    answer = container.call(1) if container.function_name else None
    assert answer is not None and answer.status == 503
    assert "the database is not there" in answer.error
    failed = "failed" if platform.name == "runpod-http" else "starting"
    container.until(lambda: container.state() in (failed, "failed"))
    assert container.process.poll() is None
    assert container.stop() == 0


def test_a_damaged_snapshot_ends_the_process_and_says_why(
    anywhere: Platform, frozen: Callable[[str], Path], containers: list[Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(frozen("linear.py:Linear"), tmp_path / "copy")
    (weights,) = copy.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    container = anywhere.start(copy)
    containers.append(container)
    assert container.process.wait(PATIENCE_S) == 1
    container.until(lambda: "quarantined" in container.log[-1])


def test_under_load_it_ends_when_all_that_it_has_taken_is_answered(
    platform: PushPlatform, start: Start, tmp_path: Path
) -> None:
    container = start(platform, BATCHED).until_ready()
    gate = tmp_path / "gate"
    first = until_running(container, gate)
    calls = [first, *until_queued(container, [{"do": f"gate:{gate}"}] * 31)]
    container.process.send_signal(signal.SIGTERM)
    container.until(lambda: container.state() != "ready")
    refused = container.call({"do": "ok"})
    assert refused.status == 503 and "shutting down" in refused.error
    assert not any(call.done() for call in calls)
    gate.touch()
    answers = [call.result() for call in calls]
    assert {(answer.status, answer.value["did"]) for answer in answers} == {(200, f"gate:{gate}")}
    assert container.stop() == 0
    assert not [line for line in container.log if "calls still run" in line]


# ---------------------------------------------------------------------------- platforms that are asked


def test_calls_that_wait_run_as_batches_and_a_bad_one_fails_alone(
    pull: PullPlatform, on: Start, tmp_path: Path
) -> None:
    does = ["0", "1", "raise", "3", "refuse", "5", "6", "7"]
    answers = on(pull, BATCHED).many([{"do": do} for do in does])
    assert [answer.status for answer in answers] == [200, 200, 500, 200, 422, 200, 200, 200]
    good = [answer.value for answer in answers if answer.status == 200]
    assert [each["did"] for each in good] == ["0", "1", "3", "5", "6", "7"]
    if pull.slots == 1:
        return  # one call at a time is no batch
    container, gate = on(pull, BATCHED), tmp_path / "gate"
    container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said(f"waits for {gate}")
    waiting = container.caller.call([{"do": "ok"}] * 4)
    container.until(lambda: container.caller.arrived(waiting))
    gate.touch()
    assert max(container.caller.answer(id_).value["batch"] for id_ in waiting) > 1


@of_events
def test_an_event_calls_the_function_with_its_data(pull: PullPlatform, on: Start) -> None:
    container = on(pull, BATCHED)
    told = {"id": "e1", "source": "tests", "detail-type": "t"}
    assert container.call({**told, "detail": {"do": "ok"}}).status == 200
    failed = container.call({**told, "detail": {"do": "raise"}})  # and comes again
    assert failed.status == 500 and "this item is bad" in failed.error


@of_events
def test_a_bad_record_of_an_event_fails_alone(pull: PullPlatform, on: Start) -> None:
    container = on(pull, BATCHED)

    def queued(*does: str) -> Answer:
        records = [
            {"eventSource": "aws:sqs", "messageId": do, "body": json.dumps({"do": do})}
            for do in does
        ]
        return container.call({"Records": records})

    answer = queued("0", "1", "raise", "3", "refuse", "5")
    failed = [{"itemIdentifier": id_} for id_ in ("raise", "refuse")]
    assert answer == Answer(200, {"batchItemFailures": failed})
    assert queued("0", "1") == Answer(200, {"batchItemFailures": []})
    assert queued("raise").status == 500


def test_what_is_asked_is_what_the_adapter_says_of_itself() -> None:
    for pull in PULL:
        can = find({}, pull.adapter).capabilities
        assert (bool(can.events), can.partial_batch) == (pull.events, pull.events)
        assert can.cancel == pull.cancels and can.streaming and can.shape == "pull"
    for push in PUSH:
        can = find({}, push.name).capabilities
        assert can.events and can.cancel and can.streaming and can.shape == "push"
        limits = [can.request_nbytes, can.response_nbytes]
        assert all(limit is None or limit > LARGE_NBYTES for limit in limits)
    assert {each.name for each in PUSH} | {each.adapter for each in PULL} == KNOWN.keys()


@pytest.mark.parametrize("value", [None, 5, [], {}, {"do": 5}, "text"])
def test_a_malformed_call_is_the_callers_fault(pull: PullPlatform, on: Start, value: Any) -> None:
    answer = on(pull, BATCHED).call(value)
    assert answer.status in (400, 422) and answer.error


def test_a_result_beyond_the_limit_is_an_error_that_says_so(pull: PullPlatform, on: Start) -> None:
    container = on(pull, "zoo.py:Echo")
    if pull.adapter == "runpod":
        container.caller.jobs.server.too_large_nbytes = 6 << 20
    answer = container.call({"value": "x" * (7 << 20)})
    assert answer.status == 502 and "7340" in answer.error
    assert container.call({"value": 1}) == Answer(200, {"echo": 1})


def test_chunks_come_before_the_end(pull: PullPlatform, on: Start) -> None:
    container = on(pull, COUNT)
    span = {"start": 0, "stop": 30, "pause_s": 0.05}
    (id_,) = container.caller.call([span])
    early = container.caller.chunks(id_, 2)
    assert early == list(range(len(early))) and len(early) < 30
    assert container.caller.answer(id_) == Answer(200, list(range(30)))
    assert container.caller.chunks(id_, 30) == list(range(30))


def test_an_error_in_mid_stream_follows_the_chunks(pull: PullPlatform, on: Start) -> None:
    container = on(pull, COUNT)
    (id_,) = container.caller.call([{"start": 0, "stop": 4, "fail_at": 2, "pause_s": 0.05}])
    answer = container.caller.answer(id_)
    assert answer.status == 500 and "failed at 2" in answer.error
    assert container.caller.chunks(id_, 2) == [0, 1]


@pytest.mark.parametrize(
    "pull", [each for each in PULL if each.cancels], ids=lambda each: each.name
)
def test_a_call_that_nobody_wants_is_ended(pull: PullPlatform, start: Start) -> None:
    container = start(pull, COUNT).until_ready()
    (id_,) = container.caller.call([{"start": 0, "stop": 100_000, "pause_s": 0.01}])
    container.caller.chunks(id_, 1)
    container.caller.stop(id_)
    container.until_said("is stopped")
    assert container.call({"start": 0, "stop": 1}) == Answer(200, [0])  # its instance is free
    assert id_ not in container.caller.jobs.server.answers


def test_calls_that_wait_wake_it_from_nothing(
    pull: PullPlatform, frozen: Callable[[str], Path], containers: list[Any]
) -> None:
    caller = pull.caller()
    ids = caller.call([{"do": str(place)} for place in range(4)])
    containers.append(pull.with_caller(caller, frozen(BATCHED)))
    assert [caller.answer(id_).value["did"] for id_ in ids] == ["0", "1", "2", "3"]


def test_one_that_cannot_start_takes_no_call_and_ends(pull: PullPlatform, start: Start) -> None:
    container = start(pull, "zoo.py:NeverWakes", ZEROWAKE_TEST_WAKE_FAILS="1")
    ids = container.caller.call([1])
    container.until(lambda: container.state() == "failed")
    assert container.process.returncode == 1
    assert container.caller.left() == ids
    container.until_said("the database is not there")
    if pull.adapter == "lambda":
        ((verb, _, told),) = container.caller.api.server.told
        assert verb == "init_error" and "the database is not there" in told["errorMessage"]


def test_under_load_it_ends_with_every_call_answered_or_not_taken(
    pull: PullPlatform, start: Start, tmp_path: Path
) -> None:
    container = start(pull, BATCHED).until_ready()
    gate = tmp_path / "gate"
    ids = container.caller.call([{"do": f"gate:{gate}"}] * 100)
    container.until_said("waits for")
    container.process.send_signal(signal.SIGTERM)
    container.until_said("draining")
    gate.touch()
    assert container.process.wait(60) == 0, container.log
    assert not [line for line in container.log if "calls still run" in line]
    left = container.caller.left()
    taken = [id_ for id_ in ids if id_ not in left]
    assert len(taken) == pull.slots
    assert {container.caller.answer(id_).status for id_ in taken} == {200}
