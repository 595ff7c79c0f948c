"""One process, one function: restore -> ready -> run batches. Read this first.

An instance is forked from a zygote. It restores the snapshot, unless the zygote already holds the
function's object (a ``Kit``), says ``ready`` on its socket and then answers batches until the
gateway says ``stop`` or is gone. Knows nothing of queues, depths or other instances.
"""

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zerowake.runtime import forms, hooks, process
from zerowake.runtime.config import InstanceSpec
from zerowake.runtime.errors import InvocationError, to_problem
from zerowake.runtime.exchange import RequestHead
from zerowake.runtime.executor import Answer, Executor, Work
from zerowake.runtime.forms import Chosen, FormName, choose
from zerowake.runtime.function import Function
from zerowake.runtime.hooks import Moment
from zerowake.runtime.imported import import_function
from zerowake.runtime.info import Kind
from zerowake.runtime.invocation import Invocation, Origin
from zerowake.runtime.logs import FunctionOutput, print_exception
from zerowake.runtime.wire import Connection, Frame, encode
from zerowake.snapshot.errors import SnapshotError, UnusableForm
from zerowake.snapshot.restore import Restored, wake_up
from zerowake.snapshot.store import open_snapshot

if TYPE_CHECKING:
    from zerowake.runtime.feed import Feed, Slot

RESTED_S = 0.05  # after so long without a batch the threads of a pool are asleep
ROOM_NBYTES = 8 << 20  # for what a restore makes
AS_THEY_ARE = contextlib.nullcontext()  # the threads
WARM_UP = "warm-up"  # in the log, the invocation of what a warm-up call prints


@dataclass(frozen=True, slots=True)
class Kit:
    """A function ready to be forked from: its declaration and its object, mapped and not yet woken.

    restored: None in the zygote of a function that runs on an accelerator.
    warm_up: the probe's largest case, because what it brings in serves smaller ones too; nothing
    where there is no probe.
    form, reason: as in ``Chosen``, of what was restored in the end.
    """

    function: Function
    warm_up: list[bytes]
    restored: Restored | None
    report_ms: dict[str, float]
    form: FormName
    reason: str


def prepare(spec: InstanceSpec, *, in_zygote: bool) -> Kit:
    """Import the author's code and restore the object, without ``wake``.

    For an accelerator a zygote keeps only the imports: a device's context does not survive a fork.
    """
    snapshot = open_snapshot(Path(spec.snapshot), checked=spec.digest)
    if snapshot.digest != spec.digest:
        raise SnapshotError(
            f"{snapshot.path} held {spec.digest} when it was opened and holds {snapshot.digest} now; "
            "snapshots are immutable, serve the new one by its own path"
        )
    device, chosen = "cpu", choose(snapshot, spec.trusted, spec.device, loads=True)
    if chosen.name is FormName.EAGER:
        from zerowake.snapshot import staging  # imports torch
        from zerowake.snapshot.device import resolve_device

        device = resolve_device(spec.device)
        if device != "cpu" and not in_zygote:
            staging.begin(device)  # the context takes longer than the imports: side by side
    started = time.perf_counter()
    code_dir = Path(spec.code_dir) if spec.code_dir else None
    imported = import_function(snapshot, trusted=spec.trusted, code_dir=code_dir)
    import_ms = 1e3 * (time.perf_counter() - started)
    warm_up = max(imported.cases, key=lambda case: sum(map(len, case)), default=[])
    if in_zygote and device != "cpu":
        return Kit(
            imported.function, warm_up, None, {"import": import_ms}, chosen.name, chosen.reason
        )
    try:
        restored = imported.restore(device=device, form=chosen.compiled)
    except UnusableForm as error:
        chosen = Chosen(FormName.EAGER, reason=f"the compiled form cannot be used: {error}")
        restored = imported.restore(device=device)
    if chosen.name is FormName.EAGER and chosen.compiled is None:
        forms.compile_apart(snapshot)
    report_ms = {**restored.report, "import": import_ms + restored.report["import"]}
    return Kit(imported.function, warm_up, restored, report_ms, chosen.name, chosen.reason)


def rehearse(kit: Kit, output: FunctionOutput) -> bool:
    """Make the warm-up call in the zygote itself: its forks share what that brings into memory.

    Not for an object with a ``wake``, which must run before ``predict`` and belongs to instances.
    Returns whether the call was made.
    """
    restored = kit.restored
    if restored is None or hasattr(restored.object, "wake"):
        return False
    restored.populate()
    with output.during(WARM_UP):
        Executor(kit.function, restored.object).answer(kit.warm_up)
    process.trim_heap()
    return True


def main(connection: Connection, spec: InstanceSpec, kit: Kit | None) -> bool:
    """The whole life of an instance, from the fork to the end of its socket.

    Errors on the way to ``ready`` go to the gateway as a ``failed`` frame. Returns whether it was ready.
    """
    output = FunctionOutput(spec.name, spec.log_format)
    output.install()
    logging.raiseExceptions = False
    process.reseed()
    started = time.perf_counter()
    try:
        kit, executor, report_ms = _start(connection, spec, kit, output)
    except BaseException as error:
        print_exception(error.__cause__ or error)  # the author's, where there is one
        connection.send({"kind": "failed", "problem": to_problem(error)})
        return False
    report_ms["total"] = 1e3 * (time.perf_counter() - started)
    form = {"form": kit.form, "reason": kit.reason}
    connection.send({"kind": "ready", "report": report_ms, **form})
    assert kit.restored is not None
    Loop(connection, executor, kit.function, output, kit.restored.eager_calls).run()
    return True


def _start(
    connection: Connection, spec: InstanceSpec, kit: Kit | None, output: FunctionOutput
) -> tuple[Kit, Executor, dict[str, float]]:
    report_ms: dict[str, float] = {}
    if kit is None or kit.restored is None:
        process.make_room(ROOM_NBYTES)
        kit = prepare(spec, in_zygote=False)
        report_ms |= kit.report_ms
    assert kit.restored is not None
    started = time.perf_counter()
    wake_up(kit.restored.object, spec.name)
    report_ms["wake"] = 1e3 * (time.perf_counter() - started)
    executor = Executor(
        kit.function, kit.restored.object, again=lambda: connection.send({"kind": "again"})
    )
    if spec.warm:
        started = time.perf_counter()
        kit.restored.populate()
        process.set_threads(kit.function.settings.threads)
        # Once, at the full number of threads: it grows the heap and starts OpenMP's pool. After a
        # second one a first MiniLM call took as long, 16.7 ms (without any, 24).
        with output.during(WARM_UP):
            executor.answer(kit.warm_up)
        process.trim_heap()
        report_ms["warm_up"] = 1e3 * (time.perf_counter() - started)
    return kit, executor, report_ms


class Loop:
    """Answers the gateway's frames, one batch at a time.

    eager_calls: how many calls have gone past the compiled form so far; the gateway counts them.
    """

    def __init__(
        self,
        connection: Connection,
        executor: Executor,
        function: Function,
        output: FunctionOutput,
        eager_calls: Callable[[], int] = lambda: 0,
    ) -> None:
        self._connection = connection
        self._executor = executor
        self._function = function
        self._output = output
        self._eager_calls = eager_calls
        self._told_eager = eager_calls()
        self._settled_s = 0.0
        self._feed: Feed | None = None  # once it has been lent something
        self._waiting: list[Frame] = []  # frames that arrived while something else was looked after

    def run(self) -> None:
        """Until the gateway says ``stop``, or is gone; what was lent is given back before."""
        stopping = False
        while not stopping or self._feed:
            if self._feed and not self._waiting and not self._connection.pending():
                if batch := self._feed.next():
                    self._fed(batch)
                    continue
                if not self._feed:  # all has been given back
                    continue
            if (frame := self._next()) is None:
                return
            match frame.kind:
                case "batch":  # a cancel that finds no stream running came too late
                    self._batch(frame)
                case "hook":
                    self._hook(Moment(frame.header["moment"]))
                case "lend":
                    self._lend(frame)
                case "recall" | "stop":
                    stopping |= frame.kind == "stop"
                    if self._feed is not None:
                        self._feed.recall()

    def _next(self) -> Frame | None:
        return self._waiting.pop(0) if self._waiting else self._connection.receive()

    def _hook(self, moment: Moment) -> None:
        header: dict[str, Any] = {"kind": "hooked"}
        try:
            with self._output.during(moment):
                hooks.run(moment)
        except BaseException as error:
            print_exception(error)
            header["problem"] = to_problem(error)
        self._connection.send(header)

    def _lend(self, frame: Frame) -> None:
        from zerowake.runtime.feed import Feed  # most instances do without it

        told = frame.header
        if self._feed is None:
            self._feed = Feed(self._connection, self._function.settings.batch_rule())
        if self._connection.descriptors:  # else this process has as many as it may
            descriptor = self._connection.descriptors.pop(0)
            self._feed.lend(told["slot"], descriptor, told["by"], told["with"])
        else:
            self._connection.send({"kind": "handed", "slot": told["slot"], "polled": True}, b"")

    def _batch(self, frame: Frame) -> None:
        now = time.monotonic()
        works = [
            Work(
                call["id"],
                body,
                now + call["timeout_s"],
                Origin(**call.get("origin", {})),
                RequestHead.from_json(call["head"]) if "head" in call else None,
            )
            for call, body in zip(frame.header["calls"], frame.parts(), strict=True)
        ]
        if not self._function.settings.retry:
            self._connection.send({"kind": "began"})
        ids = [work.id for work in works]
        with self._spread(frame.header["busy"]), self._output.during(*ids):
            if self._function.kind is Kind.STREAM:
                for index, work in enumerate(works):
                    self._stream(index, work)
                self._connection.send(self._settled())
            else:
                answers, predict_ms = self._run(works)
                header = {"kind": "result", "predict_ms": predict_ms}
                self._tell(
                    _result({**header, "call": index}, answer)
                    for index, answer in enumerate(answers)
                )
        self._settled_s = time.monotonic()

    def _fed(self, calls: tuple[Invocation, ...]) -> None:
        """A batch that came past the gateway. It has each call as it came, should this process end."""
        assert self._feed is not None
        slots = [cast("Slot", call.sink) for call in calls]
        self._feed.tell(slots)
        now = time.monotonic()
        deadline_s = now + self._function.settings.timeout_s
        works = [Work(call.id, call.body, deadline_s, call.origin) for call in calls]
        with self._spread(1), self._output.during(*[work.id for work in works]):
            answers, predict_ms = self._run(works)
            if any(frame.kind in ("recall", "stop") for frame in self._looked_at()):
                self._feed.end_polls()
            frames = []
            for call, slot, answer in zip(calls, slots, answers, strict=True):
                if answer.problem is not None:
                    call.fail(answer.problem)
                else:
                    call.finish(answer.result)
                header = {"kind": "result", "call": -slot.number, "predict_ms": predict_ms}
                header["queue_ms"] = 1e3 * (now - call.arrived_s)
                if not slot.event:
                    header |= {"answered": slot.polled, "read": slot.read_nbytes}
                    answer = Answer(problem=answer.problem)
                frames.append(_result(header, answer))
            self._tell(frames)
        self._settled_s = time.monotonic()
        self._feed.answered(calls)

    def _spread(self, sharers: int) -> AbstractContextManager[None]:
        """Before something is computed, with all threads, as one of ``sharers`` instances."""
        process.set_threads(self._function.settings.threads, sharers=sharers)
        rested = time.monotonic() - self._settled_s > RESTED_S
        return process.spread_threads() if rested else AS_THEY_ARE

    def _run(self, works: list[Work]) -> tuple[list[Answer], float]:
        """Answers, and the milliseconds that they took."""
        started = time.perf_counter()
        answers = self._executor.run(works)
        predict_ms = 1e3 * (time.perf_counter() - started)
        self._output.flush()
        return answers, predict_ms

    def _tell(self, results: Iterable[bytes]) -> None:
        """One write for the whole batch: the gateway answers all callers in one turn of its loop."""
        self._connection.socket.sendall(b"".join((*results, encode(self._settled()))))

    def _settled(self) -> dict[str, Any]:
        before, self._told_eager = self._told_eager, self._eager_calls()
        more = self._told_eager - before
        return {"kind": "settled", **({"eager_calls": more} if more else {})}

    def _stream(self, index: int, work: Work) -> None:
        header: dict[str, Any] = {"call": index}
        started = time.perf_counter()
        chunks = self._executor.stream(work)
        try:
            for chunk in chunks:
                self._connection.send({"kind": "item", **header}, chunk)
                if self._cancelled(index):
                    break
        except BaseException as error:
            if not isinstance(error, InvocationError):
                print_exception(error)
            header["problem"] = to_problem(error)
        finally:
            chunks.close()
        header["predict_ms"] = 1e3 * (time.perf_counter() - started)
        self._connection.send({"kind": "result", **header})

    def _cancelled(self, index: int) -> bool:
        """Whether the caller of the running stream has left; other frames wait for their turn."""
        return any(
            frame.kind == "cancel" and frame.header["call"] == index for frame in self._looked_at()
        )

    def _looked_at(self) -> list[Frame]:
        """The frames that are here, and wait for their turn."""
        while self._connection.pending() or select.select([self._connection], [], [], 0)[0]:
            frame = self._connection.receive()
            if frame is None:  # the gateway is gone: nobody is left to answer
                os._exit(0)
            self._waiting.append(frame)
        return self._waiting


def _result(header: dict[str, Any], answer: Answer) -> bytes:
    """The frame that tells it; an empty result is one too."""
    if answer.head is not None:
        header["head"] = answer.head.to_json()
    if answer.problem is not None:
        return encode({**header, "problem": answer.problem})
    return encode(header) if "answered" in header else encode(header, answer.result)
