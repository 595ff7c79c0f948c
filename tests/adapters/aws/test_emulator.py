"""``zerowake run`` on AWS's Runtime Interface Emulator, on demand and as a Managed Instance."""

import base64
import json
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from emulator import Emulator, children
from support import Reply

Emulate = Callable[..., Emulator]
SLOTS = 20
MODES = [pytest.param(None, id="on-demand"), pytest.param(SLOTS, id="managed")]


def http_event(method: str, path: str, body: str | None = None, **more: Any) -> bytes:
    event = {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path, "sourceIp": "192.0.2.1"}},
        "body": body,
        "isBase64Encoded": False,
    }
    return json.dumps({**event, **more}).encode()


def sqs_event(*bodies: object) -> bytes:
    records = [
        {"messageId": f"m{place}", "eventSource": "aws:sqs", "body": json.dumps(body)}
        for place, body in enumerate(bodies)
    ]
    return json.dumps({"Records": records}).encode()


def metric(environment: Emulator, name: str) -> float:
    reply = environment.invoke(http_event("GET", "/metrics")).json()
    lines = [line for line in reply["body"].splitlines() if line.startswith(name + "{")]
    return float(lines[0].split()[-1]) if lines else 0.0


@pytest.mark.parametrize("slots", MODES)
def test_values_errors_requests_and_records(emulate: Emulate, slots: int | None) -> None:
    environment = emulate("zoo.py:Add", slots=slots)
    assert environment.invoke(b'{"a": 1, "b": 2}').json() == 1003

    refused = environment.invoke(b'{"a": "one"}').json()
    assert refused["errorType"] == "Function.InvalidInput"
    assert "/a" in refused["errorMessage"]
    assert refused["stackTrace"] == []
    assert environment.invoke(b"no JSON").json()["errorType"] == "Function.BadRequest"

    reply = environment.invoke(http_event("POST", "/", '{"a": 1}')).json()
    assert (reply["statusCode"], reply["body"]) == (200, "1006")
    assert reply["headers"]["content-type"] == "application/json"
    reply = environment.invoke(http_event("POST", "/", '{"b": 1}')).json()
    assert reply["statusCode"] == 422
    assert json.loads(reply["body"])["errors"][0]["field"] == "/a"
    assert environment.invoke(http_event("GET", "/readyz")).json()["statusCode"] == 200

    told = environment.invoke(sqs_event({"a": 1}, {"b": 1}, {"a": 2}, "x")).json()
    failures = [failure["itemIdentifier"] for failure in told["batchItemFailures"]]
    assert failures == ["m1", "m3"]
    assert environment.invoke(sqs_event({"a": 1})).json() == {"batchItemFailures": []}
    # All of them: the batch comes again even from a mapping that was not told to take ids.
    assert "errorType" in environment.invoke(sqs_event("x", "y")).json()


def test_concurrent_invocations_are_one_batch_of_one_process(
    emulate: Emulate, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    environment = emulate("zoo.py:Crowd", slots=SLOTS, sees=[tmp_path])
    gate = tmp_path / "gate"
    first = environment.start(json.dumps(str(gate)).encode())
    environment.until(lambda: metric(environment, "zerowake_batch_size_count") == 1)
    others = [environment.start(b'"come"') for _ in range(16)]
    environment.until(lambda: metric(environment, "zerowake_queued") == 16)
    gate.touch()
    assert first.result().json() == 1
    assert [reply.result().json() for reply in others] == [16] * 16
    assert len(children(environment.runtime_pid)) == 1  # one model in one process


@pytest.mark.parametrize("slots", MODES)
def test_a_thousand_records_run_as_batches(emulate: Emulate, slots: int | None) -> None:
    environment = emulate("zoo.py:Crowd", slots=slots)
    told = environment.invoke(sqs_event(*["come"] * 1000)).json()
    assert told == {"batchItemFailures": []}
    assert metric(environment, "zerowake_batch_size_sum") == 1000
    assert metric(environment, "zerowake_batch_size_count") <= 70  # of at most 16


@pytest.mark.parametrize("slots", MODES)
def test_a_function_that_does_not_start(emulate: Emulate, slots: int | None) -> None:
    broken = {"ZEROWAKE_TEST_WAKE_FAILS": "1"}
    environment = emulate("zoo.py:NeverWakes", slots=slots, env=broken, ready=False)
    if slots is None:  # started by the first invocation
        told = environment.invoke(b"1").json()
        assert told["errorType"] == "Function.FunctionFailed"
        assert "the database is not there" in told["errorMessage"]
    else:
        environment.until(lambda: environment.said("Function.FunctionFailed"))
    environment.until(lambda: environment.said("exit status 1"))


@pytest.mark.parametrize("slots", MODES)
def test_a_process_that_dies_takes_only_its_call_along(emulate: Emulate, slots: int | None) -> None:
    environment = emulate("zoo.py:Batched", slots=slots)
    told = environment.invoke(b'{"do": "die"}').json()
    assert told["errorType"] == "Function.InstanceDied"
    assert "SIGKILL" in told["errorMessage"]
    assert environment.invoke(b'{"do": "ok"}').json()["did"] == "ok"
    records = sqs_event({"do": "ok"}, {"do": "die"}, {"do": "also"})
    failures = environment.invoke(records).json()["batchItemFailures"]
    assert failures == [{"itemIdentifier": "m1"}]


def test_a_call_that_takes_too_long_is_answered_in_time(emulate: Emulate) -> None:
    """By us and not by the platform, which would have ended the whole environment."""
    environment = emulate("zoo.py:Batched", env={"AWS_LAMBDA_FUNCTION_TIMEOUT": "4"})
    environment.invoke(b'{"do": "ok"}')
    runtime = environment.runtime_pid
    told = environment.invoke(b'{"do": "hang"}').json()
    assert told["errorType"] == "Function.PredictTimeout"
    reply = environment.invoke(http_event("GET", "/livez")).json()
    assert (reply["statusCode"], environment.runtime_pid) == (200, runtime)


def test_a_killed_instance_is_replaced_and_its_call_repeated(
    emulate: Emulate, tmp_path: Path
) -> None:
    environment = emulate("zoo.py:Batched")
    environment.invoke(b'{"do": "ok"}')
    gate, reply = hold(environment, tmp_path)
    killed = environment.instance_pid
    os.kill(killed, signal.SIGKILL)
    environment.until(lambda: environment.instance_pid != killed)
    gate.touch()
    assert reply.result().json()["batch"] == 1


@pytest.mark.parametrize("slots", MODES)
def test_sigterm_lets_the_call_under_way_be_answered(
    emulate: Emulate, slots: int | None, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    environment = emulate("zoo.py:Batched", slots=slots, sees=[tmp_path])
    gate, reply = hold(environment, tmp_path)
    os.kill(environment.runtime_pid, signal.SIGTERM)
    environment.until(lambda: environment.said("draining"))
    gate.touch()
    assert reply.result().json()["batch"] == 1
    environment.until(lambda: environment.said("exit status 0"))


def test_sigterm_ends_a_start(emulate: Emulate) -> None:
    environment = emulate(
        "zoo.py:NeverWakes", slots=2, ready=False, env={"ZEROWAKE_TEST_WAKE_HANGS": "1"}
    )
    environment.until(lambda: environment.said("wakes never"))
    os.kill(environment.runtime_pid, signal.SIGTERM)
    environment.until(lambda: environment.said("exit status 0"))


@pytest.mark.parametrize("slots", MODES)
def test_chunks_with_a_prelude_for_requests_only(emulate: Emulate, slots: int | None) -> None:
    streaming = {"ZEROWAKE_LAMBDA_INVOKE_MODE": "RESPONSE_STREAM"}
    environment = emulate("zoo.py:Count", slots=slots, env=streaming)
    reply = environment.invoke(b'{"start": 0, "stop": 3}')
    assert reply.body == b"0\n1\n2\n"
    if slots:  # the other emulator keeps neither
        assert reply.headers["Content-Type"] == "application/x-ndjson"
        assert reply.headers["Lambda-Runtime-Function-Response-Mode"] == "streaming"
    assert environment.invoke(b'{"start": 0}').json()["errorType"] == "Function.InvalidInput"

    reply = environment.invoke(http_event("POST", "/", '{"start": 0, "stop": 3}'))
    told, _, body = reply.body.partition(bytes(8))
    assert json.loads(told)["statusCode"] == 200
    assert json.loads(told)["headers"]["content-type"] == "application/x-ndjson"
    assert body == b"0\n1\n2\n"
    refused = environment.invoke(http_event("POST", "/", '{"start": 0}')).body
    told, _, body = refused.partition(bytes(8))
    assert json.loads(told)["statusCode"] == json.loads(body)["status"] == 422

    broken = environment.invoke(b'{"start": 0, "stop": 3, "fail_at": 2}')
    if slots:  # the other emulator leaves trailers out
        assert broken.headers["Error-Type"] == "Function.HandlerFailed"
        assert broken.json()["errorMessage"] == "RuntimeError: failed at 2"
    else:
        assert broken.body == b"0\n1\n"


@pytest.mark.parametrize("slots", MODES)
def test_bytes_in_and_out(emulate: Emulate, slots: int | None) -> None:
    environment = emulate("zoo.py:Reverse", slots=slots)
    for body in (bytes(range(256)), random.Random(1).randbytes(5 << 20)):
        assert environment.invoke(body).body == body[::-1]
    body = base64.b64encode(b"\xff\x00").decode()
    reply = environment.invoke(http_event("POST", "/", body, isBase64Encoded=True)).json()
    assert reply["isBase64Encoded"]
    assert base64.b64decode(reply["body"]) == b"\x00\xff"


def hold(environment: Emulator, folder: Path) -> "tuple[Path, Future[Reply]]":
    """A call under way until the file is there."""
    gate = folder / "gate"
    reply = environment.start(json.dumps({"do": f"gate:{gate}"}).encode())
    environment.until(lambda: environment.said(f"waits for {gate}"))
    return gate, reply
