"""The ASGI messages the edge sends and receives, without a framework.

Knows no function and no route. starlette has all of this, and importing it costs 80 ms of a cold
start; the invoke path needs these few lines.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from zerowake.runtime.errors import BadRequest, Cancelled, TooLarge, UnsupportedEncoding

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LINGER_S = 2.0
"""How long the rest of a refused body is read and thrown away."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit_nbytes: int) -> bytes:
    """The request's body.

    Raises UnsupportedEncoding and BadRequest for what its headers say, TooLarge as soon as it is known
    to be, Cancelled when it is cut off.
    """
    coding = headers.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise UnsupportedEncoding(coding)
    if (content_length := headers.get(b"content-length")) is not None:
        if not content_length.isdigit():
            raise BadRequest(
                f"Content-Length is {content_length!r:.50}; it must be a number of bytes"
            )
        if len(content_length) > 18 or int(content_length) > limit_nbytes:
            raise _too_large(f"of {content_length.decode():.30} bytes", limit_nbytes)
    chunks: list[bytes] = []
    nbytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its request was complete")
        chunk: bytes = message.get("body", b"")
        nbytes += len(chunk)
        if nbytes > limit_nbytes:
            raise _too_large(f"has passed {nbytes} bytes", limit_nbytes)
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


def _too_large(found: str, limit_nbytes: int) -> TooLarge:
    return TooLarge(
        f"the body {found}; this server takes at most {limit_nbytes}: send less, or serve with a "
        "larger --max-body-mb"
    )


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """One whole reply; ``headers`` without content-length."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def respond_and_close(
    unread: Receive | None, send: Send, status: int, headers: Headers, body: bytes
) -> None:
    """Reply, then close the connection. ``unread``: where the rest of the request's body comes from.

    Closing with bytes unread makes the kernel send a reset, and the client loses the reply; so
    what still comes is read and thrown away first, for LINGER_S at most.
    """
    headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if unread is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await unread()).get("more_body", False):
                    pass
    await send({"type": "http.response.body", "body": b""})


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has left; call it after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def lifespan(receive: Receive, send: Send) -> None:
    """Agree to start and stop: nothing in the edge needs either."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
