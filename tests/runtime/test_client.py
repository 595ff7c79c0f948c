"""The command line's client: URLs, streams of events, and what a gateway's problems become."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from zerowake.runtime.client import Client
from zerowake.runtime.errors import ConfigError, RemoteError

PROBLEM = b'{"status": 500, "code": "handler_failed", "detail": "no more"}'


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers what its server says, one write for each part."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.accepted = self.headers["Accept"]
        self.send_response(200)
        self.send_header("Content-Type", server.content_type)
        self.end_headers()
        for part in server.parts:
            self.wfile.write(part)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_stream_is_asked_for_as_events_and_given_as_lines(server: Any) -> None:
    server.content_type = "text/event-stream"
    server.parts = [b"data: 1\n\nda", b'ta: "event: error"\n\n']
    client = Client(f"127.0.0.1:{server.server_port}")  # without its scheme
    assert list(client.invoke("f", b"1")[1]) == [b"1\n", b'"event: error"\n']
    assert "text/event-stream" in server.accepted


def test_an_error_after_some_items_is_raised_after_them(server: Any) -> None:
    server.content_type = "text/event-stream"
    server.parts = [b"data: 1\n\n", b"event: error\ndata: " + PROBLEM + b"\n\n"]
    items = Client(f"http://127.0.0.1:{server.server_port}/").invoke("f", b"1")[1]
    assert next(items) == b"1\n"
    with pytest.raises(RemoteError, match="500 handler_failed: no more"):
        next(items)


def test_bytes_stay_as_they_are(server: Any) -> None:
    server.content_type, server.parts = "application/octet-stream", [b"data: 1\n", b"\0"]
    _type, chunks = Client(f"127.0.0.1:{server.server_port}").invoke("f", b"1")
    assert b"".join(chunks) == b"data: 1\n\0"


def test_what_takes_no_orders_is_told_from_a_gateway(server: Any) -> None:
    """``zerowake run`` has no such routes."""
    with pytest.raises(RemoteError, match="404 Not Found; only `zerowake serve` lists functions"):
        Client(f"127.0.0.1:{server.server_port}").functions()


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://host", "host:port", "host:99999", "http://a b", "[::1"]
)
def test_a_bad_url_says_so(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is no URL of a gateway; write http://HOST:PORT"):
        Client(url)
