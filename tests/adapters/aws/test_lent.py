"""Slots in the hands of the function's own process: the whole of ``zerowake run`` on a scripted API."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator import children
from fake_api import LOST, RESET, FakeApi
from platforms import Answer, LambdaCaller, PullContainer, PullPlatform

from zerowake.adapters.aws.adapter import LONG_MS

WARM = [None] * 20  # malformed, so that any function answers it


class Lambda(LambdaCaller):
    """One at a time, unless ``environ`` says more, and in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.environ["AWS_LAMBDA_MAX_CONCURRENCY"] = "1"
        self.environ["ZEROWAKE_LAMBDA_INVOKE_MODE"] = "BUFFERED"


Begin = Callable[..., PullContainer]


@pytest.fixture
def begin(frozen: Callable[[str], Path]) -> Iterator[Begin]:
    """``begin("zoo.py:Add", slots=4)``: one whose process has been lent a slot."""
    running: list[PullContainer] = []

    def start(target: str, *options: str, slots: int = 1, **environ: str) -> PullContainer:
        platform = PullPlatform("lambda", Lambda, "lambda")
        told = {"AWS_LAMBDA_MAX_CONCURRENCY": str(slots), **environ}
        container = platform.start(frozen(target), *options, **told)
        running.append(container)
        container.until_ready()
        container.many(WARM * slots)
        container.until(lambda: lent(container) == slots)
        return container

    yield start
    for container in running:
        container.process.kill()
        container.process.wait()
        container.caller.close()


def api(container: PullContainer) -> FakeApi:
    server: FakeApi = container.caller.api.server
    return server


def instance(container: PullContainer) -> int:
    (pid,) = children(container.process.pid)
    return pid


def lent(container: PullContainer) -> int:
    """How many connections over TCP the function's process has."""
    pids = children(container.process.pid)
    return sum(map(_connections, pids))


def _connections(pid: int) -> int:
    """None once it has ended."""
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]"))
        with open(f"/proc/{pid}/net/tcp") as file:
            return sum(line.split()[9] in found for line in list(file)[1:])
    except OSError:
        return 0


def fault(container: PullContainer, verb: str, *faults: int | str) -> None:
    api(container).faults[verb] = [*faults]


def answered(container: PullContainer, ids: list[str]) -> list[Answer]:
    return [container.caller.answer(id_) for id_ in ids]


def _request(method: str, path: str) -> dict[str, Any]:
    context = {"http": {"method": method, "path": path, "sourceIp": "192.0.2.1"}}
    return {"version": "2.0", "rawPath": path, "headers": {}, "requestContext": context}


LIVEZ = _request("GET", "/livez")
SQS = {"Records": [{"messageId": "m", "eventSource": "aws:sqs", "body": '{"do": "ok"}'}]}


def test_calls_go_past_the_gateway_and_are_counted_there(begin: Begin) -> None:
    container = begin("zoo.py:Batched")
    before = api(container).connections
    answers = container.many([{"do": str(place)} for place in range(50)])
    assert [answer.value["did"] for answer in answers] == [str(place) for place in range(50)]
    assert api(container).connections == before  # none is made for a call
    (id_,) = container.caller.call([_request("GET", "/metrics")])
    body = container.caller.answer(id_).value["body"]
    assert 'zerowake_invocations_total{function="batched",outcome="ok"} 50' in body
    assert api(container).refused == []


def test_what_calls_have_taken_is_told_however_late_the_gateway_hears_of_it(begin: Begin) -> None:
    container = begin("zoo.py:Wide")
    answers = container.many([0.004] * 50)
    assert {answer.status for answer in answers} == {200}
    (id_,) = container.caller.call([_request("GET", "/metrics")])
    lines = container.caller.answer(id_).value["body"].splitlines()
    name = 'zerowake_{}{{function="wide"}}'
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#"}
    total_s = values[name.format("invocation_seconds_sum")]
    assert total_s >= values[name.format("predict_seconds_sum")] >= 0.2
    counted = {
        values[name.format(f"{what}_seconds_count")] for what in ("invocation", "predict", "queue")
    }
    assert len(counted) == 1


def test_what_is_no_direct_invocation_is_the_gateways(begin: Begin) -> None:
    container = begin("zoo.py:Batched")
    assert container.call(SQS) == Answer(200, {"batchItemFailures": []})
    container.until(lambda: lent(container) == 0)
    assert container.call(SQS) == Answer(200, {"batchItemFailures": []})
    container.many(WARM)
    container.until(lambda: lent(container) == 1)
    assert container.call({"do": "ok"}) == Answer(200, {"did": "ok", "batch": 1})
    assert api(container).refused == []


def test_concurrent_calls_are_batches(begin: Begin, tmp_path: Path) -> None:
    container = begin("zoo.py:Batched", slots=8)
    gate = tmp_path / "gate"
    (held,) = container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")
    others = container.caller.call([{"do": "ok"}] * 4)
    container.until(lambda: container.caller.arrived(others))
    gate.touch()
    assert container.caller.answer(held).value["batch"] == 1
    assert [answer.value["batch"] for answer in answered(container, others)] == [4] * 4


@pytest.mark.parametrize("how", ["die", "exit", "segv"])
def test_a_call_that_ends_its_process_has_two_tries_and_takes_no_other_along(
    begin: Begin, tmp_path: Path, how: str
) -> None:
    container = begin("zoo.py:Batched", slots=4)
    gate = tmp_path / "gate"
    held = container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")
    ids = container.caller.call([{"do": "ok"}, {"do": how}, {"do": "also"}])
    container.until(lambda: container.caller.arrived(ids))
    gate.touch()
    (first,) = answered(container, held)
    good, bad, also = answered(container, ids)
    assert (first.status, good.value["did"], also.value["did"]) == (200, "ok", "also")
    assert bad.status == (500 if how == "exit" else 502)
    assert api(container).refused == []
    container.many(WARM * 4)
    container.until(lambda: lent(container) == 4)


def test_a_killed_process_leaves_nothing_unanswered(begin: Begin, tmp_path: Path) -> None:
    container = begin("zoo.py:Batched")
    gate = tmp_path / "gate"
    (id_,) = container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")
    os.kill(instance(container), signal.SIGKILL)
    container.until_said("waits for", 2)
    gate.touch()
    assert container.caller.answer(id_).value["batch"] == 1
    assert container.call({"do": "ok"}).status == 200
    assert api(container).refused == []


def test_what_a_killed_process_had_not_read_is_not_lost(begin: Begin, tmp_path: Path) -> None:
    """Calls that had come on its connections while it ran another one, and those that wait in it."""
    container = begin("zoo.py:Batched", slots=8)
    gate = tmp_path / "gate"
    ids = container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")
    ids += container.caller.call([{"do": f"gate:{gate}-2"}] + [{"do": "ok"}] * 6)
    container.until(lambda: container.caller.arrived(ids))
    gate.touch()
    container.until_said("waits for", 2)  # four of them run
    os.kill(instance(container), signal.SIGKILL)
    Path(f"{gate}-2").touch()
    assert [answer.status for answer in answered(container, ids)] == [200] * 8
    assert api(container).refused == []


def test_an_idle_process_that_is_killed_loses_no_call(begin: Begin) -> None:
    container = begin("zoo.py:Batched")
    os.kill(instance(container), signal.SIGKILL)
    container.until(lambda: lent(container) == 0)
    container.until(lambda: api(container).polling)
    assert container.call({"do": "ok"}) == Answer(200, {"did": "ok", "batch": 1})


@pytest.mark.parametrize("slots", [1, 8])
def test_whenever_a_process_is_killed_no_call_is_lost(begin: Begin, slots: int) -> None:
    """Between any two of its lines, with calls of all sizes on their way."""
    container, chance = begin("zoo.py:Batched", slots=slots), random.Random(slots)
    ids: list[str] = []
    ends = time.monotonic() + 5.0
    kill_at = 0.0
    while time.monotonic() < ends:
        if len(container.caller.left()) < slots:
            size = chance.choice([1, 1, 1, 3000, 200_000])
            ids += container.caller.call([{"do": "x" * size}])
        if time.monotonic() > kill_at and lent(container):
            os.kill(instance(container), signal.SIGKILL)
            kill_at = time.monotonic() + chance.uniform(0.05, 0.3)
    statuses = {answer.status for answer in answered(container, ids)}
    assert statuses <= {200, 502}  # of one that was killed twice


@pytest.mark.parametrize("last", ["ok", "die told"])
def test_all_slots_come_back_from_a_recall(begin: Begin, tmp_path: Path, last: str) -> None:
    """Also that of a call which waited in the process, and one whose process ends with its answer."""
    container = begin("last.py:Alone", slots=4)
    container.many([{"do": "ok"}] * 24)
    gates = [tmp_path / "0", tmp_path / "1"]
    ids = container.caller.call([{"do": "ok", "gate": str(gates[0])}])
    container.until_said(f"waits for {gates[0]}")
    ids += container.caller.call([LIVEZ, {"do": "ok", "gate": str(gates[1])}, {"do": last}])
    container.until(lambda: container.caller.arrived(ids))
    gates[0].touch()
    container.until_said(f"waits for {gates[1]}")
    container.caller.answer(ids[1])  # and what was lent is wanted back
    gates[1].touch()
    assert [answer.value for answer in answered(container, ids)[2:]] == ["ok", last]
    container.until(lambda: api(container).polling == 4)
    assert api(container).refused == []


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("status", [202, 403, 413, RESET])
def test_what_the_api_says_to_the_last_answer_of_a_process(
    begin: Begin, status: int | str, behind: bool
) -> None:
    """It was told as sent; nobody has read what became of it, and maybe the next call."""
    container = begin("last.py:Alone")
    if status != 202:
        fault(container, "response", status)
    ids = container.caller.call([{"do": "die told"}] + [{"do": "ok"}] * behind)
    if status != 403:  # which nobody hears of
        answer = container.caller.answer(ids[0])
        assert answer.status == {202: 200, 413: 502, RESET: 499}[status]
    assert [answer.value for answer in answered(container, ids[1:])] == ["ok"] * behind
    container.until(lambda: api(container).polling == 1)
    assert container.call({"do": "ok"}).value == "ok"
    assert api(container).refused == []


@pytest.mark.parametrize("size", [1, 200_000])
def test_what_has_come_is_answered_when_a_drain_has_taken_too_long(
    begin: Begin, tmp_path: Path, size: int
) -> None:
    container = begin("last.py:Alone", "--drain-s", "1", slots=4)
    ids = container.caller.call([{"do": "ok", "gate": str(tmp_path / "never")}])
    container.until_said("waits for")
    ids += container.caller.call([{"do": "x" * size}] * 3)
    container.until(lambda: not api(container).waiting)
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(60) == 0
    assert {answer.status for answer in answered(container, ids)} == {503}


def test_a_death_in_a_drain_does_not_prolong_it(begin: Begin, tmp_path: Path) -> None:
    container = begin("last.py:Alone", "--drain-s", "300", slots=4)
    container.many([{"do": "ok"}] * 24)
    gate = tmp_path / "gate"
    (held,) = container.caller.call([{"do": "ok", "gate": str(gate)}])
    container.until_said("waits for")
    container.process.send_signal(signal.SIGTERM)
    container.until_said("draining")
    os.kill(instance(container), signal.SIGKILL)
    gate.touch()
    assert container.caller.answer(held).status == 200
    assert container.process.wait(60) == 0


def test_without_retry_a_death_is_the_answer(begin: Begin, tmp_path: Path) -> None:
    container = begin("zoo.py:Once")
    log = tmp_path / "log"
    answer = container.call({"do": "die", "log": str(log)})
    assert answer.status == 502 and "SIGKILL" in answer.error
    assert log.read_text().split() == ["die"]
    assert container.call({"do": "next"}) == Answer(200, "next")


def test_too_slow_for_its_function(begin: Begin) -> None:
    container = begin("zoo.py:Once")
    answer = container.call({"do": "hang"})
    assert answer.status == 504 and "timeout_s=2" in answer.error
    assert container.call({"do": "next"}) == Answer(200, "next")
    assert api(container).refused == []


def test_too_slow_for_its_platform(begin: Begin) -> None:
    """Answered in time, and its process goes, which alone could take the next call."""
    container = begin("zoo.py:Batched")
    before = instance(container)

    async def invoke() -> str:
        return api(container).invoke({"do": "hang"}, left_s=1.0)

    answer = container.caller.answer(container.caller.api.do(invoke()))
    assert answer.status == 504 and "deadline" in answer.error
    assert container.call({"do": "ok"}) == Answer(200, {"did": "ok", "batch": 1})
    assert instance(container) != before
    assert api(container).refused == []


def test_one_that_is_too_slow_leaves_the_others_theirs(begin: Begin, tmp_path: Path) -> None:
    """Of a batch: the process goes on for those who have time."""
    container = begin("zoo.py:Batched", slots=3)
    before = instance(container)
    gate = tmp_path / "gate"
    container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")

    async def invoke() -> list[str]:
        return [
            api(container).invoke({"do": "slow"}),
            api(container).invoke({"do": "slow"}, left_s=1.0),
        ]

    ids = container.caller.api.do(invoke())
    container.until(lambda: container.caller.arrived(ids))
    gate.touch()
    patient, hasty = answered(container, ids)
    assert patient.status == 200 and hasty.status == 504
    assert instance(container) == before
    assert container.call({"do": "ok"}).status == 200


def test_an_answer_beyond_the_limit(begin: Begin) -> None:
    container = begin("zoo.py:Echo")
    answer = container.call({"value": "x" * (7 << 20)})
    assert answer.status == 502 and "7340" in answer.error
    assert container.call({"value": 1}) == Answer(200, {"echo": 1})
    large = "x" * (5 << 20)
    assert container.call({"value": large}) == Answer(200, {"echo": large})


@pytest.mark.parametrize("times", [1, 100_000])
@pytest.mark.parametrize("do", ["ok", "die told"])
def test_answers_of_all_lengths_come_from_the_process(begin: Begin, do: str, times: int) -> None:
    container = begin("last.py:Alone")
    assert container.call({"do": do, "times": times}) == Answer(200, do * times)
    if do == "ok":
        assert lent(container) == 1
    assert container.call({"do": "ok"}).value == "ok"
    assert api(container).refused == []


@pytest.mark.parametrize("polled", [0, 1, 40])
def test_a_poll_is_completed_where_the_process_ends_in_it(begin: Begin, polled: int) -> None:
    """Of a long answer the gateway knows the end, and so how much of the poll behind it has gone out."""
    container = begin("last.py:Alone")
    ids = container.caller.call([{"do": "die", "polled": polled, "times": 100_000}, {"do": "ok"}])
    assert [answer.value for answer in answered(container, ids)] == ["die" * 100_000, "ok"]
    container.until(lambda: api(container).polling == 1)
    assert container.call({"do": "ok"}).value == "ok"
    assert api(container).refused == []


def test_a_long_answer_that_is_cut_off_is_given_anew(begin: Begin, tmp_path: Path) -> None:
    container = begin("last.py:Alone")
    gate = tmp_path / "gate"
    call = {"do": "die", "polled": -1000, "times": 100_000, "gate": str(gate)}
    (id_,) = container.caller.call([call])
    container.until_said("waits for")
    gate.touch()
    assert container.caller.answer(id_).value == "die" * 100_000  # the gateway gives the second one
    assert container.call({"do": "ok"}).value == "ok"
    assert api(container).refused == []


def test_a_long_call_that_the_gateway_answers_counts_as_any_other(
    begin: Begin, tmp_path: Path
) -> None:
    """Beside it nothing else would be looked at: the process gives back all that it was lent."""
    container = begin("last.py:Alone", slots=2)
    gate = tmp_path / "gate"
    ids = container.caller.call([{"do": "ok", "gate": str(gate), "times": 4 << 20}])
    container.until_said("waits for")
    time.sleep(2 * LONG_MS / 1e3)
    gate.touch()
    (answer,) = answered(container, ids)
    assert answer.status == 502  # beyond the limit
    container.until(lambda: api(container).polling == 2 and not lent(container))
    (id_,) = container.caller.call([_request("GET", "/metrics")])
    body = container.caller.answer(id_).value["body"]
    waited, ran = (
        next(line.split()[1] for line in body.splitlines() if line.startswith(f"zerowake_{name}"))
        for name in ("queue_seconds_count", "predict_seconds_count")
    )
    assert waited == ran


@pytest.mark.parametrize("status", [400, 403, 413])
def test_an_answer_that_is_not_taken(begin: Begin, status: int) -> None:
    """Nobody hears it; one that is too large for the platform is told as an error."""
    container = begin("zoo.py:Echo")
    fault(container, "response", status)
    (id_,) = container.caller.call([{"value": 1}])
    container.until_said(f"answers {status}")
    if status == 413:
        assert container.caller.answer(id_).status == 502
    assert container.call({"value": 2}) == Answer(200, {"echo": 2})


def test_one_that_is_sent_again_and_is_too_large_then_is_told_too(begin: Begin) -> None:
    container = begin("zoo.py:Echo")
    fault(container, "response", RESET, 413)
    answer = container.call({"value": 1})
    assert answer.status == 502 and "413" in answer.error
    assert container.call({"value": 2}) == Answer(200, {"echo": 2})


def test_an_api_that_breaks_is_the_end(begin: Begin) -> None:
    container = begin("zoo.py:Echo")
    fault(container, "response", 500)
    container.caller.call([{"value": 1}])
    assert container.process.wait(60) == 1


@pytest.mark.parametrize("how", [RESET, LOST])
@pytest.mark.parametrize("verb", ["response", "error"])
def test_an_answer_whose_connection_breaks_off_is_sent_again(
    begin: Begin, verb: str, how: str
) -> None:
    container = begin("zoo.py:Batched")
    fault(container, verb, how)
    answer = container.call({"do": "ok" if verb == "response" else "raise"})
    assert answer.status == (200 if verb == "response" else 500)
    assert container.call({"do": "ok"}).status == 200
    assert len(api(container).refused) == (how == LOST)  # the same answer, a second time


def test_polls_that_break_off(begin: Begin) -> None:
    container = begin("zoo.py:Batched", slots=4)

    async def cut() -> None:
        api(container).cut()

    container.caller.api.do(cut())
    answers = container.many([{"do": "ok"}] * 20)
    assert {answer.status for answer in answers} == {200}
    assert api(container).refused == []


@pytest.mark.parametrize("event", ["refused", "malformed"])
def test_a_poll_that_brings_nothing_is_the_end(begin: Begin, event: str) -> None:
    container = begin("zoo.py:Batched")
    if event == "refused":
        fault(container, "next", 403)
        container.caller.call([{"do": "ok"}])
    else:

        async def invoke() -> str:
            return api(container).invoke({"do": "ok"}, **{"Deadline-Ms": "soon"})

        container.caller.api.do(invoke())
    assert container.process.wait(60) == 1


def test_a_drain_gives_idle_slots_back_and_answers_what_runs(begin: Begin, tmp_path: Path) -> None:
    container = begin("zoo.py:Batched", slots=4)
    gate = tmp_path / "gate"
    (held,) = container.caller.call([{"do": f"gate:{gate}"}])
    container.until_said("waits for")
    container.process.send_signal(signal.SIGTERM)
    container.until_said("draining")
    gate.touch()
    assert container.caller.answer(held).status == 200
    assert container.process.wait(60) == 0
    assert api(container).polling == 0


def test_an_idle_drain(begin: Begin) -> None:
    container = begin("zoo.py:Batched", slots=4)
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(60) == 0


def test_a_process_that_does_not_end_is_ended_with_the_drain(begin: Begin) -> None:
    container = begin("zoo.py:Batched", "--drain-s", "1")
    (id_,) = container.caller.call([{"do": "hang"}])
    container.until(lambda: not api(container).waiting)
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(60) == 0
    assert container.caller.answer(id_).status == 503


def test_a_gateway_that_was_frozen_over_a_deadline_believes_what_was_said(begin: Begin) -> None:
    """An environment is frozen between invocations, for as long as the platform likes."""
    container = begin("zoo.py:Batched")
    before = instance(container)

    async def invoke() -> str:
        return api(container).invoke({"do": "slow"}, left_s=3.0)

    id_ = container.caller.api.do(invoke())
    container.until(lambda: not api(container).waiting)
    os.kill(container.process.pid, signal.SIGSTOP)
    assert container.caller.answer(id_).status == 200
    time.sleep(2.0)  # beyond the deadline
    os.kill(container.process.pid, signal.SIGCONT)
    assert container.call({"do": "ok"}).status == 200
    assert instance(container) == before
    assert api(container).refused == []


def test_what_a_handler_is_told(begin: Begin) -> None:
    container = begin("told.py:told")

    async def invoke() -> str:
        told = {"Trace-Id": "Root=1-a", "Aws-Tenant-Id": "blue", "Client-Context": '{"a": 1}'}
        return api(container).invoke({"x": 1}, **told)

    id_ = container.caller.api.do(invoke())
    told = container.caller.answer(id_).value
    assert (told["request_id"], told["trace"]) == (id_, "Root=1-a")
    assert (told["tenant"], told["client_context"]) == ("blue", '{"a": 1}')
