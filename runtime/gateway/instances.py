"""One instance, as the gateway sees it: its link, what it is doing, and for whom."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import Any

from zerowake.runtime.errors import RemoteError
from zerowake.runtime.gateway.instance_link import InstanceLink
from zerowake.runtime.gateway.port import Lease
from zerowake.runtime.gateway.zygote_link import Forked, mark_seen
from zerowake.runtime.hooks import Moment
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.logs import invocation_fields
from zerowake.runtime.wire import Frame

RESTFUL_NBYTES = 16 << 10


class State(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


class Instance:
    """One process of the function.

    hot: it has been given a call, or was asked for by ``wake``; until then it is prewarmed.
    retiring: it ends after its batch. timed_out: it was killed because ``predict`` took too long.
    batch: what is not answered yet, by its place in the batch. begun: ``predict`` runs on it, as
    far as we know. restored: it has said that it is ready, or has ended; ``ready`` waits for the
    snapshot to be hashed as well. poisoned: it runs a single call under which another instance has
    died already, or one that must not run twice, so that its death says nothing about the function.
    restore_ms: what its restore took, told to those of the first batch that waited for it: they came
    before ``ready_s``, monotonic seconds. lent: what it takes calls from itself, by number. waiting:
    those that it has taken and not begun with; their place, there and in ``batch``, is the number's
    negative.
    """

    def __init__(
        self,
        forked: Forked,
        on_frame: Callable[["Instance", Frame], Awaitable[None] | None],
        hot: bool,
    ) -> None:
        self.link = InstanceLink(forked, partial(on_frame, self))
        self.state = State.STARTING
        self.hot = hot
        self.retiring = False
        self.timed_out = False
        self.batch: dict[int, Invocation] = {}
        self.batch_size = 0
        self.begun = False
        self.poisoned = False
        self.timer: asyncio.TimerHandle | None = None
        self.restore_ms: dict[str, float] = {}
        self.ready_s = 0.0
        self.ready: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(mark_seen)
        self.restored = asyncio.Event()
        self.ready.add_done_callback(lambda _ready: self.restored.set())
        self.lent: dict[int, Lease] = {}
        self.waiting: dict[int, Invocation] = {}
        self._hooked: asyncio.Future[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self.state in (State.IDLE, State.BUSY)

    def take(self, batch: tuple[Invocation, ...], *, begun: bool) -> None:
        """It is busy with ``batch`` from now on."""
        self.hot = True
        self.state = State.BUSY
        self.batch = dict(enumerate(batch))
        self.batch_size = len(batch)
        self.begun = begun
        self.poisoned = len(batch) == 1 and batch[0].attempts > 0
        self.restore_ms = {}

    def lend(self, number: int, lease: Lease) -> bool:
        """Have it take calls from a platform itself; False when it does not go now."""
        header = {"kind": "lend", "slot": number, "by": lease.by, "with": lease.told}
        if not self.link.send_with(lease.descriptor, header):
            return False
        self.lent[number] = lease
        return True

    def recall(self) -> None:
        """Have it give back what it was lent."""
        if self.lent:
            self.link.send({"kind": "recall"})

    def fed(self, frame: Frame, *, retry: bool) -> list[Invocation]:
        """It has taken calls itself; those that it has begun with come before what it was given."""
        slots, runs = frame.header["slots"], frame.header["runs"]
        told = zip(slots, frame.parts(), frame.header["sent"], strict=True)
        taken = [self.lent[slot].taken(event, sent) for slot, event, sent in told]
        self.waiting.update(zip((-slot for slot in slots), taken, strict=True))
        # Else somebody waits for what comes next: it may not fit into the socket's buffer.
        if not self.batch and len(frame.body) <= RESTFUL_NBYTES:
            self.link.rest()
        if runs:
            if self.state is State.IDLE:
                self.state = State.BUSY
            self.hot = self.begun = True
            self.batch |= {-slot: self.waiting.pop(-slot) for slot in runs}
            self.batch_size = len(self.batch)
            self.poisoned = not retry and self.batch_size == 1
            self.restore_ms = {}
        return taken

    def slot_told(self, frame: Frame) -> None:
        """It says something of a connection that it was lent."""
        header = frame.header
        match frame.kind:
            case "recalled":
                for slot in header["slots"]:
                    self.lent[slot].recalled()
            case "begins":
                self.lent[header["slot"]].begins(header["nbytes"])
            case "refused":
                self.lent[header["slot"]].refused(header["status"], header["said"])
            case "handed":
                self.lent.pop(header["slot"]).handed(header["polled"], *frame.parts())

    def lose(self) -> None:
        """It has ended, and with it the connections."""
        while self.lent:
            self.lent.popitem()[1].lost()

    async def hook(self, moment: Moment) -> None:
        """Have the author's hooks run. Raises RemoteError with what went wrong."""
        self._hooked = asyncio.get_running_loop().create_future()
        self.link.send({"kind": "hook", "moment": moment})
        await self._hooked

    def hooked(self, problem: dict[str, Any] | None) -> None:
        """They have run, or ``problem`` says why not."""
        if self._hooked is None or self._hooked.done():
            return
        if problem is None:
            self._hooked.set_result(None)
        else:
            self._hooked.set_exception(RemoteError(problem))

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def log_fields(self, name: str) -> dict[str, Any]:
        """What a log line about it carries. name: the function's."""
        ids = invocation_fields(call.id for call in self.batch.values())
        return {"fields": {"function": name, "pid": self.link.pid, **ids}}
