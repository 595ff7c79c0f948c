"""One HTTP request and its reply as values, for functions that take requests whole.

A body travels beside its head, as bytes. Knows no server and no framework.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from zerowake.runtime.errors import BadResult, RemoteError, problem_of

HOPS = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
"""Headers that are about one connection (RFC 9110, section 7.6.1), not about the message."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name (RFC 9110, section 5.6.2)
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # what no value may hold: a line's end, say
MAX_HEAD_NCHARS = 256 << 10
"""Of a request's head and of a reply's. It is JSON in a frame, where a character is up to 6 bytes."""
MAX_RESULT_NBYTES = 1 << 30  # in one piece; a frame has 4 GiB, and a process perhaps less memory
MAX_SAID_CHARS = 300  # of a reply that becomes an error

Pairs = tuple[tuple[str, str], ...]


class HttpFailed(RemoteError):
    """A function that answers requests has answered with an error, where a result was wanted."""

    code = "http_failed"

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(problem_of(status, self.code, detail))


class RequestHead(NamedTuple):
    """What stands before a request's body.

    path: as in the URL, percent-encoded, beginning with "/". query: without its "?". headers: in
    their order, names in lower case. client: its address, "" if unknown. All characters are those
    of Latin-1, each a byte.
    """

    method: str
    path: str
    query: str = ""
    headers: Pairs = ()
    client: str = ""
    scheme: str = "http"

    @property
    def nchars(self) -> int:
        return len(self.method) + len(self.path) + len(self.query) + _nchars(self.headers)

    def to_json(self) -> list[Any]:
        return list(self)

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> "RequestHead":
        method, path, query, headers, client, scheme = told
        return cls(method, path, query, _pairs(headers), client, scheme)


class ReplyHead(NamedTuple):
    """What stands before a reply's body. headers: as those of a ``RequestHead``."""

    status: int
    headers: Pairs = ()

    def to_json(self) -> list[Any]:
        return list(self)

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> "ReplyHead":
        status, headers = told
        return cls(status, _pairs(headers))

    def header(self, name: str) -> str:
        """The first of this name (lower case), or ""."""
        return next((value for known, value in self.headers if known == name), "")


POSTED = RequestHead("POST", "/", headers=(("content-type", "application/json"),))
"""The request that a call is, where it came as an item, an event or a job and not over HTTP."""


def result_of(head: ReplyHead, body: bytes) -> bytes:
    """A reply as the result of such a call, JSON text: JSON as it is, a text as a string, no body
    as null, and all else as ``{"b64": ...}``.

    Raises HttpFailed, with the reply's status, for a reply that tells of an error.
    """
    content_type = head.header("content-type").partition(";")[0].strip().lower()
    if head.status >= 400:
        said = " ".join(body[: 4 * MAX_SAID_CHARS].decode(errors="replace").split())
        told = f"the function answered {head.status}: {said[:MAX_SAID_CHARS]}"
        raise HttpFailed(told, head.status)
    if not body:
        return b"null"
    try:
        if content_type == "application/json" or content_type.endswith("+json"):
            json.loads(body, parse_constant=_no_json)
            return body
        if content_type.startswith("text/"):
            return json.dumps(body.decode()).encode()
    except (RecursionError, ValueError):  # it is not what it says
        pass
    return json.dumps(encoded(body)).encode()


def encoded(data: bytes) -> dict[str, str]:
    """Bytes as a value of JSON, as in the protocols of TensorFlow Serving and KServe."""
    return {"b64": base64.b64encode(data).decode()}


def check(head: ReplyHead) -> None:
    """Raises BadResult for what a server cannot send."""
    if not 200 <= head.status <= 599:
        raise BadResult(f"the function answered with status {head.status}; wanted 200 to 599")
    if (nchars := _nchars(head.headers)) > MAX_HEAD_NCHARS:
        raise BadResult(
            f"the reply's headers have {nchars} bytes; wanted {MAX_HEAD_NCHARS} at most"
        )
    for name, value in head.headers:
        if not _TOKEN.fullmatch(name):
            raise BadResult(f"{name!r:.80} is no name of a header")
        if _CONTROLS.search(value) or (name == "content-length" and not value.isdecimal()):
            raise BadResult(f"the header {name!r:.80} cannot be {value!r:.80}")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise BadResult(
                f"the header {name!r:.80} holds characters beyond Latin-1; encode them"
            ) from None


def _nchars(headers: Pairs) -> int:
    return sum(len(name) + len(value) for name, value in headers)


def _no_json(constant: str) -> Any:
    raise ValueError(f"JSON has no {constant}")


def _pairs(told: Sequence[Sequence[str]]) -> Pairs:
    return tuple((name, value) for name, value in told)
