"""A slot of Lambda in the hands of the function's process: what the gateway still does for it.

It keeps the time of each call, counts it, and answers those that the process has not: because it has
ended, or because the answer is not one that it can give. How calls run then is as with all others.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from zerowake.adapters.aws.invocations import Invocations, past_deadline
from zerowake.adapters.aws.messages import MARGIN_S, Event
from zerowake.adapters.aws.runtime_api import Answer, Line, Refused, RuntimeApiError, event_of
from zerowake.adapters.http1 import Response, parse
from zerowake.adapters.port import AnswerTooLarge
from zerowake.runtime.gateway.caller import Caller, Calling
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation

log = logging.getLogger("zerowake.adapters")

LATE_S = 0.02  # for an answer of the process that has just been in time


class Lent:
    """A ``Lease``. ``back`` is done when the slot is; RuntimeApiError when there is no API any more.

    address: as ``AWS_LAMBDA_RUNTIME_API``. clock: unix seconds, as deadlines are told.
    """

    by = "zerowake.adapters.aws.slot:Slot"

    def __init__(
        self,
        caller: Caller,
        invocations: Invocations,
        info: FunctionInfo,
        address: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.told = {
            "address": address,
            "function": info.name,
            "content_type": invocations.content_type,
        }
        self.back: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._caller = caller
        self._invocations = invocations
        self._info = info
        self._address = address
        self._clock = clock
        self._event: Event | None = None  # the last that was taken
        self._runs = False  # it is not answered by the process
        self._calling: Calling | None = None  # nor given up
        self._timer: asyncio.TimerHandle | None = None
        self._errors: set[asyncio.Task[None]] = set()  # on their way
        self._brought: Response | None = None
        self._unacknowledged = b""

    async def rest(self, line: Line) -> Event | None:
        """Once it is ``back``: answer on ``line`` what was left; what it has brought beside that.

        Raises RuntimeApiError.
        """
        await asyncio.gather(*self._errors)
        if self._unacknowledged:
            try:
                await line.taken(Answer(self._unacknowledged, None))
            except Refused as error:
                self._log(error)
        if self._calling is not None and self._event is not None:
            await self._invocations.complete(line, self._event, self._calling)
        return None if self._brought is None else event_of(self._brought)

    # ---------------------------------------------------------------- a ``Lease``

    def taken(self, event: bytes) -> Invocation:
        self._event = told = Event.of(_response(event))
        self._calling = self._caller.calling(self._info.name, told.id, told.origin)
        self._calling.taken(told.body)
        self._runs = True
        left_s = told.deadline_s - MARGIN_S - self._clock()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._at_deadline)
        return self._calling.call

    def answered(self, call: Invocation, problem: dict[str, Any] | None) -> None:
        self._stop_timer()
        self._runs = False
        if self._calling is not None:
            self._calling.answered(problem)
            self._calling = None

    def refused(self, status: int, said: str) -> None:
        error = Refused(f"the Runtime API answers {status}: {said}", status)
        self._log(error)
        if status >= 500 and not self.back.done():
            self.back.set_exception(RuntimeApiError(str(error)))
        elif status == 413:
            self._tell(AnswerTooLarge(str(error)))

    def handed(self, event: bytes, unacknowledged: bytes) -> None:
        if event and not self._runs:
            self._brought = _response(event)
        self._unacknowledged = unacknowledged
        self.lost()

    def lost(self) -> None:
        self._stop_timer()
        if not self.back.done():
            self.back.set_result(None)

    # ---------------------------------------------------------------- deadlines

    def _at_deadline(self) -> None:
        """The process does not answer any more; what it said before, if we were frozen, comes first."""
        self._timer = asyncio.get_running_loop().call_later(LATE_S, self._give_up)

    def _give_up(self) -> None:
        if self._calling is not None:
            error = past_deadline()
            self._tell(error)
            calling, self._calling = self._calling, None
            calling.__exit__(type(error), error, None)

    def _tell(self, error: Exception) -> None:
        """Answer with an error, on a connection of its own: the slot's is not ours."""
        assert self._event is not None
        task = asyncio.create_task(self._fail(self._event, error))
        self._errors.add(task)

    async def _fail(self, event: Event, error: Exception) -> None:
        line = Line(self._address)
        try:
            await self._invocations.fail(line, event, error)
        finally:
            line.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _log(self, error: Refused) -> None:
        log.error("invocation %s: %s", self._event.id if self._event else "?", error)


def _response(data: bytes) -> Response:
    """What the process has read. Raises ValueError when it is no response."""
    found = parse(bytearray(data), True)
    if found is None:
        raise ValueError("not a response")
    return found[0]
