"""A connection to Lambda in the hands of the function's process: what the gateway still does for it.

It keeps the time of each call, counts it, and answers those that the process has not: because it has
ended, or because the answer is not one that it can give. How calls run then is as with all others.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from zerowake.adapters.aws.invocations import Invocations, past_deadline
from zerowake.adapters.aws.messages import Event
from zerowake.adapters.aws.runtime_api import Line, Refused, RuntimeApiError
from zerowake.adapters.http1 import parse
from zerowake.adapters.port import AnswerTooLarge
from zerowake.runtime.errors import Cancelled
from zerowake.runtime.gateway.caller import Calling
from zerowake.runtime.invocation import Invocation

log = logging.getLogger("zerowake.adapters")

Handed = tuple[bool, bytes]  # as ``Lease.handed`` tells it

LATE_S = 0.02  # for an answer of the process that has just been in time
SAID_S = 1.0  # for the API to say something to an answer that it has


class Lent:
    """A ``Lease``. took: told the milliseconds of each ``predict``."""

    by = "zerowake.adapters.aws.slot:Slot"

    def __init__(
        self,
        line: Line,
        descriptor: int,
        invocations: Invocations,
        took: Callable[[float], None],
    ) -> None:
        self.descriptor = descriptor
        content_type = invocations.content_type
        self.told = {
            "address": line.host,
            "function": invocations.name,
            "content_type": content_type,
        }
        self._line = line
        self._invocations = invocations
        self._took = took
        self._back: asyncio.Future[Handed | None] = asyncio.get_running_loop().create_future()
        self._event: Event | None = None  # the last that was taken
        self._sent_nbytes = 0  # before it
        self._answer_nbytes: int | None = None  # of a long answer to it
        self._read_nbytes = 0  # before its answer was acknowledged
        self._taken = False  # and not answered by the process, as far as that has said so
        self._polled = True  # with its last answer
        self._recalled = False
        self._calling: Calling | None = None  # nor given up
        self._timer: asyncio.TimerHandle | None = None
        self._errors: set[asyncio.Task[None]] = set()  # on their way

    @classmethod
    async def while_it_lasts(
        cls, line: Line, invocations: Invocations, took: Callable[[float], None]
    ) -> None:
        """Lend ``line``, as far as that goes, until it is given back, and answer what was left over.

        It polls then as it did before. Raises RuntimeApiError.
        """
        if (descriptor := line.lend()) is None:
            return
        lent = cls(line, descriptor, invocations, took)
        if invocations.caller.functions.lend(invocations.name, lent):
            await lent._end(await lent._back)
        else:
            line.regain(polled=True)

    async def _end(self, handed: Handed | None) -> None:
        await asyncio.gather(*self._errors)
        try:
            if handed is not None:
                await self._regain(*handed)
            else:
                await self._regain_from_dead()
        except Refused as error:
            self._log(error)
            self._stop_calling(error)
            if error.http_status == 413 and self._event is not None:
                told = AnswerTooLarge(str(error))
                await self._invocations.fail(self._line, self._event, told)
        if self._calling is not None and self._event is not None:
            timings_ms = self._calling.call.timings_ms
            await self._invocations.complete(self._line, self._event, self._calling)
            self._took(timings_ms.get("predict", 0.0))

    async def _regain(self, polled: bool, unacknowledged: bytes) -> None:
        """Raises Refused."""
        answer = self._line.regain(polled=polled, unacknowledged=unacknowledged)
        if answer is not None:
            await self._line.taken(answer)

    async def _regain_from_dead(self) -> None:
        """What the process did last it may not have told, but the connection shows it. Raises Refused."""
        line, event = self._line, self._event
        if self._taken and not line.was_written(self._sent_nbytes):
            line.close()  # it has not begun to answer, and what is still there was told
        elif event is None or (not self._taken and line.was_read(self._read_nbytes)):
            if self._polled:
                line.regain(polled=True)
            else:
                line.close()
        else:  # nothing of what the API says to its answer was read
            polled = not self._recalled if self._taken else self._polled
            limit_s = max(LATE_S, min(SAID_S, self._invocations.left_s(event)))
            if polled and self._answer_nbytes is not None:
                line.complete_poll(self._sent_nbytes + self._answer_nbytes)
            if await line.regain_answer(limit_s, polled=polled):
                self._stop_calling()
            elif not self._taken:  # it counts as answered, and nobody may have heard of it
                error = Cancelled("the connection broke off in mid-answer")
                await self._invocations.fail(line, event, error)

    def _stop_calling(self, error: Exception | None = None) -> None:
        """Nobody waits for it any more, and it is counted."""
        if self._calling is not None:
            calling, self._calling = self._calling, None
            calling.end(error)

    # ---------------------------------------------------------------- a ``Lease``

    def taken(self, event: bytes, sent_nbytes: int) -> Invocation:
        found = parse(bytearray(event), True)
        if found is None:
            raise ValueError("no response")
        self._event = told = Event.of(found[0])
        self._sent_nbytes, self._answer_nbytes = sent_nbytes, None
        caller, name = self._invocations.caller, self._invocations.name
        self._calling = caller.calling(name, told.id, told.origin)
        self._calling.taken(told.body)
        self._taken = True
        left_s = self._invocations.left_s(told)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._at_deadline)
        return self._calling.call

    def begins(self, nbytes: int) -> None:
        self._answer_nbytes = nbytes

    def answered(
        self, call: Invocation, problem: dict[str, Any] | None, polled: bool, read_nbytes: int
    ) -> None:
        self._stop_timer()
        self._taken, self._polled, self._read_nbytes = False, polled, read_nbytes
        if self._calling is not None:
            self._calling.answered(problem)
            self._calling = None
        self._took(call.timings_ms["predict"])

    def refused(self, status: int, said: str) -> None:
        error = Refused(f"the Runtime API answers {status}: {said}", status)
        self._log(error)
        if status >= 500 and not self._back.done():
            self._back.set_exception(RuntimeApiError(str(error)))
        elif status == 413:
            self._tell(AnswerTooLarge(str(error)))

    def recalled(self) -> None:
        self._recalled = True

    def handed(self, polled: bool, unacknowledged: bytes) -> None:
        self._come_back((polled, unacknowledged))

    def lost(self) -> None:
        self._come_back(None)

    def _come_back(self, handed: Handed | None) -> None:
        self._stop_timer()
        if not self._back.done():
            self._back.set_result(handed)

    # ---------------------------------------------------------------- deadlines

    def _at_deadline(self) -> None:
        """The process does not answer any more; what it said before, if we were frozen, comes first."""
        self._timer = asyncio.get_running_loop().call_later(LATE_S, self._give_up)

    def _give_up(self) -> None:
        if self._calling is not None:
            error = past_deadline()
            self._tell(error)
            self._stop_calling(error)

    def _tell(self, error: Exception) -> None:
        """Answer with an error, here and now; not on the slot's connection, which is not ours."""
        assert self._event is not None
        task = asyncio.create_task(self._invocations.fail(self._line, self._event, error))
        self._errors.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        """One that could not be told is the end, as where the gateway answers."""
        self._errors.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._back.done():
            self._back.set_exception(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _log(self, error: Refused) -> None:
        log.error("invocation %s: %s", self._event.id if self._event else "?", error)
