"""HTTP/1.1 as a client speaks it to a platform's own API: requests as bytes, responses out of bytes.

Pure, so that whoever has a connection can use it, whatever waits on it. Knows no platform.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Response(NamedTuple):
    """An HTTP response, whole. headers: with lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    keeps_alive: bool = True


def parse(data: bytearray, ended: bool) -> tuple[Response, int] | None:
    """The response at the beginning of ``data`` and its length, None while it is not complete.

    ended: nothing more comes. Raises ValueError for what is no HTTP.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    status_line, *lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    protocol, status, *_ = f"{status_line} ".split(" ", 2)
    if not protocol.startswith("HTTP/1.") or not (status.isdecimal() and len(status) == 3):
        raise ValueError(status_line[:80])
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    keeps_alive = protocol != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    at = end + 4
    if int(status) < 200 or status in ("204", "304"):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        # The end of the chunks looks like this: they are not cut again for each part that arrives.
        found = _parse_chunks(data, at) if data.find(b"\r\n\r\n", at) >= 0 else None
        if found is None:
            return None
        body, at = found
    elif (length := headers.get("content-length")) is not None:
        if not length.isdecimal():
            raise ValueError(f"Content-Length: {length[:40]}")
        if len(data) < at + int(length):
            return None
        body = bytes(data[at : at + int(length)])
        at += len(body)
    elif ended:
        body, at, keeps_alive = bytes(data[at:]), len(data), False
    else:
        return None
    return Response(int(status), headers, body, keeps_alive), at


def _parse_chunks(data: bytearray, at: int) -> tuple[bytes, int] | None:
    chunks: list[bytes] = []
    while (line_end := data.find(b"\r\n", at)) >= 0:
        nbytes = int(data[at:line_end].partition(b";")[0], 16)
        at = line_end + 2
        if nbytes == 0:
            while (end := data.find(b"\r\n", at)) > at:  # trailers, which say nothing to us
                at = end + 2
            return None if end < 0 else (b"".join(chunks), end + 2)
        if nbytes < 0 or bytes(data[at + nbytes : at + nbytes + 2]) not in (b"", b"\r", b"\r\n"):
            raise ValueError("a chunk that does not end where it should")
        if len(data) < at + nbytes + 2:
            return None
        chunks.append(bytes(data[at : at + nbytes]))
        at += nbytes + 2
    return None


def head(method: str, path: str, host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: zerowake"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
