"""One call from its body to its end: an id, the schema check, the pool, the metrics.

Knows no HTTP and no platform: the invoke endpoint and the adapters' events come through here.
"""

import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable
from weakref import WeakValueDictionary

from zerowake.runtime.errors import HeadersTooLarge
from zerowake.runtime.exchange import MAX_HEAD_NCHARS, ReplyHead, RequestHead
from zerowake.runtime.gateway.inputs import Inputs
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.gateway.problems import describe
from zerowake.runtime.gateway.reply import Reply
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import NOWHERE, Invocation, Origin
from zerowake.runtime.metrics import Metrics, Outcome

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Caller:
    """Brings calls to ``functions``. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        functions: Functions,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.functions = functions
        self.clock = clock
        self._metrics = metrics
        self._inputs = Inputs()
        self._given_ids: WeakValueDictionary[str, Reply] = WeakValueDictionary()

    async def call(
        self, name: str, body: bytes, given_id: str = "", origin: Origin = NOWHERE
    ) -> list[bytes]:
        """One call from start to end: the chunks of its result, one for a unary function.

        Cancelling it cancels the call. Raises what is wrong with the input, QueueFull, Draining,
        UnknownFunction, FunctionFailed, or RemoteError with what became of it.
        """
        async with contextlib.aclosing(self.stream(name, body, given_id, origin)) as parts:
            return [chunk async for part in parts for chunk in part]

    async def stream(
        self, name: str, body: bytes, given_id: str = "", origin: Origin = NOWHERE
    ) -> AsyncGenerator[list[bytes], None]:
        """One call, its chunks as they come; raises as ``call``. Closing it cancels the call."""
        sink = Reply()
        call = self.new(name, sink, given_id, origin)
        async with contextlib.aclosing(self._run(call, sink, body)) as parts:
            async for chunks in parts:
                yield chunks

    async def exchange(
        self,
        name: str,
        head: RequestHead,
        body: bytes,
        given_id: str = "",
        origin: Origin = NOWHERE,
    ) -> tuple[ReplyHead, bytes]:
        """One request to a function that takes requests whole, and its reply; raises as ``call``."""
        sink = Reply()
        call = self.new(name, sink, given_id, origin)
        call.head = head
        async with contextlib.aclosing(self._run(call, sink, body)) as parts:
            reply = b"".join([chunk async for part in parts for chunk in part])
        if call.reply is None:  # another function has taken its name meanwhile
            return ReplyHead(200, (("content-type", "application/json"),)), reply
        return call.reply, reply

    async def _run(
        self, call: Invocation, sink: Reply, body: bytes
    ) -> AsyncGenerator[list[bytes], None]:
        outcome, submitted, known_as = Outcome.CANCELLED, False, ""
        try:
            info = self.functions.find(call.function)
            known_as, call.body = info.name, body
            self.submit(info, call)
            submitted = True
            while chunks := await sink.read():
                yield chunks
            outcome = Outcome.OK if call.reply is None else Outcome.of_status(call.reply.status)
        except Exception as error:
            outcome = Outcome.of(describe(error, f"{call.function} {call.id}"))
            raise
        finally:
            if submitted:
                self.end(call, sink)
            self.observe(known_as, call, outcome)

    def new(
        self, name: str, sink: Reply, given_id: str = "", origin: Origin = NOWHERE
    ) -> Invocation:
        """A call under the id that its caller gave, if it is one and no call still alive has it.

        Frames to instances are told apart by these ids. A client that gave up may come again with
        the same id while its first call runs: its sink lives as long as anybody can answer it.
        """
        call = Invocation(name, b"", sink, self.clock(), origin=origin)
        if _ID.fullmatch(given_id) and given_id not in self._given_ids:
            call.id = given_id
            self._given_ids[given_id] = sink
        return call

    def submit(self, info: FunctionInfo, call: Invocation) -> None:
        """Check what came with the call and queue it.

        Raises HeadersTooLarge, BadRequest, InvalidInput, or as ``Functions``.
        """
        told = call.origin
        nchars = (
            len(told.request_id) + len(told.trace) + len(told.tenant) + len(told.client_context)
        )
        if call.head is not None:
            nchars += call.head.nchars
        if nchars > MAX_HEAD_NCHARS:  # its frame would be too large for the instance, and end that
            raise HeadersTooLarge(
                f"the request's headers have {nchars} bytes; this server takes {MAX_HEAD_NCHARS} at most"
            )
        self._inputs.check(info, call.body)
        self.functions.submit(call)

    def end(self, call: Invocation, sink: Reply) -> None:
        """Nobody waits for it any more: give it up if it has not ended by itself."""
        if not sink.ended:
            sink.leave()
            self.functions.cancel(call)

    def observe(self, known_as: str, call: Invocation, outcome: Outcome) -> None:
        """Count it. known_as: "" for a name that a caller has made up: labels must have an end."""
        queue_ms, predict_ms = call.timings_ms.get("queue"), call.timings_ms.get("predict")
        self._metrics.observe_call(
            known_as,
            outcome,
            total_s=self.clock() - call.arrived_s,
            queue_s=None if queue_ms is None else queue_ms / 1e3,
            predict_s=None if predict_ms is None else predict_ms / 1e3,
        )
