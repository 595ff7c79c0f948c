"""Functions that take requests whole: which requests are theirs, and what becomes of their replies."""

from typing import Any

import pytest

from zerowake.runtime.exchange import ReplyHead
from zerowake.runtime.gateway import caller
from zerowake.runtime.invocation import Invocation


async def reflect(call: Invocation) -> None:
    """The request's line as the body; its path may say what else."""
    assert call.head is not None
    status = int(call.head.query) if call.head.query.isdigit() else 200
    pairs = [("content-type", "text/x"), ("content-length", "77"), ("connection", "close")]
    pairs += [("set-cookie", "a=1"), ("set-cookie", "b=\xe9"), ("server-timing", "own;dur=1")]
    call.timings_ms.update(predict=1.0)
    call.reply = ReplyHead(status, tuple(pairs))
    await call.sink.item(f"{call.head.method} {call.head.path}".encode())
    call.sink.finish()


@pytest.fixture
def one(edge: Any) -> Any:
    edge.functions.serve("f", reflect, kind="http")
    return edge


@pytest.mark.parametrize(
    ("method", "path", "seen"),
    [
        ("GET", "/", "/"),
        ("POST", "/", "/"),
        ("DELETE", "/a%2Fb/%C3%A9", "/a%2Fb/%C3%A9"),
        ("PATCH", "/docs", "/docs"),
        ("GET", "/openapi.json", "/openapi.json"),
        ("OPTIONS", "/functionsx", "/functionsx"),
        ("PUT", "/invoke/f", "/"),
        ("PUT", "/invoke/f/", "/"),
        ("PUT", "/invoke/f/a%2Fb/c", "/a%2Fb/c"),
        ("PUT", "/invoke%2ff/a%2Fb/c", "/a%2Fb/c"),
        ("PUT", "/invoke/%66%2Fa/b", "/a/b"),
        ("GET", "/livez/", "/livez/"),
    ],
)
def test_what_is_theirs(one: Any, method: str, path: str, seen: str) -> None:
    reply = one.request(method, path, content=b"not JSON" if method == "POST" else None)
    assert (reply.status_code, reply.text) == (200, f"{method} {seen}")


def test_what_stays_ours(one: Any) -> None:
    assert one.request("GET", "/livez").json() == {"status": "alive"}
    assert one.request("GET", "/functions").json() == one.functions.describe()
    assert one.post("/functions/f/wake").status_code == 200
    assert one.request("GET", "/invoke/g/x").status_code == 405
    assert one.post("/invoke/g/x").json()["code"] == "unknown_function"
    one.options["with_orders"] = False
    assert one.request("GET", "/functions/f/wake").text == "GET /functions/f/wake"


def test_beside_others_only_its_own_path_is_its(one: Any) -> None:
    one.functions.serve("g")
    assert one.request("GET", "/").status_code == 405
    assert one.request("GET", "/docs").status_code == 200
    assert one.request("GET", "/invoke/g").status_code == 405
    assert one.request("GET", "/invoke/f/x").text == "GET /x"
    operation = one.request("GET", "/openapi.json").json()["paths"]["/invoke/f"]["post"]
    assert operation["requestBody"]["content"] == {"*/*": {}}


def test_its_reply_is_passed_on_but_for_what_is_the_connections(one: Any) -> None:
    reply = one.request("GET", "/?201")
    assert reply.status_code == 201
    assert [n for n in reply.headers if n in ("connection", "transfer-encoding")] == []
    raw = [(n.lower(), v) for n, v in reply.headers.raw]
    assert [v for n, v in raw if n == b"set-cookie"] == [b"a=1", b"b=\xe9"]
    assert [v for n, v in raw if n == b"content-length"] == [b"5"]
    timings = [v for n, v in raw if n == b"server-timing"]
    assert timings[0] == b"own;dur=1" and timings[1].startswith(b"predict;dur=1.000, total")
    assert reply.headers["zerowake-depth"] == "prewarmed"


def test_replies_without_a_body(one: Any) -> None:
    head = one.request("HEAD", "/")
    assert (head.content, head.headers["content-length"]) == (b"", "77")
    for status in (204, 304):
        reply = one.request("GET", f"/?{status}")
        assert (reply.status_code, reply.content) == (status, b"")
        assert "content-length" not in reply.headers


def test_its_own_errors_are_counted(one: Any) -> None:
    for status in (200, 404, 499, 503, 504):
        assert one.request("GET", f"/?{status}").status_code == status
    assert [one.count(outcome) for outcome in ("ok", "client_error", "error")] == [1, 2, 2]


def test_what_the_gateway_refuses_it_refuses_as_elsewhere(one: Any) -> None:
    one.options["max_body_nbytes"] = 4
    assert one.request("PUT", "/x", content=b"12345").json()["code"] == "body_too_large"
    zipped = {"content-encoding": "gzip"}  # the function's to decode
    assert one.request("PUT", "/x", content=b"1", headers=zipped).status_code == 200
    one.functions.draining = True
    assert one.request("DELETE", "/x").json()["code"] == "draining"


def test_heads_that_no_frame_can_take_end_nothing_but_themselves(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "MAX_HEAD_NCHARS", 2000)
    assert one.request("GET", "/", headers={"x-a": "x" * 1000}).status_code == 200
    one.functions.calls.clear()
    large = "x" * 2001
    for path, headers in ((f"/{large}", {}), (f"/?{large}", {}), ("/", {"x-a": large})):
        reply = one.request("GET", path, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (431, "headers_too_large")
    one.functions.serve("g")
    reply = one.post("/invoke/g", content=b"1", headers={"x-request-id": large})
    assert reply.json()["code"] == "headers_too_large"
    assert one.functions.calls == []


def test_what_the_function_is_told_of_a_request(one: Any) -> None:
    one.request("POST", "/x?a=1&b", content=b"body", headers=[(b"x-a", b"1"), (b"X-A", b"\xe9")])
    (call,) = one.functions.calls
    assert (call.body, call.head.query, call.head.scheme) == (b"body", "a=1&b", "http")
    assert [v for n, v in call.head.headers if n == "x-a"] == ["1", "\xe9"]
    assert call.head.client == "127.0.0.1"
