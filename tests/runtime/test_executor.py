"""One item's failure is its own, whatever the batch."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from zerowake import Batch, Context, InvalidInput, function
from zerowake.runtime.errors import RemoteError, to_problem
from zerowake.runtime.exchange import ReplyHead, RequestHead
from zerowake.runtime.executor import Executor, Work
from zerowake.runtime.function import function_of, http_function


@function(batch=Batch(max_size=16), examples=[1])
class Halve:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def predict(self, items: list[int]) -> list[float]:
        self.batches.append(items)
        if 13 in items:
            raise ValueError("13 is bad")
        if 14 in items:
            raise InvalidInput("14 is not acceptable")
        return [item / 2 for item in items]


def run(target: Any, values: list[Any], **options: Any) -> list[Any]:
    """Results, or codes of problems."""
    executor = Executor(function_of(type(target)), target, **options)
    answers = executor.run([Work(str(v), json.dumps(v).encode()) for v in values])
    return [a.problem["code"] if a.problem else json.loads(a.result) for a in answers]


def test_what_an_error_says_fits_into_its_frame() -> None:
    problem = to_problem(ValueError("x" * 20_000_000))
    assert problem["detail"].startswith("ValueError: xxx")
    assert problem["detail"].endswith("x... (20000012 characters)")
    assert len(problem["detail"]) < 11_000


def test_a_batch_that_raises_is_halved_until_the_culprit_stands_alone() -> None:
    halve, again = Halve(), []
    answers = run(halve, [1, 2, 3, 13, 5, 6, 7, 8], again=lambda: again.append(1))
    assert answers == [0.5, 1.0, 1.5, "handler_failed", 2.5, 3.0, 3.5, 4.0]
    assert len(again) == len(halve.batches) - 1
    assert len(halve.batches) == 1 + 2 + 2 + 2  # one path down, not a call for each item


def test_two_culprits_keep_their_own_errors() -> None:
    assert run(Halve(), [13, 1, 14, 2]) == ["handler_failed", 0.5, "invalid_input", 1.0]


def test_an_item_that_does_not_fit_never_reaches_predict() -> None:
    halve = Halve()
    assert run(halve, [2, "two", 4]) == [1.0, "invalid_input", 2.0]
    assert halve.batches == [[2, 4]]


class Short(Halve):
    def predict(self, items: list[int]) -> list[float]:
        self.batches.append(items)
        return [item / 2 for item in items if item != 13]


short = function(batch=Batch(max_size=16), examples=[1])(Short)
short_once = function(batch=Batch(max_size=16), examples=[1], retry=False)(
    type("Once", (Short,), {})
)


def test_a_wrong_count_is_halved_too_and_each_time_both_counts_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(short(), [1, 2, 13, 4]) == [0.5, 1.0, "wrong_result_count", 2.0]
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert [line.partition(";")[0] for line in caplog.messages] == [
        "predict returned 3 results for a batch of 4 item(s)",
        "predict returned 1 results for a batch of 2 item(s)",
        "predict returned 0 results for a batch of 1 item(s)",
    ]


def test_without_retry_a_wrong_count_is_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    once = short_once()
    assert run(once, [1, 13]) == ["wrong_result_count"] * 2
    assert len(once.batches) == 1 and "1 results for a batch of 2" in caplog.text


@function(batch=Batch(max_size=4), examples=[1], retry=False)
class Careful:
    def __init__(self) -> None:
        self.calls = 0

    def predict(self, items: list[int]) -> list[int]:
        self.calls += 1
        raise ValueError("no")


def test_without_retry_a_batch_that_raises_runs_once() -> None:
    careful = Careful()
    assert run(careful, [1, 2]) == ["handler_failed"] * 2
    assert careful.calls == 1


@function(batch=Batch(max_size=4), examples=[1])
class Odd:
    def predict(self, items: list[int]) -> list[int]:
        if items[0] == 1:
            return 5  # type: ignore[return-value]
        return [ValueError("as a value") if item == 3 else item for item in items]  # type: ignore[misc]


def test_results_may_be_errors_and_must_be_a_list() -> None:
    assert run(Odd(), [2, 3]) == [2, "handler_failed"]
    assert run(Odd(), [1]) == ["handler_failed"]


@function(examples=[1])
class Exits:
    def predict(self, x: int) -> int:
        raise SystemExit(x)


def test_system_exit_is_an_error_of_the_item() -> None:
    assert run(Exits(), [1]) == ["handler_failed"]


@function(examples=[2])
class Up:
    def predict(self, n: int) -> Iterator[int]:
        yield from range(n)
        raise RuntimeError("at the end")


def test_a_stream_gives_its_items_before_its_error() -> None:
    executor = Executor(function_of(Up), Up())
    stream = executor.stream(Work("a", b"2"))
    assert [next(stream), next(stream)] == [b"0", b"1"]
    with pytest.raises(RuntimeError):
        next(stream)


@function(examples=[{}])
def handler(event: dict[str, int], context: Context) -> list[Any]:
    return [event["x"], context.invocation_id, context.function_name]


def test_a_handler_gets_its_context() -> None:
    executor = Executor(function_of(handler), None)
    assert executor.answer([b'{"x": 3}']) == [[b'[3,"probe-0","handler"]']]
    with pytest.raises(RemoteError):
        executor.answer([b"{}"])


def greet(head: RequestHead, body: bytes) -> tuple[ReplyHead, bytes]:
    """Says hello."""
    if head.path == "/raise":
        raise SystemExit(3)
    status = int(body) if body.isdigit() else 200
    return ReplyHead(status, (("content-type", "text/plain"),)), b"hello " + head.method.encode()


def test_requests_are_answered_with_replies_and_items_with_results() -> None:
    function = http_function(greet, "sayHello")
    assert (function.name, function.kind, function.settings.retry) == ("say_hello", "http", False)
    assert function.settings.instances == (0, 8)
    executor = Executor(function, None)
    get = RequestHead("GET", "/x")
    items = [Work("a", b"", head=get), Work("b", b"404", head=get), Work("c", b"1", head=get)]
    items += [Work("d", b"{}"), Work("e", b"503")]
    items += [Work("f", b"", head=RequestHead("GET", "/raise"))]
    told = [
        (a.head and a.head.status, a.result, a.problem and (a.problem["status"], a.problem["code"]))
        for a in executor.run(items)
    ]
    assert told == [
        (200, b"hello GET", None),
        (404, b"hello GET", None),
        (None, b"", (500, "bad_result")),
        (None, b'"hello POST"', None),
        (None, b"", (503, "http_failed")),
        (None, b"", (500, "handler_failed")),
    ]
    assert executor.answer([]) == []  # the warm-up, where there is no probe


def test_an_interrupt_of_the_authors_own_is_an_error_like_another() -> None:
    @function(examples=[1])
    class Interrupts:
        def predict(self, x: int) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # whoever freezes has pressed Ctrl-C
        run(Interrupts(), [1])
    before = signal.signal(signal.SIGINT, lambda *_: None)  # as in an instance
    try:
        assert run(Interrupts(), [1]) == ["handler_failed"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_result_that_no_frame_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerowake.runtime.executor.MAX_RESULT_NBYTES", 5)

    @function(examples=[1])
    class Long:
        def predict(self, x: int) -> str:
            return "x" * x

    assert run(Long(), [3, 4]) == ["xxx", "bad_result"]
