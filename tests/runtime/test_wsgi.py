"""``zerowake.runtime.wsgi``: one request through an app, as PEP 3333 has it."""

from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from zerowake.runtime import wsgi
from zerowake.runtime.errors import BadResult
from zerowake.runtime.exchange import ReplyHead, RequestHead
from zerowake.runtime.wsgi import call, environ

Start = Callable[..., Any]


def post(*headers: tuple[str, str], path: str = "/", **more: Any) -> RequestHead:
    return RequestHead("POST", path, headers=headers, **more)


def test_the_environment_of_a_request() -> None:
    head = RequestHead(
        method="PUT",
        path="/a%2Fb/%C3%A9/\xc3\xa9",
        query="x=1",
        headers=(
            ("host", "example.test:8443"),
            ("content-type", "text/plain"),
            ("x-many", "1"),
            ("x-many", "2"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("x_many", "hidden behind the other"),
            ("transfer-encoding", "chunked"),
        ),
        client="192.0.2.1",
        scheme="https",
    )
    made = environ(head, b"body")
    assert made["PATH_INFO"] == "/a/b/\xc3\xa9/\xc3\xa9"
    assert made["RAW_URI"] == "/a%2Fb/%C3%A9/\xc3\xa9?x=1"
    assert (made["SERVER_NAME"], made["SERVER_PORT"]) == ("example.test", "8443")
    assert (made["CONTENT_LENGTH"], made["CONTENT_TYPE"]) == ("4", "text/plain")
    assert (made["HTTP_X_MANY"], made["HTTP_COOKIE"]) == ("1,2", "a=1; b=2")
    assert "HTTP_TRANSFER_ENCODING" not in made
    assert (made["REMOTE_ADDR"], made["wsgi.url_scheme"]) == ("192.0.2.1", "https")


def test_a_request_without_a_body_tells_no_length() -> None:
    assert "CONTENT_LENGTH" not in environ(RequestHead("GET", "/"), b"")
    assert environ(post(("content-length", "0")), b"")["CONTENT_LENGTH"] == "0"
    made = environ(post(("host", "[::1]")), b"")
    assert (made["SERVER_NAME"], made["SERVER_PORT"]) == ("[::1]", "80")


@validator
def echo(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    headers = [("Content-Type", "text/plain"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
    start_response("201 Created", headers)
    return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), b"!"]


def test_an_app_is_called_as_the_standard_wants_it() -> None:
    head, body = call(echo, post(("host", "x"), ("content-type", "text/plain")), b"hi")
    pairs = (("content-type", "text/plain"), ("set-cookie", "a"), ("set-cookie", "b"))
    assert (head, body) == (ReplyHead(201, pairs), b"hi!")


def test_what_is_written_comes_before_what_is_returned_and_all_is_closed() -> None:
    said: list[str] = []

    class Chunks:
        def __iter__(self) -> Iterator[bytes]:
            yield b"2"
            raise ValueError("in mid-reply")

        def close(self) -> None:
            said.append("closed")

    def app(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", [])(b"1")
        return Chunks() if environ["PATH_INFO"] == "/broken" else [b"2"]

    assert call(app, post(), b"")[1] == b"12"
    with pytest.raises(ValueError, match="in mid-reply"):
        call(app, post(path="/broken"), b"")
    assert said == ["closed"]


def test_a_reply_can_begin_anew_after_an_error() -> None:
    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", [("X-A", "1")])
        start_response("500 Broken", [], ("type", "value", "traceback"))
        return [b"sorry"]

    assert call(app, post(), b"") == (ReplyHead(500), b"sorry")


def test_a_reply_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi, "MAX_RESULT_NBYTES", 1000)

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"more"

    with pytest.raises(BadResult, match="has passed 1000 bytes"):
        call(app, post(), b"")


def test_apps_that_break_the_protocol() -> None:
    with pytest.raises(BadResult, match="start_response"):
        call(lambda environ, start_response: [], post(), b"")
    with pytest.raises(BadResult, match="status"):
        call(lambda environ, start_response: start_response("fine", []), post(), b"")
