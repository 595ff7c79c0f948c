"""What lies between whoever brings calls and whoever runs the functions.

Knows neither HTTP nor processes: an ``Ingress`` (HTTP, a platform's) is written against ``Functions``,
the pool behind that is one implementation, a test's fake another. Everything runs on the gateway's
event loop.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import UnknownFunction
from zerowake.runtime.hooks import Moment
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.invocation import Invocation

if TYPE_CHECKING:
    from zerowake.runtime.metrics import Metrics


class Functions(Protocol):
    """The functions being served."""

    @property
    def ready(self) -> bool:
        """Whether new calls are welcome: False before anything can serve and while draining."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the gateway is on its way out: calls under way finish, new ones are refused."""
        ...

    async def arrived(self) -> None:
        """Wait until all functions that were named are here: snapshots in stores are fetched first.

        Until then the other methods know none of them. Raises FunctionFailed with what is wrong with
        one, or Draining.
        """

    def names(self) -> list[str]:
        """The names of all functions served, in the order they were named."""
        ...

    def find(self, name: str) -> FunctionInfo:
        """The same object each time until the function changes; hot path.

        Raises UnknownFunction, its message naming the known ones, the nearest first.
        """
        ...

    def submit(self, call: Invocation) -> None:
        """Take ``call``; ``call.sink`` is answered later, never from inside this method.

        ``call.depth`` is set on return, ``call.timings_ms`` at the latest before the first item.
        Raises QueueFull, Draining or FunctionFailed; the sink then stays untouched.
        """

    def cancel(self, call: Invocation) -> None:
        """The caller is gone: drop the call if queued, stop it if it streams.

        Harmless on a call that has ended. The sink may still be answered; nobody listens.
        """

    async def sleep(self, name: str, depth: Depth) -> None:
        """Sink the function to ``depth``; returns when it is there.

        Raises UnknownFunction, FunctionFailed, or another InvocationError saying why it cannot.
        """

    async def wake(self, name: str) -> None:
        """Bring the function up to hot; returns when it is there.

        Raises UnknownFunction or FunctionFailed.
        """

    async def load(self, target: str, name: str) -> None:
        """Serve a snapshot as ``name``, whatever its own is; returns when it is hot.

        Raises what is wrong with the snapshot, or FunctionFailed; it is then not served.
        """

    async def remove(self, name: str) -> None:
        """Serve ``name`` no longer; returns when its calls have ended and its memory is free.

        Raises UnknownFunction.
        """

    async def hook(self, name: str, moment: Moment) -> None:
        """Have the function's processes run what its author wants done at ``moment``.

        After a restore the snapshot is looked at again too. Raises UnknownFunction, FunctionFailed,
        or RemoteError with what went wrong.
        """

    def lend(self, name: str, lease: "Lease") -> bool:
        """Let the function's process take calls itself, from the connection of ``lease``.

        False where it cannot: it yields, takes requests whole, or is not up.
        """
        ...

    def recall(self, name: str) -> None:
        """Have everything that was lent given back: what is idle now, the rest once it has answered."""

    def describe(self) -> list[dict[str, Any]]:
        """One JSON-ready object a function, for ``GET /functions`` and ``zerowake ps``.

        name, depth, state, reason, digest, snapshot (its path), queued, depths (those it can have),
        and processes: a list of {pid, role, state}, its zygote included.
        """
        ...


def takes_requests(functions: Functions, name: str) -> bool:
    """Whether the function takes HTTP requests whole; one that there is not does not."""
    try:
        return functions.find(name).kind is Kind.HTTP
    except UnknownFunction:
        return False


class Lease(Protocol):
    """A connection to a platform in the hands of a function's process, seen from the gateway.

    It ends with ``handed`` or ``lost``. by: ``module:Class`` of the ``runtime.feed.Slot`` that the
    process makes of it. told: what it is made with, as JSON. descriptor: the connection's.
    """

    by: str
    told: dict[str, Any]
    descriptor: int

    def taken(self, event: bytes, sent_nbytes: int) -> Invocation:
        """The process has a call, which the connection has brought as ``event``.

        sent_nbytes: what it has written to the connection before. The call's sink is answered only where the process has not answered the platform.
        """
        ...

    def begins(self, nbytes: int) -> None:
        """It begins to answer, with so many bytes: more than may go out at once."""

    def answered(
        self, call: Invocation, problem: dict[str, Any] | None, polled: bool, read_nbytes: int
    ) -> None:
        """It has, and sent a poll along if ``polled``; ``problem``: with an error.

        read_nbytes: what it has taken out of the connection, before anything was said to its answer.
        """

    def refused(self, status: int, said: str) -> None:
        """The platform does not take the last answer."""

    def recalled(self) -> None:
        """Its answers go without a poll from now on."""

    def handed(self, polled: bool, unacknowledged: bytes) -> None:
        """The process gives the connection back.

        polled: a poll is on its way. unacknowledged: an answer that may not have arrived.
        """

    def lost(self) -> None:
        """The process has ended."""


class Ingress(Protocol):
    """Where calls come from: an HTTP server, or a platform that is asked for them.

    many_connections: whether calls come on many of them, each with its own. Then what a start can do
    for their speed is done, and bodies are checked before they wait in the queue.
    """

    many_connections: ClassVar[bool]

    def open(self) -> None:
        """Listen, before anything slow is imported; raises ConfigError when it cannot."""

    async def serve(self, functions: Functions, metrics: "Metrics") -> None:
        """Bring calls until ``close``; ends earlier, or raises, when no more can come."""

    def drain(self) -> None:
        """Take no more calls; those under way are still to be answered."""

    def close(self) -> None:
        """They are: ``serve`` ends once their answers have been sent."""
