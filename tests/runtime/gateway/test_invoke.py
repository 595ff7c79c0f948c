"""``zerowake.runtime.gateway.invoke``: one request, one invocation, one reply."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from zerowake.runtime.errors import (
    Draining,
    FunctionFailed,
    InvalidInput,
    PredictTimeout,
    QueueFull,
)
from zerowake.runtime.invocation import Invocation

TEXT = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["text"],
    "additionalProperties": False,
}


def assert_problem(reply: Any, status: int, code: str) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["zerowake-invocation"]
    assert "total;dur=" in reply.headers["server-timing"]
    problem: dict[str, Any] = reply.json()
    assert (reply.status_code, problem["status"], problem["code"]) == (status, status, code)
    return problem


def test_a_call_goes_in_as_it_is_and_its_result_comes_out_as_it_is(edge: Any) -> None:
    edge.functions.serve("f", input_schema=TEXT)
    body = b'{ "text" : "two  spaces",\n "n":[1] }'
    reply = edge.post("/invoke/f", content=body)
    assert (reply.status_code, reply.content) == (200, body)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(body))
    assert reply.headers["zerowake-depth"] == "prewarmed"
    assert reply.headers["zerowake-invocation"] == edge.functions.calls[0].id
    timing = reply.headers["server-timing"]
    assert timing.startswith("queue;dur=2.000, predict;dur=40.000, total;dur=")
    assert edge.count("ok") == 1


def test_timings_reach_headers_and_metrics(edge: Any) -> None:
    now = iter([10.0, 10.25, 10.5])
    edge.options["clock"] = lambda: next(now)
    edge.functions.serve("f")
    reply = edge.post("/invoke/f", content=b"1")
    assert reply.headers["server-timing"].endswith("total;dur=250.000")
    text = edge.metrics.render()[0].decode()
    assert 'zerowake_invocation_seconds_sum{function="f"} 0.5' in text
    assert 'zerowake_queue_seconds_sum{function="f"} 0.002' in text
    assert 'zerowake_predict_seconds_sum{function="f"} 0.04' in text


def test_bytes_are_not_looked_at(edge: Any) -> None:
    edge.functions.serve("f", input_schema=TEXT, raw_input=True, raw_output=True)
    reply = edge.post("/invoke/f", content=b"\xff\x00{")
    assert (reply.status_code, reply.content) == (200, b"\xff\x00{")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert edge.post("/invoke/f", content=b"").content == b""


def test_a_body_that_does_not_parse_is_400_with_the_place(edge: Any) -> None:
    edge.functions.serve("f", input_schema=TEXT)
    problem = assert_problem(edge.post("/invoke/f", content=b'{"text": }'), 400, "bad_request")
    assert "column 10" in problem["detail"]
    for body in (b"", b"\xff", b"NaN", b"[" * 100_000, b"1 2"):
        assert_problem(edge.post("/invoke/f", content=body), 400, "bad_request")
    assert not edge.functions.calls


def test_a_body_that_does_not_fit_is_422_naming_the_fields(edge: Any) -> None:
    edge.functions.serve("f", input_schema=TEXT)
    reply = edge.post("/invoke/f", content=b'{"n": [1, "x"], "a/b": 0}')
    problem = assert_problem(reply, 422, "invalid_input")
    assert {error["field"] for error in problem["errors"]} == {"/text", "/n/1", "/a~1b"}
    assert edge.count("client_error") == 1
    assert "zerowake-depth" not in reply.headers


def test_an_unknown_function_is_404_naming_the_known_and_is_no_label(edge: Any) -> None:
    edge.functions.serve("embed")
    problem = assert_problem(edge.post("/invoke/embad", content=b"1"), 404, "unknown_function")
    assert "embed" in problem["detail"]
    assert edge.count("client_error", "") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_405(edge: Any, method: str) -> None:
    edge.functions.serve("f")
    reply = edge.request(method, "/invoke/f")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_a_compressed_body_is_refused_with_the_remedy(edge: Any) -> None:
    edge.functions.serve("f")
    reply = edge.post("/invoke/f", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    problem = assert_problem(reply, 415, "unsupported_encoding")
    assert "gzip" in problem["detail"] and "not compressed" in problem["detail"]
    assert reply.headers["accept-encoding"] == "identity"
    plain = edge.post("/invoke/f", content=b"1", headers={"content-encoding": "Identity"})
    assert plain.status_code == 200 and len(edge.functions.calls) == 1


def test_a_body_over_the_limit_is_refused_before_it_is_read(edge: Any) -> None:
    edge.functions.serve("f", raw_input=True)
    edge.options["max_body_nbytes"] = 10
    assert edge.post("/invoke/f", content=b"x" * 10).status_code == 200

    announced = edge.post("/invoke/f", content=b"x" * 11)
    problem = assert_problem(announced, 413, "body_too_large")
    assert "11" in problem["detail"] and "10" in problem["detail"]
    assert announced.headers["connection"] == "close"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"xxxxxx"

    problem = assert_problem(edge.post("/invoke/f", content=chunks()), 413, "body_too_large")
    assert "12" in problem["detail"]


@pytest.mark.parametrize(
    ("refusal", "status", "code", "outcome"),
    [
        (QueueFull("full", retry_after_s=1.2), 429, "queue_full", "rejected"),
        (FunctionFailed("does not start", retry_after_s=0.01), 503, "function_failed", "error"),
        (Draining("going down"), 503, "draining", "rejected"),
    ],
)
def test_a_refused_call_says_why_and_when_to_come_again(
    edge: Any, refusal: Exception, status: int, code: str, outcome: str
) -> None:
    edge.functions.serve("f")
    edge.functions.refusal = refusal
    reply = edge.post("/invoke/f", content=b"1")
    assert_problem(reply, status, code)
    wanted = {"queue_full": "2", "function_failed": "1", "draining": None}[code]
    assert reply.headers.get("retry-after") == wanted
    assert "zerowake-depth" not in reply.headers
    assert edge.count(outcome) == 1
    assert edge.functions.cancelled.empty()


def test_while_draining_a_new_call_is_refused_and_the_connection_closed(edge: Any) -> None:
    edge.functions.serve("f")
    edge.functions.draining = True
    reply = edge.post("/invoke/f", content=b"1")
    assert_problem(reply, 503, "draining")
    assert reply.headers["connection"] == "close"
    assert not edge.functions.calls


@pytest.mark.parametrize(
    ("error", "status", "code", "outcome"),
    [
        (KeyError("no such word"), 500, "handler_failed", "error"),
        (InvalidInput("too long", errors=[{"field": "/text", "message": "x"}]), 422,
         "invalid_input", "client_error"),
        (PredictTimeout("over 30 s"), 504, "predict_timeout", "timeout"),
    ],
)  # fmt: skip
def test_a_call_that_fails_has_the_status_of_its_error(
    edge: Any, error: Exception, status: int, code: str, outcome: str
) -> None:
    async def fail(call: Invocation) -> None:
        raise error

    edge.functions.serve("f", fail)
    reply = edge.post("/invoke/f", content=b"1")
    problem = assert_problem(reply, status, code)
    assert str(error) in problem["detail"]
    assert problem.get("errors") == getattr(error, "errors", None)
    assert reply.headers["zerowake-depth"] == "prewarmed"
    assert edge.count(outcome) == 1


def test_a_fault_of_the_gateway_is_logged_and_told_without_its_insides(
    edge: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edge.functions.serve("f")
    edge.functions.refusal = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR, "zerowake.gateway"):
        problem = assert_problem(edge.post("/invoke/f", content=b"1"), 500, "internal")
    assert "ZeroDivisionError" in problem["detail"] and "secret" not in problem["detail"]
    assert caplog.records[0].exc_info is not None


def test_a_call_without_a_result_is_an_error(edge: Any) -> None:
    async def nothing(call: Invocation) -> None:
        call.sink.finish()

    edge.functions.serve("f", nothing)
    assert_problem(edge.post("/invoke/f", content=b"1"), 500, "internal")


@pytest.mark.parametrize("header", ["X-Request-Id", "traceparent"])
def test_the_callers_id_is_taken_if_it_is_one(edge: Any, header: str) -> None:
    edge.functions.serve("f")
    for given, taken in (
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("a_B-9", True),
        ("x" * 65, False),
        ('a"b', False),
        ("a b", False),
        ("", False),
    ):
        reply = edge.post("/invoke/f", content=b"1", headers={header: given})
        assert (reply.headers["zerowake-invocation"] == given) is taken
        assert edge.functions.calls[-1].id == reply.headers["zerowake-invocation"]


def test_two_calls_alive_never_share_an_id(edge: Any) -> None:
    async def run() -> None:
        async with edge.listening() as port:
            headers = {"X-Request-Id": "same"}
            first, second = await asyncio.gather(
                _exchange(port, b"1", headers), _exchange(port, b"1", headers)
            )
            assert first != second

    both = asyncio.Event()

    async def together(call: Invocation) -> None:
        if len(edge.functions.calls) == 2:
            both.set()
        await both.wait()
        await call.sink.item(json.dumps(call.id).encode())
        call.sink.finish()

    edge.functions.serve("f", together)
    asyncio.run(run())
    assert len({call.id for call in edge.functions.calls}) == 2
    assert "same" in {call.id for call in edge.functions.calls}


async def _exchange(port: int, body: bytes, headers: dict[str, str]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"POST /invoke/f HTTP/1.1\r\nhost: x\r\n{''.join(lines)}content-length: {len(body)}\r\n"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
    reply = await reader.read()
    writer.close()
    return reply.split(b"\r\n\r\n", 1)[1]
