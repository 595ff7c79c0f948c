"""How one function stands: whether it can run, how deep it can sleep, and what is said of that.

Told of what goes wrong with its processes, it knows none of them itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import FunctionFailed, RemoteError
from zerowake.runtime.policy.lifecycle import Health
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    ForbiddenClass,
    SnapshotError,
    UnsupportedVersion,
    UntrustedCode,
    ZerowakeError,
)

log = logging.getLogger("zerowake.gateway")

FORKABLE = frozenset(Depth)
UNFORKABLE = frozenset((Depth.HOT, Depth.COLD))
SLOW_START_S = 10.0  # a start that takes longer is worth a word
# What no second try mends: the snapshot itself, or its code, is not to be used.
PERMANENT = {
    kind.code
    for kind in (UntrustedCode, ForbiddenClass, DamagedSnapshot, UnsupportedVersion, SnapshotError)
}


class Standing:
    """Of one function.

    quarantined: why its snapshot is not used any more, and over is set with it. unforkable: why it
    has no zygote. last_failure: of a start. clock: monotonic seconds. end_all: called when the
    snapshot is not to be used any more. orders: ``zerowake wake`` reaches this gateway.
    """

    def __init__(
        self,
        name: str,
        clock: Callable[[], float],
        end_all: Callable[[], None],
        *,
        orders: bool = True,
    ) -> None:
        self.health = Health()
        self.quarantined: str | None = None
        self.over = asyncio.Event()
        self.unforkable: str | None = None
        self.last_failure = ""
        self._name = name
        self._clock = clock
        self._end_all = end_all
        self._sooner = f", or at once with: zerowake wake {name}" if orders else ""
        self._counted: ZerowakeError | None = None  # the error that last_failure tells
        self._slow: list[str] = []  # what is said of starts that take long

    @property
    def failed(self) -> str | None:
        """Why the function does not run; None while it may."""
        return self.quarantined or self.health.failed

    @property
    def slow(self) -> str | None:
        """What is said of a start that takes long, while it does."""
        return self._slow[0] if self._slow else None

    @property
    def allowed(self) -> frozenset[Depth]:
        """The depths that the function can have."""
        return FORKABLE if self.unforkable is None else UNFORKABLE

    def refusal(self, *, lives: bool) -> FunctionFailed | None:
        """Why a call cannot be taken now. lives: an instance is ready or starting."""
        if self.quarantined:
            return FunctionFailed(self.quarantined)
        now, health = self._clock(), self.health
        if not health.failed or lives or health.may_start(now):
            return None
        return FunctionFailed(
            f"{self._name} does not run: {health.failed}. It is tried again after a pause{self._sooner}",
            retry_after_s=max(1, round(health.next_start_s - now)),
        )

    def cannot_fork(self, reason: str) -> None:
        """It is hot or cold from now on; several may find that out."""
        if self.unforkable is None:
            self.unforkable = reason
            log.warning("%s: sleeps only at cold: %s", self._name, reason)

    def start_failed(self, error: ZerowakeError | OSError) -> ZerowakeError:
        """Count and log it; returns it as one of ours.

        Everybody who waits for a zygote gets the same error, which is one failure.
        """
        if not isinstance(error, ZerowakeError):
            error = FunctionFailed(f"the system refuses another process: {error}")
        if error is self._counted:
            return error
        self._counted, self.last_failure = error, str(error)
        code = error.problem["code"] if isinstance(error, RemoteError) else error.code
        if code in PERMANENT:
            self.quarantine(str(error))
        else:
            log.error("%s: cannot start: %s", self._name, error)
            self.health.start_failed(self._clock(), str(error))
        return error

    def quarantine(self, reason: str) -> None:
        """Use the snapshot no more. Of several reasons, which are mostly one, the first is told."""
        if self.quarantined is None:
            self.quarantined = f"the snapshot of {self._name} is quarantined: {reason}"
            log.error("%s", self.quarantined)
            self.over.set()
        self._end_all()  # each time: what was being forked the last time is there now

    @contextlib.contextmanager
    def slow_told(self, suspect: str, limit_s: float) -> Iterator[None]:
        """Where a start takes long, say so in the log, and as ``slow`` while it lasts."""
        said = (
            f"{self._name} has been starting for {SLOW_START_S:g} s; does {suspect} hang? "
            f"it is given up after {limit_s:g} s"
        )

        def tell() -> None:
            self._slow.append(said)
            log.warning("%s", said)

        timer = asyncio.get_running_loop().call_later(SLOW_START_S, tell)
        try:
            yield
        finally:
            timer.cancel()
            if said in self._slow:
                self._slow.remove(said)
