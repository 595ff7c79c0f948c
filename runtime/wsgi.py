"""A WSGI app (PEP 3333) called with one request; its reply comes back in one piece.

Knows no framework and no function.
"""

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from zerowake.runtime.errors import BadResult
from zerowake.runtime.exchange import HOPS, MAX_RESULT_NBYTES, ReplyHead, RequestHead

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_JOINED = {"cookie": "; "}  # how several headers of one name become one


def call(app: WSGIApp, head: RequestHead, body: bytes) -> tuple[ReplyHead, bytes]:
    """What ``app`` answers. Raises what it raises, and BadResult where it breaks the protocol."""
    replies: list[ReplyHead] = []
    chunks: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        # Nothing has been sent yet, so a reply begun anew after an error takes its place.
        code = status.partition(" ")[0]
        if not code.isdecimal():
            raise BadResult(f"the app's status is {status!r:.80}; wanted a number and a phrase")
        replies[:] = [ReplyHead(int(code), tuple((n.lower(), v) for n, v in headers))]
        return chunks.append

    iterable, nbytes = app(environ(head, body), start_response), 0
    try:
        for chunk in iterable:
            chunks.append(chunk)
            nbytes += len(chunk)
            if nbytes > MAX_RESULT_NBYTES:  # one that never ends, perhaps
                raise BadResult(
                    f"the reply has passed {MAX_RESULT_NBYTES} bytes; replies are sent in one piece"
                )
    finally:
        if (close := getattr(iterable, "close", None)) is not None:
            close()
    if not replies:
        raise BadResult("the app has ended without a call of start_response")
    return replies[0], b"".join(chunks)


def environ(head: RequestHead, body: bytes) -> dict[str, Any]:
    """The request as an app wants it. Headers with "_" are left out: "-" becomes that too."""
    joined: dict[str, str] = {}
    for name, value in head.headers:
        if "_" in name or name in HOPS:
            continue
        joined[name] = joined[name] + _JOINED.get(name, ",") + value if name in joined else value
    host, _, port = joined.get("host", "").rpartition(":")
    if not port.isdecimal():
        host, port = joined.get("host", ""), "443" if head.scheme == "https" else "80"
    url = f"{head.path}?{head.query}" if head.query else head.path
    made: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(head.path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": head.query,
        "RAW_URI": url,
        "REQUEST_URI": url,
        "REMOTE_ADDR": head.client,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": head.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    length = joined.pop("content-length", None)
    if body or length is not None:
        made["CONTENT_LENGTH"] = str(len(body))
    if (content_type := joined.pop("content-type", None)) is not None:
        made["CONTENT_TYPE"] = content_type
    for name, value in joined.items():
        made[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return made
