"""Calls that an instance takes from its platform itself, instead of by way of the gateway.

Where a platform is polled, the way of a call from it through the gateway to the instance, and back, took
half as long again as AWS's own client takes for all of an empty invocation. So the gateway lends its
connections: the instance reads what they bring, tells of each call before anything runs, answers it, and
tells that too. Who watches the time, counts, and answers when this process has ended is the gateway, as
with any other call. It keeps the connections open, so that nothing is lost with this process, and gets
back what is not for the function as it is, or does not go as it should.
"""

import importlib
import math
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from zerowake.runtime.invocation import Invocation, Sink
from zerowake.runtime.policy.batching import Batcher, BatchRule
from zerowake.runtime.wire import Connection


class Slot(Sink, Protocol):
    """One connection to a platform: it brings a call, as whose sink it takes the answer, then the next.

    An adapter's class, made in the instance with ``number``, the descriptor, and what the adapter tells
    beside it. A poll is on its way then.

    number: what the gateway calls it. polls_on: ask for the next call with each answer. polled: a poll
    is on its way. event: the call that it has brought, as it came, until it is answered; b"" before
    and after. sent_nbytes, read_nbytes: all that it has written and taken out. unacknowledged: an answer that was sent, and may
    have to be sent again. refused: what the platform says of an answer that it has not taken, until it
    is told. over: it is to be given back. begins: to be called with the bytes of an answer, before any of it
    is sent, where a connection may not take all of it at once.
    """

    number: int
    polls_on: bool
    polled: bool
    event: bytes
    sent_nbytes: int
    read_nbytes: int
    unacknowledged: bytes
    refused: dict[str, Any] | None
    over: bool
    begins: Callable[[int], None]

    def fileno(self) -> int: ...

    def read(self) -> Invocation | None:
        """Look at what has arrived; a call, once all of one is here. Raises nothing: then it is over.

        What is no more than looked at stays in the connection, for the gateway should this process end.
        """

    def was_told(self) -> None:
        """The gateway has the call that was brought last."""

    def close(self) -> None:
        """Of the descriptor only: the connection is the gateway's."""


class Feed:
    """The slots that this instance has been lent, and the calls that they have brought.

    rule: which of the calls run together; each slot brings one at a time, so there is no limit to them.
    """

    def __init__(self, connection: Connection, rule: BatchRule) -> None:
        self._connection = connection
        self._queue = Batcher(rule)
        self._slots: dict[int, Slot] = {}  # by descriptor
        self._untold: list[Slot] = []  # those that have brought a call
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)

    def __len__(self) -> int:
        return len(self._slots)

    def lend(self, number: int, descriptor: int, by: str, told: dict[str, Any]) -> None:
        """Read one more. by: ``module:Class`` of a ``Slot``, made with ``told``."""
        module, _, name = by.partition(":")
        slot: Slot = getattr(importlib.import_module(module), name)(number, descriptor, **told)
        slot.begins = partial(self._begins, number)
        self._slots[descriptor] = slot
        self._ready.register(slot, select.POLLIN)

    def _begins(self, number: int, nbytes: int) -> None:
        self._connection.send({"kind": "begins", "slot": number, "nbytes": nbytes})

    def recall(self) -> None:
        """Give back all of them: at once what waits for a call, the others once they have answered."""
        self.end_polls()
        for slot in self._slots.values():
            slot.over |= not slot.event
        self._settle()

    def end_polls(self) -> None:
        """From now on answers go without a poll, and the gateway hears of that before."""
        if polling := [slot for slot in self._slots.values() if slot.polls_on]:
            numbers = [slot.number for slot in polling]
            self._connection.send({"kind": "recalled", "slots": numbers})
        for slot in polling:
            slot.polls_on = False

    def next(self) -> tuple[Invocation, ...]:
        """The next batch; () when the gateway says something first, or when there is no slot left.

        What has been brought and not told is told with it.
        """
        hold_ms: int | None = 0 if self._queue else None
        while self._slots:
            is_told = False
            for descriptor, _ in self._ready.poll(hold_ms):
                if (slot := self._slots.get(descriptor)) is None:
                    is_told = True
                    continue
                call = slot.read()
                if slot.over or slot.refused is not None:
                    self._settle()
                self._take(slot, call)
            if is_told:
                break
            now = time.monotonic()
            plan = self._queue.plan(now, 1)
            if plan.batches:
                return plan.batches[0]
            self.tell()
            wake_at_s = plan.wake_at_s
            hold_ms = None if wake_at_s is None else math.ceil(1e3 * max(0.0, wake_at_s - now))
        self.tell()
        return ()

    def tell(self, runs: Sequence[Slot] = ()) -> None:
        """Tell what has been brought, and that the calls of ``runs`` run from now on."""
        if not self._untold and not runs:
            return
        brought, self._untold = self._untold, []
        header = {
            "kind": "fed",
            "slots": [slot.number for slot in brought],
            "sent": [slot.sent_nbytes for slot in brought],
            "runs": [slot.number for slot in runs],
        }
        self._connection.send(header, *[slot.event for slot in brought])
        for slot in brought:
            slot.was_told()

    def answered(self, batch: Sequence[Invocation]) -> None:
        """A batch has been, or its calls are the gateway's to answer."""
        self._queue.settle(len(batch), time.monotonic())
        for call in batch:
            self._ready.register(cast(Slot, call.sink), select.POLLIN)
        self._settle()

    def _take(self, slot: Slot, call: Invocation | None) -> None:
        if call is not None:
            self._ready.unregister(slot)  # it has no more to say until it is answered
            self._untold.append(slot)
            self._queue.submit(call, call.arrived_s)

    def _settle(self) -> None:
        """Tell what the platform has refused, and give back the slots that are over."""
        for descriptor, slot in list(self._slots.items()):
            if slot.refused is not None:
                self._connection.send({"kind": "refused", "slot": slot.number, **slot.refused})
                slot.refused = None
            if slot.over:
                self._ready.unregister(descriptor)
                del self._slots[descriptor]
                slot.close()
                header = {"kind": "handed", "slot": slot.number, "polled": slot.polled}
                self._connection.send(header, slot.unacknowledged)
