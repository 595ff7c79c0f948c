"""``zerowake.runtime.exchange``: replies as results, and heads on their way through a frame."""

import json
from typing import Any

import pytest

from zerowake.runtime.errors import BadResult, to_problem
from zerowake.runtime.exchange import (
    MAX_HEAD_NCHARS,
    HttpFailed,
    ReplyHead,
    RequestHead,
    check,
    result_of,
)


def reply(status: int = 200, content_type: str = "") -> ReplyHead:
    return ReplyHead(status, (("content-type", content_type),) if content_type else ())


@pytest.mark.parametrize(
    ("content_type", "body", "result"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/problem+json; charset=utf-8", b"[]", []),
        ("application/json", b"NaN", {"b64": "TmFO"}),
        ("application/json", b"[" * 99_999, {"b64": "W1tb" * 33_333}),
        ("text/html; charset=utf-8", "é".encode(), "é"),
        ("text/plain", b"\xff", {"b64": "/w=="}),
        ("image/png", b"ab", {"b64": "YWI="}),
        ("", b"ab", {"b64": "YWI="}),
        ("text/plain", b"", None),
    ],
)
def test_a_reply_as_a_result(content_type: str, body: bytes, result: Any) -> None:
    assert json.loads(result_of(reply(200, content_type), body)) == result


def test_a_reply_that_tells_of_an_error_is_one() -> None:
    with pytest.raises(HttpFailed) as failed:
        result_of(reply(409, "text/plain"), b"not\n now " + b"x" * 1000)
    problem = to_problem(failed.value)
    assert (problem["status"], problem["code"]) == (409, "http_failed")
    assert problem["detail"].startswith("the function answered 409: not now xx")
    assert len(problem["detail"]) < 400


def test_what_a_server_cannot_send_is_refused() -> None:
    check(ReplyHead(200, (("x", "é"),)))
    for head in (ReplyHead(101), ReplyHead(600), ReplyHead(200, (("x", "\u20ac"),))):
        with pytest.raises(BadResult):
            check(head)


@pytest.mark.parametrize(
    "pair",
    [
        ("x", "a\r\nset-cookie: b"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("", "a"),
        ("a b", "c"),
        ("a: b\r\nc", "d"),
        ("\u20ac", "a"),
        ("content-length", "abc"),
        ("large", "x" * MAX_HEAD_NCHARS),
    ],
)
def test_a_header_that_would_break_the_connection_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(BadResult, match="header"):
        check(ReplyHead(200, (("x", "tab\there"), pair)))


def test_heads_travel_as_json() -> None:
    request = RequestHead("GET", "/a%20b", "x=1", (("a", "1"), ("a", "2")), "127.0.0.1", "https")
    assert RequestHead.from_json(json.loads(json.dumps(request.to_json()))) == request
    answer = ReplyHead(200, (("set-cookie", "a"), ("set-cookie", "b")))
    assert ReplyHead.from_json(json.loads(json.dumps(answer.to_json()))) == answer
    assert answer.header("set-cookie") == "a"
