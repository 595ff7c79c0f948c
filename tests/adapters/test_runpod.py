"""``zerowake.adapters.runpod``: takes, answers, streams, stops, heartbeats and faults on a scripted server."""

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_functions import FakeFunctions
from fake_jobs import KEY, LOST, RESET, WORKER, FakeJobs

from zerowake.adapters import find, runpod_api
from zerowake.adapters.runpod import CONCURRENCY, INTERVAL, RunPod
from zerowake.adapters.runpod_http import RunPodHttp
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError, Draining, FunctionFailed, InvalidInput
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics
from zerowake.runtime.settings import Batch, Settings


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod_api, "RETRIES_S", (0.0,) * 4)
    monkeypatch.setattr(runpod_api, "BROKEN_S", (0.0,))
    monkeypatch.setattr(runpod_api, "FULL_S", 0.0)


@contextlib.asynccontextmanager
async def serving(
    jobs: FakeJobs, functions: FakeFunctions, **environ: str
) -> "AsyncIterator[tuple[RunPod, asyncio.Task[None]]]":
    served = RunPod({**jobs.environ, INTERVAL: "20", **environ}, ServeConfig())
    task = asyncio.create_task(served.serve(functions, Metrics()))
    yield served, task
    task.cancel()
    served.close()
    await asyncio.wait([task])


def run(test: Callable[[FakeJobs], Awaitable[None]], hold_s: float = 30.0) -> None:
    async def main() -> None:
        async with FakeJobs(hold_s).running() as jobs:
            await test(jobs)

    asyncio.run(main())


def gate() -> "tuple[asyncio.Event, Callable[[Invocation], Awaitable[None]]]":
    """A function that answers once the event is set."""
    opened = asyncio.Event()

    async def gated(call: Invocation) -> None:
        await opened.wait()
        await call.sink.item(call.body)

    return opened, gated


async def numbers(call: Invocation) -> None:
    for number in range(json.loads(call.body)):
        await call.sink.item(b"%d" % number)


# ---------------------------------------------------------------------------- what it is


def test_it_is_found_before_the_load_balancer() -> None:
    jobs = FakeJobs()
    assert find(jobs.environ) is RunPod
    assert find({"RUNPOD_ENDPOINT_ID": "e"}) is RunPodHttp


@pytest.mark.parametrize(
    "wrong",
    [
        {"RUNPOD_WEBHOOK_GET_JOB": ""},
        {"RUNPOD_WEBHOOK_GET_JOB": "ftp://there"},
        {"RUNPOD_WEBHOOK_POST_OUTPUT": "http://there:port/"},
        {"RUNPOD_WEBHOOK_PING": "http://there/a b"},
        {CONCURRENCY: "0"},
        {INTERVAL: "often"},
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(wrong: dict[str, str]) -> None:
    environ = FakeJobs().environ | {
        name: f"http://there{value}" for name, value in FakeJobs().environ.items() if "WEB" in name
    }
    RunPod(environ, ServeConfig())
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RunPod({**environ, **wrong}, ServeConfig())


# ---------------------------------------------------------------------------- jobs


def test_a_job_is_answered_with_the_result() -> None:
    async def test(jobs: FakeJobs) -> None:
        async with serving(jobs, FakeFunctions()):
            (id_,) = await jobs.submit({"é": [1, None, 2**60]})
            assert await jobs.answer(id_) == {"output": {"é": [1, None, 2**60]}}
            (asked,) = jobs.answers[id_]
            assert asked.headers["authorization"] == KEY
            assert asked.headers["x-request-id"] == asked.id == id_
            assert asked.query == {"gpu": "none", "isStream": "false"}

    run(test)


def test_jobs_come_in_batches_of_the_free_slots_and_run_together() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated, settings=Settings("f", batch=Batch(max_size=4)))
        ids = await jobs.submit(*range(11))
        async with serving(jobs, functions):
            await jobs.until(lambda: len(functions.calls) == 8)  # two batches
            assert jobs.queued == ids[8:]
            opened.set()
            assert [await jobs.answer(id_) for id_ in ids] == [{"output": n} for n in range(11)]
        first, *_ = jobs.verbs("take-batch")
        assert first.query == {"gpu": "none", "batch_size": "8", "job_in_progress": "0"}
        assert len(jobs.given) == len(set(jobs.given)) == 11

    run(test)


def test_one_slot_takes_one_by_one() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated)
        ids = await jobs.submit(1, 2)
        async with serving(jobs, functions):
            await jobs.until(lambda: functions.calls)
            opened.set()
            for id_ in ids:
                await jobs.answer(id_)
        assert not jobs.verbs("take-batch")
        assert {asked.query["job_in_progress"] for asked in jobs.verbs("take")} == {"0"}

    run(test)


def test_a_free_slot_is_filled_while_other_jobs_run() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated)
        async with serving(jobs, functions, **{CONCURRENCY: "2"}):
            await jobs.submit(1)
            await jobs.until(lambda: functions.calls)
            await jobs.submit(2)
            await jobs.until(lambda: len(functions.calls) == 2)
            assert jobs.verbs("take")[-1].query["job_in_progress"] == "1"
            opened.set()

    run(test)


def test_no_job_is_taken_before_the_function_is_up() -> None:
    async def test(jobs: FakeJobs) -> None:
        up, functions = asyncio.Event(), FakeFunctions()
        functions.waking = up.wait  # type: ignore[assignment]
        (id_,) = await jobs.submit(1)
        async with serving(jobs, functions):
            await asyncio.sleep(0.05)
            assert not jobs.asked
            up.set()
            assert await jobs.answer(id_) == {"output": 1}

    run(test)


def test_a_function_that_cannot_start_takes_no_job() -> None:
    async def test(jobs: FakeJobs) -> None:
        async def fails() -> None:
            raise FunctionFailed("the database is not there")

        functions = FakeFunctions()
        functions.waking = fails
        async with serving(jobs, functions) as (_, task):
            await asyncio.wait([task])
            assert isinstance(task.exception(), FunctionFailed)
            assert not jobs.asked

    run(test)


@pytest.mark.parametrize("job", [{"id": "no-input"}, {"id": "bad", "input": "refuse"}])
def test_an_error_fails_the_job_alone(job: dict[str, Any]) -> None:
    async def refuses(call: Invocation) -> None:
        if call.body == b'"refuse"':
            raise InvalidInput("not acceptable")
        await call.sink.item(call.body)

    async def test(jobs: FakeJobs) -> None:
        async with serving(jobs, FakeFunctions(refuses), **{CONCURRENCY: "8"}):
            await jobs.put(job, {"id": "good", "input": 1}, {"input": "nobody's"})
            told = json.loads((await jobs.answer(job["id"]))["error"])
            assert told["worker_id"] == WORKER and told["error_message"]
            assert told["problem"]["status"] in (400, 422)
            assert await jobs.answer("good") == {"output": 1}

    run(test)


def test_bytes_are_base64() -> None:
    async def test(jobs: FakeJobs) -> None:
        functions = FakeFunctions(raw_input=True, raw_output=True)
        async with serving(jobs, functions, **{CONCURRENCY: "4"}):
            ids = await jobs.submit({"b64": "AAEC"}, "text", 5)
            assert await jobs.answer(ids[0]) == {"output": {"b64": "AAEC"}}
            assert await jobs.answer(ids[1]) == {"output": {"b64": "dGV4dA=="}}
            assert "error" in await jobs.answer(ids[2])

    run(test)


def test_a_job_that_comes_twice_runs_once() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated)
        async with serving(jobs, functions, **{CONCURRENCY: "4"}):
            await jobs.put({"id": "same", "input": 1})
            await jobs.until(lambda: functions.calls)
            await jobs.put({"id": "same", "input": 1})
            await jobs.until(lambda: len(jobs.given) == 2)
            opened.set()
            await jobs.answer("same")
            assert len(functions.calls) == 1

    run(test)


# ---------------------------------------------------------------------------- streams


def test_chunks_are_posted_as_they_come_and_all_at_the_end() -> None:
    async def test(jobs: FakeJobs) -> None:
        async with serving(jobs, FakeFunctions(numbers, kind="stream")):
            (id_,) = await jobs.submit(40)
            assert await jobs.answer(id_) == {"output": list(range(40))}
            assert [chunk.json() for chunk in jobs.chunks[id_]] == [
                {"output": number} for number in range(40)
            ]
            assert jobs.answers[id_][0].query["isStream"] == "true"
            assert jobs.chunks[id_][0].query["isStream"] == "false"

    run(test)


def test_an_error_in_mid_stream_ends_the_job_with_it() -> None:
    async def breaks(call: Invocation) -> None:
        await call.sink.item(b"0")
        raise InvalidInput("no further")

    async def test(jobs: FakeJobs) -> None:
        async with serving(jobs, FakeFunctions(breaks, kind="stream")):
            (id_,) = await jobs.submit(2)
            told = await jobs.answer(id_)
            assert json.loads(told["error"])["error_message"] == "no further"
            assert [chunk.json() for chunk in jobs.chunks[id_]] == [{"output": 0}]

    run(test)


def test_a_stream_has_no_gaps() -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.faults["stream"] = [200, 404]
        async with serving(jobs, FakeFunctions(numbers, kind="stream")):
            (id_,) = await jobs.submit(5)
            assert await jobs.answer(id_) == {"output": list(range(5))}
            assert len(jobs.verbs("stream")) == 2

    run(test)


def test_without_a_place_for_chunks_all_comes_at_the_end() -> None:
    async def test(jobs: FakeJobs) -> None:
        nowhere = {"RUNPOD_WEBHOOK_POST_STREAM": "", "RUNPOD_WEBHOOK_PING": ""}
        async with serving(jobs, FakeFunctions(numbers, kind="stream"), **nowhere):
            (id_,) = await jobs.submit(3)
            assert await jobs.answer(id_) == {"output": [0, 1, 2]}
            assert not jobs.chunks and not jobs.verbs("ping")

    run(test)


# ---------------------------------------------------------------------------- stops and heartbeats


def test_a_job_that_nobody_wants_is_given_up_and_not_answered() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated)
        async with serving(jobs, functions, **{CONCURRENCY: "2"}):
            unwanted, wanted = await jobs.submit(1, 2)
            await jobs.until(lambda: len(functions.calls) == 2)
            await jobs.stop("unknown", unwanted)
            while not functions.cancelled:
                await asyncio.sleep(0.001)
            assert [call.id for call in functions.cancelled] == [unwanted]
            (third,) = await jobs.submit(3)  # its slot is free
            await jobs.until(lambda: third in jobs.given)
            opened.set()
            await jobs.answer(wanted)
            await jobs.answer(third)
            assert unwanted not in jobs.answers

    run(test)


def test_heartbeats_name_the_jobs_under_way() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        jobs.faults["ping"] = [500, RESET]
        async with serving(jobs, FakeFunctions(gated), **{CONCURRENCY: "2"}):
            await jobs.until(lambda: jobs.verbs("ping"))
            assert "job_id" not in jobs.verbs("ping")[0].query
            ids = await jobs.submit(1, 2)
            await jobs.until(
                lambda: jobs.verbs("ping")[-1].query.get("job_id", "").split(",") == ids
            )
            ping = jobs.verbs("ping")[-1]
            assert ping.query["runpod_version"] and ping.headers["authorization"] == KEY
            opened.set()

    run(test)


# ---------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", [204, 400, 429, 500, 503, 404, RESET])
def test_polls_go_on_whatever_they_bring(fault: int | str) -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.faults = {"take": [fault, fault], "stop": [fault, fault]}
        async with serving(jobs, FakeFunctions()):
            await jobs.until(lambda: len(jobs.verbs("take")) > 2 and len(jobs.verbs("stop")) > 2)
            (id_,) = await jobs.submit(1)
            assert await jobs.answer(id_) == {"output": 1}

    run(test)


@pytest.mark.parametrize("told", [b"", b"nonsense", b"5", b"null", b"[]", b"[5, {}]", b"[" * 9999])
def test_what_is_no_job_is_left(told: bytes) -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.raw = [told]
        async with serving(jobs, FakeFunctions()):
            (id_,) = await jobs.submit(1)
            assert await jobs.answer(id_) == {"output": 1}

    run(test)


def test_a_server_that_holds_no_poll_is_not_stormed() -> None:
    async def test(jobs: FakeJobs) -> None:
        async with serving(jobs, FakeFunctions()):
            await jobs.until(lambda: len(jobs.verbs("take")) > 5)
        takes = jobs.verbs("take")
        assert takes[5].at_s - takes[0].at_s >= 5 * runpod_api.EMPTY_S * 0.9

    run(test, hold_s=0.0)


@pytest.mark.parametrize("fault", [500, 503, 429, RESET])
def test_an_answer_is_posted_until_it_is_taken(fault: int | str) -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.faults["done"] = [fault] * 4
        async with serving(jobs, FakeFunctions()):
            (id_,) = await jobs.submit(1)
            assert await jobs.answer(id_) == {"output": 1}
            assert len(jobs.verbs("done")) == 5

    run(test)


def test_an_answer_of_which_the_receipt_is_lost_is_the_same_again() -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.faults["done"] = [LOST]
        async with serving(jobs, FakeFunctions()):
            (id_,) = await jobs.submit(1)
            await jobs.until(lambda: len(jobs.answers.get(id_, [])) == 2)
            first, second = jobs.answers[id_]
            assert (first.body, first.headers) == (second.body, second.headers)

    run(test)


@pytest.mark.parametrize("faults", [[500] * 5, [404]])
def test_an_answer_that_is_never_taken_is_left_to_the_platform(
    faults: list[int | str], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.faults["done"] = list(faults)
        async with serving(jobs, FakeFunctions()):
            lost, other = await jobs.submit(1, 2)
            await jobs.answer(other)
            assert lost not in jobs.answers and len(jobs.verbs("done")) == len(faults) + 1
        assert f"job {lost}: its answer goes lost" in caplog.text

    run(test)


def test_a_result_that_is_too_large_is_an_error_that_says_so() -> None:
    async def test(jobs: FakeJobs) -> None:
        jobs.too_large_nbytes = 2000
        async with serving(jobs, FakeFunctions()):
            (id_,) = await jobs.submit("x" * 3000)
            told = json.loads((await jobs.answer(id_))["error"])
            assert (
                told["error_type"] == "answer_too_large" and "3014 bytes" in told["error_message"]
            )

    run(test)


# ---------------------------------------------------------------------------- the end


def test_a_drain_ends_the_poll_and_answers_what_is_held() -> None:
    async def test(jobs: FakeJobs) -> None:
        opened, gated = gate()
        functions = FakeFunctions(gated)
        async with serving(jobs, functions, **{CONCURRENCY: "3"}) as (served, task):
            ids = await jobs.submit(1, 2)
            await jobs.until(lambda: len(functions.calls) == 2 and jobs.polling == 2)
            served.drain()
            await jobs.until(lambda: jobs.polling == 1)  # stops are still to be told
            (left,) = await jobs.submit(3)
            pings = len(jobs.verbs("ping"))
            await jobs.until(lambda: len(jobs.verbs("ping")) > pings + 1)
            assert not task.done()
            opened.set()
            served.close()
            await task
            assert [await jobs.answer(id_) for id_ in ids] == [{"output": 1}, {"output": 2}]
            assert jobs.queued == [left]

    run(test)


def test_a_job_that_is_too_late_for_us_is_not_failed() -> None:
    async def test(jobs: FakeJobs) -> None:
        functions = FakeFunctions()
        functions.refusals = [Draining("the gateway is shutting down")]
        async with serving(jobs, functions):
            late, other = await jobs.submit(1, 2)
            await jobs.answer(other)
            assert late not in jobs.answers

    run(test)


def test_a_function_that_runs_no_more_takes_no_more_jobs() -> None:
    async def test(jobs: FakeJobs) -> None:
        functions = FakeFunctions()
        functions.refusals = [FunctionFailed("its process dies")]
        async with serving(jobs, functions) as (_, task):
            failed, other = await jobs.submit(1, 2)
            await asyncio.wait([task])
            assert isinstance(task.exception(), FunctionFailed)
            assert "its process dies" in (await jobs.answer(failed))["error"]
            assert jobs.queued == [other] and other not in jobs.given

    run(test)


def test_the_real_platform_is_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost"
    make += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    subprocess.run(make.split(), check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    monkeypatch.setattr(runpod_api, "_tls", ssl.create_default_context(cafile=cert))

    async def main() -> None:
        async with (
            FakeJobs().running(tls) as jobs,
            serving(jobs, FakeFunctions()) as (served, task),
        ):
            (id_,) = await jobs.submit("x" * 100_000)
            assert await jobs.answer(id_) == {"output": "x" * 100_000}
            await jobs.until(lambda: jobs.polling == 2)
            served.drain()  # also a poll over TLS can be told to be idle
            await task

    asyncio.run(main())
