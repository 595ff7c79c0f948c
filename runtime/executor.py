"""Runs one function's ``predict`` on batches of encoded items: decode, call, check, split, encode.

A function of requests is given each with its head instead, and answers with one.

The thread that calls it owns the device. An item that fails, fails alone: a batch that raises, or
returns a wrong number of results, is halved until the culprits stand by themselves. Knows nothing
of sockets, queues or processes.
"""

import contextlib
import logging
import signal
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

from zerowake.runtime.call import call_batch, call_one, in_mode, inference_mode
from zerowake.runtime.errors import (
    BadResult,
    InvocationError,
    RemoteError,
    WrongResultCount,
    to_problem,
)
from zerowake.runtime.exchange import (
    MAX_RESULT_NBYTES,
    POSTED,
    ReplyHead,
    RequestHead,
    check,
    result_of,
)
from zerowake.runtime.function import Context, Function
from zerowake.runtime.info import Kind
from zerowake.runtime.invocation import NOWHERE, Origin
from zerowake.runtime.logs import print_exception

log = logging.getLogger("zerowake.executor")


class Work(NamedTuple):
    """One item to run: the invocation's id, the encoded body, monotonic deadline in seconds.

    head: of the request that the body came in, for a function of requests.
    """

    id: str
    body: bytes
    deadline_s: float = float("inf")
    origin: Origin = NOWHERE
    head: RequestHead | None = None


class Answer(NamedTuple):
    """What became of one item: an encoded result, or the members of a problem and its exception.

    head: where the result is the body of a reply.
    """

    result: bytes = b""
    problem: dict[str, Any] | None = None
    error: BaseException | None = None
    head: ReplyHead | None = None


class Executor:
    """Calls one function.

    Parameters
    ----------
    restored: the object after ``load`` or restore; a plain handler has none.
    again: called before ``predict`` runs anew on a part of a batch that raised, so that whoever
        watches the time can start counting anew.
    """

    def __init__(
        self, function: Function, restored: Any, again: Callable[[], None] = lambda: None
    ) -> None:
        with contextlib.suppress(ImportError):
            import orjson  # noqa: F401  # so that ``encode_json`` spells alike at freeze and later
        self._function = function
        self._target = function.target if function.kind.is_function else restored
        self._again = again

    def run(self, batch: Sequence[Work]) -> list[Answer]:
        """One answer for each item of ``batch``, in its order. Streams go through ``stream``."""
        if self._function.kind is Kind.HTTP:
            return [self._exchange(work) for work in batch]
        decode, invoke = self._function.decode, self._invoke
        outcomes: list[Any] = [_outcome(partial(decode, work.body)) for work in batch]
        valid = [i for i, value in enumerate(outcomes) if not isinstance(value, BaseException)]
        with inference_mode():
            if self._function.kind is Kind.BATCH and valid:
                results = self._run_batch([outcomes[i] for i in valid])
            else:
                results = [_outcome(partial(invoke, batch[i], outcomes[i])) for i in valid]
            for i, result in zip(valid, results, strict=True):
                outcomes[i] = result
            return [self._answer(outcome) for outcome in outcomes]

    def answer(self, case: Sequence[bytes]) -> list[list[bytes]]:
        """The chunks of each item of a probe case. Raises RemoteError for the first that fails."""
        works = [Work(f"probe-{place}", body) for place, body in enumerate(case)]
        if self._function.kind is Kind.STREAM:
            return [list(self.stream(work)) for work in works]
        answers = self.run(works)
        for answer in answers:
            if answer.problem is not None:
                raise RemoteError(answer.problem) from answer.error
        return [[answer.result] for answer in answers]

    def stream(self, work: Work) -> Generator[bytes, None, None]:
        """The encoded items of a stream. Raises what the author's generator raises."""
        value = self._function.decode(work.body)
        items = self._invoke(work, value)
        yield from in_mode(_fitting(self._function.encode(item)) for item in items)

    def _run_batch(self, values: list[Any]) -> list[Any]:
        """Each item's result or the exception that it ended with."""
        results = _outcome(partial(call_batch, self._target, values))
        if not isinstance(results, BaseException):
            return list(results)
        if isinstance(results, WrongResultCount):
            log.error("%s", results)  # halves may come out right, so nobody else says the counts
        # Without retry the author says that predict must not run twice on one item.
        if len(values) == 1 or not self._function.settings.retry:
            return [results] * len(values)
        middle = len(values) // 2
        outcomes = []
        for part in (values[:middle], values[middle:]):
            self._again()
            outcomes += self._run_batch(part)
        return outcomes

    def _invoke(self, work: Work, value: Any) -> Any:
        context = Context(work.id, self._function.name, work.deadline_s, work.origin)
        return call_one(self._function, self._target, value, context)

    def _exchange(self, work: Work) -> Answer:
        """A whole request answered; not in inference mode, for it may be no inference at all."""

        def exchange() -> tuple[ReplyHead | None, bytes]:
            head, body = self._target(work.head or POSTED, work.body)
            check(head)
            return (head, body) if work.head is not None else (None, result_of(head, body))

        outcome = _outcome(exchange)
        if isinstance(outcome, BaseException):
            return _failed(outcome)
        head, body = outcome
        return Answer(result=body, head=head)

    def _answer(self, outcome: Any) -> Answer:
        result = outcome
        if not isinstance(outcome, BaseException):
            result = _outcome(lambda: _fitting(self._function.encode(outcome)))
        if isinstance(result, BaseException):
            return _failed(result)
        return Answer(result=result)


def _failed(error: BaseException) -> Answer:
    if not isinstance(error, InvocationError):  # the author's: where, for the log
        print_exception(error)
    return Answer(problem=to_problem(error), error=error)


def _outcome(call: Callable[[], Any]) -> Any:
    """The result of ``call``, or the exception: even SystemExit must not end the instance."""
    try:
        return call()
    except BaseException as error:
        # Ctrl-C of whoever freezes; an instance is not sent any, so there it is the author's own.
        if isinstance(error, KeyboardInterrupt) and _interruptible():
            raise
        return error


def _interruptible() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _fitting(result: bytes) -> bytes:
    if len(result) > MAX_RESULT_NBYTES:
        raise BadResult(
            f"a result of {len(result)} bytes; at most {MAX_RESULT_NBYTES}: yield it in parts, or "
            "put it into a store and answer with its place"
        )
    return result
