"""One call on its way through the gateway, and where its answer goes.

Knows nothing of HTTP, queues or processes: edges (HTTP, platform adapters) make an ``Invocation``
with a ``Sink`` of their own, the pool answers it exactly once.
"""

import os
from dataclasses import dataclass, field
from typing import Protocol

from zerowake.runtime.depth import Depth
from zerowake.runtime.exchange import ReplyHead, RequestHead


class Sink(Protocol):
    """The caller's end. The pool calls ``item`` any number of times, then ``finish`` or ``fail`` once.

    All three run on the gateway's event loop.
    """

    async def item(self, chunk: bytes) -> None:
        """One encoded item of a stream; waits while the caller reads too slowly."""

    def finish(self, result: bytes | None = None) -> None:
        """The call has ended well. result: the one item of a unary function."""

    def fail(self, problem: dict[str, object]) -> None:
        """The call has ended with an error: the members of an RFC 9457 problem."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the caller's side says of a call; "" where it says nothing.

    request_id: what the caller calls it. trace: W3C's traceparent, on Lambda X-Ray's header.
    tenant, client_context (JSON text): Lambda's; over HTTP anybody could claim them, so they are
    not taken from there.
    """

    request_id: str = ""
    trace: str = ""
    tenant: str = ""
    client_context: str = ""

    @property
    def id(self) -> str:
        """What a call may be given as its id; "" when the caller says nothing that could be one."""
        return self.request_id or self.trace

    def told(self) -> dict[str, str]:
        """What is not empty, by name."""
        names = self.__slots__
        return {name: text for name in names if (text := getattr(self, name))}


NOWHERE = Origin()


@dataclass(slots=True, eq=False)
class Invocation:
    """One item of work.

    body: the encoded item (JSON text, or raw bytes for a function that takes bytes).
    arrived_s: monotonic seconds. attempts: how many instances have died under it.
    depth: the depth at which the call found the function.
    timings_ms: queue, restore, predict ... as they become known. head: of the request that the body
    came in, where the function takes requests whole; None where it came as an item or event. reply:
    the head of its reply, there before the first item.
    """

    function: str
    body: bytes
    sink: Sink
    arrived_s: float
    id: str = field(default_factory=lambda: os.urandom(8).hex())
    attempts: int = 0
    depth: Depth = Depth.COLD
    timings_ms: dict[str, float] = field(default_factory=dict)
    origin: Origin = NOWHERE
    head: RequestHead | None = None
    reply: ReplyHead | None = None
    started: bool = False  # an item has reached the caller: it cannot be run again unseen
    done: bool = False

    def finish(self, result: bytes | None = None) -> None:
        """End well; what comes after the first end is dropped. result: as in ``Sink``."""
        if not self.done:
            self.done = True
            self.sink.finish(result)

    def fail(self, problem: dict[str, object]) -> None:
        """End with a problem; what comes after the first end is dropped."""
        if not self.done:
            self.done = True
            self.sink.fail(problem)
