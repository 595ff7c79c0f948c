"""One call from its body to its end: an id, the schema check, the pool, the metrics.

Knows no HTTP and no platform: the invoke endpoint and the adapters' events come through here.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any
from weakref import WeakValueDictionary

from zerowake.runtime.errors import HeadersTooLarge
from zerowake.runtime.exchange import MAX_HEAD_NCHARS, ReplyHead, RequestHead
from zerowake.runtime.gateway.inputs import Inputs
from zerowake.runtime.gateway.mailbox import Mailbox
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.gateway.problems import describe
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import NOWHERE, Invocation, Origin
from zerowake.runtime.metrics import Metrics, Outcome

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Caller:
    """Brings calls to ``functions``. ``clock`` gives monotonic seconds.

    checks: hold bodies against the function's schema before they wait in its queue. The instance
    does it as well, so where calls are few, the 14 ms that a start takes for it are left out.
    """

    def __init__(
        self,
        functions: Functions,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        checks: bool = True,
    ) -> None:
        self.functions = functions
        self.clock = clock
        self._metrics = metrics
        self._inputs = Inputs() if checks else None
        self._given_ids: WeakValueDictionary[str, Mailbox] = WeakValueDictionary()

    async def call(
        self,
        name: str,
        body: bytes,
        given_id: str = "",
        origin: Origin = NOWHERE,
        then: Callable[[list[bytes]], None] | None = None,
    ) -> list[bytes]:
        """One call from start to end: the chunks of its result, one for a unary function.

        then: given the result of a unary function as soon as it is there, before this returns it.
        Cancelling it cancels the call. Raises what is wrong with the input, QueueFull, Draining,
        UnknownFunction, FunctionFailed, or RemoteError with what became of it.
        """
        with Calling(self, name, Mailbox(then), given_id, origin) as calling:
            return await calling.result(body)

    async def stream(
        self, name: str, body: bytes, given_id: str = "", origin: Origin = NOWHERE
    ) -> AsyncGenerator[list[bytes], None]:
        """One call, its chunks as they come; raises as ``call``. Closing it cancels the call."""
        with Calling(self, name, Mailbox(), given_id, origin) as calling:
            calling.submit(body)
            while chunks := await calling.sink.read():
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
        with Calling(self, name, Mailbox(), given_id, origin) as calling:
            calling.call.head = head
            reply = await calling.result(body)
        if (told := calling.call.reply) is None:  # another function has taken its name meanwhile
            told = ReplyHead(200, (("content-type", "application/json"),))
        return told, b"".join(reply)

    def calling(self, name: str, given_id: str, origin: Origin) -> "Calling":
        """One call, step by step."""
        return Calling(self, name, Mailbox(), given_id, origin)

    def new(self, name: str, sink: Mailbox, given_id: str, origin: Origin) -> Invocation:
        """A call under the id that its caller gave, if it is one and no call still alive has it.

        Frames to instances are told apart by these ids. A client that gave up may come again with
        the same id while its first call runs: its sink lives as long as anybody can answer it.
        """
        if not _ID.fullmatch(given_id) or given_id in self._given_ids:
            return Invocation(name, b"", sink, self.clock(), origin=origin)
        self._given_ids[given_id] = sink
        return Invocation(name, b"", sink, self.clock(), given_id, origin=origin)

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
        if self._inputs is not None:
            self._inputs.check(info, call.body)
        self.functions.submit(call)

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


class Calling:
    """One call, given up and counted when it is left.

    submitted: whether the pool has it, or has had it. problem: why it has not ended well, as its caller
    is to be told; once it is left.
    """

    __slots__ = ("_caller", "_known_as", "call", "problem", "sink", "submitted")

    def __init__(
        self, caller: Caller, name: str, sink: Mailbox, given_id: str, origin: Origin
    ) -> None:
        self._caller = caller
        self._known_as = ""
        self.call = caller.new(name, sink, given_id, origin)
        self.problem: dict[str, Any] | None = None
        self.sink = sink
        self.submitted = False

    def find(self) -> FunctionInfo:
        """The function that is called; counted under its name from now on. Raises UnknownFunction."""
        info = self._caller.functions.find(self.call.function)
        self._known_as = info.name
        return info

    def submit(self, body: bytes) -> None:
        """Raises as ``Caller.submit``, or UnknownFunction."""
        info = self.find()
        self.call.body = body
        self._caller.submit(info, self.call)
        self.submitted = True

    async def result(self, body: bytes) -> list[bytes]:
        """Submit it; all its chunks, once it has ended. Raises as ``Caller.call``."""
        self.submit(body)
        return await self.rest()

    async def rest(self) -> list[bytes]:
        """The unread chunks, once it has ended. Raises RemoteError."""
        rest: list[bytes] = []
        while chunks := await self.sink.read():
            rest += chunks
        return rest

    def taken(self, body: bytes) -> None:
        """A process of the function has it already. Raises UnknownFunction."""
        self.find()
        self.call.body = body
        self.submitted = True

    def answered(self, problem: dict[str, Any] | None) -> None:
        """The process that had it ``taken`` has told its caller; ``problem``: of an error."""
        told_ms = self.call.timings_ms  # its frames may have waited, and been read in one go
        began_s = self._caller.clock() - (told_ms["queue"] + told_ms["predict"]) / 1e3
        self.call.arrived_s = min(self.call.arrived_s, began_s)
        self.sink.ended, self.problem = True, problem
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Nobody waits for it any more, because of ``error`` if there is one."""
        call = self.call
        if isinstance(error, Exception):
            self.problem = describe(error, f"{call.function} {call.id}")
        if self.submitted and not self.sink.ended:
            self.sink.leave()
            self._caller.functions.cancel(call)
        if self.problem is not None:
            outcome = Outcome.of(self.problem)
        elif error is not None:
            outcome = Outcome.CANCELLED
        else:
            outcome = Outcome.OK if call.reply is None else Outcome.of_status(call.reply.status)
        self._caller.observe(self._known_as, call, outcome)

    def __enter__(self) -> "Calling":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        self.end(error)
