"""``zerowake.adapters.aws.adapter``: start, slots, SnapStart and drain against a scripted API."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import parts
import pytest
from fake_api import FakeApi
from fake_functions import FakeFunctions

from zerowake.adapters import find
from zerowake.adapters.aws import adapter, runtime_api
from zerowake.adapters.aws.adapter import Lambda
from zerowake.adapters.aws.invocations import Invocations
from zerowake.adapters.aws.messages import MARGIN_S
from zerowake.adapters.run import run as run_adapter
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError, FunctionFailed, RemoteError, to_problem
from zerowake.runtime.hooks import Moment
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_api, "RETRIES_S", (0.0, 0.0, 0.0))


@contextlib.asynccontextmanager
async def serving(
    api: FakeApi, functions: FakeFunctions, **environ: str
) -> "AsyncIterator[tuple[Lambda, asyncio.Task[None]]]":
    served = Lambda({adapter.ADDRESS: api.address, **environ}, ServeConfig())
    task = asyncio.create_task(served.serve(functions, Metrics()))
    yield served, task
    task.cancel()
    served.close()
    await asyncio.wait([task])


def run(test: Callable[[FakeApi], Awaitable[None]]) -> None:
    async def main() -> None:
        async with FakeApi().running() as api:
            await test(api)

    asyncio.run(main())


def test_it_is_found_and_configured_by_its_environment() -> None:
    environ = {adapter.ADDRESS: "127.0.0.1:9001"}
    assert find(environ) is Lambda
    assert Lambda.configure(environ, ServeConfig()).log_format == "text"
    json_ = {**environ, "AWS_LAMBDA_LOG_FORMAT": "JSON"}
    assert Lambda.configure(json_, ServeConfig()).log_format == "json"
    for level, known in adapter.LEVELS.items():
        told = {**environ, adapter.LOG_LEVEL: level}
        assert Lambda.configure(told, ServeConfig()).log_level == known
    with pytest.raises(ConfigError, match="AWS_LAMBDA_LOG_LEVEL is 'loud'"):
        Lambda.configure({**environ, adapter.LOG_LEVEL: "loud"}, ServeConfig())
    for wrong in ({adapter.CONCURRENCY: "0"}, {adapter.CONCURRENCY: "x"}, {adapter.MODE: "fast"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Lambda({**environ, **wrong}, ServeConfig())
    with pytest.raises(ConfigError, match=adapter.ADDRESS):
        Lambda({}, ServeConfig())


def test_it_is_an_extension_before_it_polls() -> None:
    async def test(api: FakeApi) -> None:
        async with serving(api, FakeFunctions()):
            await api.until(lambda: api.polling)
            assert api.requests[0] == "register"
            assert sorted(api.requests[1:]) == ["event_next", "next"]

    run(test)


def test_a_platform_without_extensions_is_polled_all_the_same() -> None:
    async def test(api: FakeApi) -> None:
        api.faults = {"register": [403]}
        async with serving(api, FakeFunctions()):
            await api.until(lambda: api.polling)

    run(test)


def test_it_polls_when_the_function_is_ready_or_the_start_has_taken_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(api: FakeApi) -> None:
        gate = asyncio.Event()
        functions = FakeFunctions()
        functions.waking = gate.wait  # type: ignore[assignment]
        async with serving(api, functions):
            await api.until(lambda: "event_next" in api.requests)
            assert "next" not in api.requests
            gate.set()
            await api.until(lambda: api.polling)
        gate.clear()
        monkeypatch.setattr(adapter, "INIT_S", 0.0)
        async with serving(api, functions):
            await api.until(lambda: api.polling)

    run(test)


def test_the_first_call_waits_for_a_function_that_is_still_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "INIT_S", 0.0)

    async def test(api: FakeApi) -> None:
        gate = asyncio.Event()
        functions = FakeFunctions()
        functions.arriving = gate.wait  # type: ignore[assignment]
        async with serving(api, functions):
            late = api.invoke(1, left_s=0.2)
            assert b"deadline has come" in (await api.answer(late)).body
            id_ = api.invoke(2)
            await api.until(lambda: id_ in api.given)
            gate.set()
            assert (await api.answer(id_)).json() == 2

    run(test)


def test_a_managed_instance_answers_many_at_a_time() -> None:
    async def test(api: FakeApi) -> None:
        together = asyncio.Barrier(16)

        async def all_at_once(call: Invocation) -> None:
            await together.wait()
            await call.sink.item(call.body)

        async with serving(api, FakeFunctions(all_at_once), AWS_LAMBDA_MAX_CONCURRENCY="16"):
            await api.until(lambda: api.polling == 16)
            ids = [api.invoke(place) for place in range(16)]
            answers = [await api.answer(id_) for id_ in ids]
            assert [answer.json() for answer in answers] == list(range(16))

    run(test)


def test_one_slot_that_finds_the_api_broken_ends_them_all() -> None:
    async def test(api: FakeApi) -> None:
        async with serving(api, FakeFunctions(), AWS_LAMBDA_MAX_CONCURRENCY="4") as (_, task):
            await api.until(lambda: api.polling == 4)
            api.faults = {"response": [500]}
            api.invoke(1)
            await asyncio.wait([task])
            assert isinstance(task.exception(), runtime_api.RuntimeApiError)
            await api.until(lambda: not api.polling)

    run(test)


def gate_behind(
    began: asyncio.Event, gate: asyncio.Event
) -> Callable[[Invocation], Awaitable[None]]:
    """A function that gives its input back once ``gate`` is set."""

    async def gated(call: Invocation) -> None:
        began.set()
        await gate.wait()
        await call.sink.item(call.body)

    return gated


def test_a_drain_answers_what_a_poll_has_brought_that_went_with_an_answer() -> None:
    async def test(api: FakeApi) -> None:
        began, gate = asyncio.Event(), asyncio.Event()
        gated = gate_behind(began, gate)

        async with serving(api, FakeFunctions(gated)) as (served, task):
            first, second = api.invoke(1), api.invoke(2)
            await began.wait()
            gate.set()
            await api.until(lambda: not api.waiting)
            served.drain()
            assert (await api.answer(first)).body == b"1"
            assert (await api.answer(second)).body == b"2"
            await asyncio.wait([task])
            assert task.exception() is None and not api.polling

    run(test)


def test_a_drain_answers_what_is_held_and_ends_idle_polls() -> None:
    async def test(api: FakeApi) -> None:
        began, gate = asyncio.Event(), asyncio.Event()
        gated = gate_behind(began, gate)

        async with serving(api, FakeFunctions(gated), AWS_LAMBDA_MAX_CONCURRENCY="3") as (
            served,
            task,
        ):
            await api.until(lambda: api.polling == 3)
            held = api.invoke("held")
            await began.wait()
            served.drain()
            await api.until(lambda: not api.polling)
            assert not task.done()
            gate.set()
            assert (await api.answer(held)).body == b'"held"'
            await asyncio.wait([task])
            assert task.exception() is None
            assert api.requests.count("next") == 3

    run(test)


def test_a_drain_ends_with_a_poll_that_had_to_begin_anew() -> None:
    async def test(api: FakeApi) -> None:
        async with serving(api, FakeFunctions()) as (served, task):
            await api.until(lambda: api.polling)
            api.cut()
            await asyncio.sleep(0)  # the end has arrived, and is not yet seen
            served.drain()
            await asyncio.sleep(0)
            served.close()
            await asyncio.wait_for(asyncio.wait([task]), 30)
            assert task.done()

    run(test)


def test_a_drain_ends_a_start() -> None:
    async def test(api: FakeApi) -> None:
        functions = FakeFunctions()
        functions.waking = asyncio.Event().wait  # type: ignore[assignment]
        async with serving(api, functions) as (served, task):
            await api.until(lambda: "event_next" in api.requests)
            served.drain()
            await asyncio.wait([task])
            assert task.exception() is None
        async with serving(api, FakeFunctions(), **SNAP_START) as (served, task):
            await api.until(lambda: "restore_next" in api.requests)
            served.drain()
            await asyncio.wait([task])
            assert task.exception() is None
        assert "next" not in api.requests

    run(test)


def test_a_start_that_fails_is_reported_whoever_has_done_so_before() -> None:
    async def test(api: FakeApi) -> None:
        functions = FakeFunctions()
        functions.waking = fails
        async with serving(api, functions) as (served, task):
            await asyncio.wait([task])
            error = task.exception()
            assert isinstance(error, FunctionFailed)
            api.faults = {"init_error": [403]}
            await asyncio.to_thread(served.report_error, {adapter.ADDRESS: api.address}, error)
            verb, headers, told = api.told[0]
            assert (verb, told["errorMessage"]) == ("init_error", "no database")
            assert headers["lambda-runtime-function-error-type"] == "Function.FunctionFailed"

    async def fails() -> None:
        raise FunctionFailed("no database")

    run(test)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (adapter.MODE, "STREAM"),
        (adapter.CONCURRENCY, "many"),
        (adapter.LOG_LEVEL, "loud"),
        ("ZEROWAKE_ADAPTER", "lamda"),
    ],
)
def test_a_setting_that_makes_no_sense_is_reported(name: str, value: str) -> None:
    async def test(api: FakeApi) -> None:
        environ = {adapter.ADDRESS: api.address, name: value}
        with pytest.raises(ConfigError, match=repr(value)):
            await asyncio.to_thread(run_adapter, "/none", None, ServeConfig(), environ)
        ((verb, _headers, told),) = api.told
        assert verb == "init_error" and repr(value) in told["errorMessage"]

    run(test)


# ---------------------------------------------------------------------------- SnapStart

SNAP_START = {adapter.START: adapter.SNAP_START}


def test_a_restored_function_begins_on_new_connections() -> None:
    async def test(api: FakeApi) -> None:
        functions = FakeFunctions()
        async with serving(api, functions, **SNAP_START) as (served, task):
            await api.until(lambda: "restore_next" in api.requests)
            assert functions.moments == [Moment.BEFORE_SNAPSHOT]
            assert sorted(api.requests) == ["event_next", "register", "restore_next"]
            before = set(api.came_on)
            api.restored.set()
            await api.until(lambda: api.polling and api.requests.count("event_next") == 2)
            assert functions.moments == [Moment.BEFORE_SNAPSHOT, Moment.AFTER_RESTORE]
            await api.until(lambda: not api.open & before)
            assert (await api.answer(api.invoke(1))).body == b"1"
            assert sorted(api.requests[3:5]) == ["event_next", "next"]  # registered as it is
            assert before.isdisjoint(api.came_on[3:])
            served.drain()
            await asyncio.wait([task])
            assert task.exception() is None

    run(test)


def test_an_extension_that_may_not_ask_twice_is_one_all_the_same() -> None:
    async def test(api: FakeApi) -> None:
        async with serving(api, FakeFunctions(), **SNAP_START):
            await api.until(lambda: "restore_next" in api.requests)
            api.faults = {"event_next": [403]}
            api.restored.set()
            await api.until(lambda: api.requests.count("event_next") == 2)
            assert (await api.answer(api.invoke(1))).body == b"1"

    run(test)


def test_a_restore_is_no_sooner_than_the_extension_waits() -> None:
    """Its request would span the snapshot."""

    async def test(api: FakeApi) -> None:
        api.registers.clear()
        async with serving(api, FakeFunctions(), **SNAP_START):
            await api.until(lambda: "register" in api.requests)
            for _ in range(20):
                await asyncio.sleep(0)
            assert api.requests == ["register"]
            api.registers.set()
            await api.until(lambda: "restore_next" in api.requests)

    run(test)


def test_the_time_of_a_snapshot_means_nothing_after_its_restore(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wall clock has moved on by a month, and the monotonic one has not."""
    wall_s = 1e9

    class Clocked(Invocations):
        def __init__(self, *given: Any, **known: Any) -> None:
            super().__init__(*given, **known, clock=lambda: wall_s)

    monkeypatch.setattr(adapter, "Invocations", Clocked)

    async def hangs(call: Invocation) -> None:
        if call.body == b'"hang"':
            await asyncio.Event().wait()
        await call.sink.item(call.body)

    async def test(api: FakeApi) -> None:
        nonlocal wall_s

        def invoke(body: str, left_s: float) -> str:
            return api.invoke(body, **{"Deadline-Ms": str(int((wall_s + left_s) * 1e3))})

        async with serving(api, FakeFunctions(hangs), **SNAP_START):
            await api.until(lambda: "restore_next" in api.requests)
            stale = invoke("hang", 60.0)  # nobody waits for it any more
            wall_s += 30 * 86400.0
            api.restored.set()
            late = await api.answer(stale)
            assert late.kind == "error" and late.json()["errorType"] == "Function.PredictTimeout"
            assert (await api.answer(invoke("come", 60.0))).json() == "come"
            began_s = time.monotonic()
            late = await api.answer(invoke("hang", MARGIN_S + 0.3))
            assert late.kind == "error" and late.json()["errorType"] == "Function.PredictTimeout"
            assert 0.2 < time.monotonic() - began_s < 30

    run(test)


@pytest.mark.parametrize(
    ("moment", "verb", "type_", "code"),
    [
        (Moment.BEFORE_SNAPSHOT, "init_error", "Runtime.BeforeSnapshotError", 64),
        (Moment.AFTER_RESTORE, "restore_error", "Runtime.AfterRestoreError", 65),
    ],
)
def test_hooks_that_fail_are_reported(moment: Moment, verb: str, type_: str, code: int) -> None:
    async def test(api: FakeApi) -> None:
        functions = FakeFunctions()
        functions.broken[moment] = RemoteError(to_problem(ValueError("no")))
        api.restored.set()
        async with serving(api, functions, **SNAP_START) as (served, task):
            await asyncio.wait([task])
            error = task.exception()
            assert isinstance(error, adapter.HookFailed)
            assert error.exit_code == code
            await asyncio.to_thread(served.report_error, {adapter.ADDRESS: api.address}, error)
            said, headers, told = api.told[0]
            assert (said, headers["lambda-runtime-function-error-type"]) == (verb, type_)
            assert (told["errorType"], told["errorMessage"]) == (type_, "ValueError: no")
        assert "next" not in api.requests

    run(test)


# ---------------------------------------------------------------------------- whole processes


@contextlib.asynccontextmanager
async def process(
    api: FakeApi, snapshot: Path, *flags: str, stderr: Any = None, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, *flags, "-m", "zerowake", "run", str(snapshot)]
    env = {**os.environ, adapter.ADDRESS: api.address, **environ}
    child = await asyncio.create_subprocess_exec(*command, env=env, stderr=stderr)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@pytest.fixture
def hooked(frozen: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """With AWS's own registry of hooks."""
    registry = parts.wheel_file("snapshot-restore-py==1.0.0", "snapshot_restore_py.py")
    path = os.pathsep.join([str(registry.parent), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    return frozen("hooked.py:Hooked")


def test_the_whole_of_a_restore(hooked: Path, tmp_path: Path) -> None:
    """Hooks in their orders, and other random numbers than before."""
    log = tmp_path / "log"

    async def test(api: FakeApi) -> None:
        told = {**SNAP_START, "ZEROWAKE_TEST_HOOKS": str(log)}
        async with process(api, hooked, **told) as child:
            await api.until(lambda: "restore_next" in api.requests)
            assert log.read_text().split() == ["before-2", "before-1"]
            api.restored.set()
            await api.until(lambda: api.polling)
            assert log.read_text().split()[2:] == ["after-1", "after-2"]
            drawn = (await api.answer(api.invoke(True))).json()
            assert drawn != random.Random(7).random()
            child.send_signal(signal.SIGTERM)
            assert await child.wait() == 0

    run(test)


@pytest.mark.parametrize(("failing", "code"), [("before-1", 64), ("after-1", 65)])
def test_the_exit_codes_of_hooks(hooked: Path, tmp_path: Path, failing: str, code: int) -> None:
    async def test(api: FakeApi) -> None:
        api.restored.set()
        hooks = {"ZEROWAKE_TEST_HOOKS": str(tmp_path / "log"), "ZEROWAKE_TEST_FAILS": failing}
        async with process(api, hooked, **SNAP_START, **hooks) as child:
            assert await child.wait() == code
            assert failing in api.told[0][2]["errorMessage"]

    run(test)


def test_a_snapshot_that_has_changed_meanwhile_is_not_served(
    frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    async def test(api: FakeApi) -> None:
        copy = tmp_path / "copy"
        await asyncio.to_thread(shutil.copytree, frozen("linear.py:Linear"), copy)
        async with process(api, copy, **SNAP_START) as child:
            await api.until(lambda: "restore_next" in api.requests)
            (weights,) = copy.glob("*.safetensors")
            os.truncate(weights, weights.stat().st_size - 1)
            api.restored.set()
            assert await child.wait() == 65
            assert "quarantined" in api.told[0][2]["errorMessage"]

    run(test)


def test_an_api_that_breaks_ends_the_process(frozen: Callable[[str], Path]) -> None:
    async def test(api: FakeApi) -> None:
        async with process(api, frozen("zoo.py:Add")) as child:
            api.faults = {"response": [500]}
            api.invoke({"a": 1})
            assert await child.wait() == 1
            assert api.told == []  # whom should it tell?

    run(test)


def test_a_direct_call_needs_few_modules(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    """bench/imports.py measures what they cost."""

    async def test(api: FakeApi) -> None:
        with open(tmp_path / "times", "w") as times:
            snapshot = frozen("bench/echo/app.py:echo")
            async with process(api, snapshot, "-X", "importtime", stderr=times) as child:
                assert (await api.answer(api.invoke("come"))).json() == "come"
                child.send_signal(signal.SIGTERM)
                assert await child.wait() == 0
        lines = (tmp_path / "times").read_text().splitlines()
        imported = {line.split("|")[-1].strip() for line in lines if line.count("|") == 2}
        assert "zerowake.adapters.aws.runtime_api" in imported
        spared = """
            _ssl uvloop jsonschema_rs prometheus_client email decimal datetime random shutil tempfile numpy torch
            zerowake.adapters.aws.events zerowake.adapters.aws.http zerowake.adapters.objects
            zerowake.runtime.gateway.app zerowake.runtime.nodes zerowake.snapshot.comparison
            zerowake.snapshot.form
        """
        assert imported.isdisjoint(spared.split()), imported & set(spared.split())
        assert all(map(find_spec, spared.split()))  # each name is still that of a module

    run(test)


@pytest.mark.parametrize(
    ("target", "api", "has_tls"),
    [("here", "127.0.0.1:9", False), ("gs://b/s", "127.0.0.1:9", True), ("here", "", True)],
)
def test_asyncio_is_without_tls_where_nothing_needs_it(
    target: str, api: str, has_tls: bool
) -> None:
    """And only asyncio."""
    code = "import zerowake.adapters.aws, asyncio.sslproto as a, ssl; print(a.ssl is ssl)"
    env = {**os.environ, **({adapter.ADDRESS: api} if api else {})}
    command = [sys.executable, "-c", code, target]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(has_tls)


def test_nothing_heavy_is_imported(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    """Of what the gateway needs for HTTP, and authors for clouds, the first answer needs nothing."""

    async def test(api: FakeApi) -> None:
        with open(tmp_path / "times", "w") as times:
            # As an option: the function's own process has not been given it.
            async with process(
                api, frozen("zoo.py:Add"), "-X", "importtime", stderr=times
            ) as child:
                request = {"version": "2.0", "requestContext": {"http": {"method": "POST"}}}
                assert (await api.answer(api.invoke({"a": 1}))).body == b"1006"
                reply = (await api.answer(api.invoke({**request, "body": '{"a": 1}'}))).json()
                assert reply["statusCode"] == 200
                child.send_signal(signal.SIGTERM)
                assert await child.wait() == 0
        lines = (tmp_path / "times").read_text().splitlines()
        imported = {line.split("|")[-1].strip() for line in lines if line.count("|") == 2}
        assert "zerowake.adapters.aws.runtime_api" in imported
        heavy = "torch numpy fastapi starlette uvicorn pydantic boto3 botocore httptools requests"
        assert imported.isdisjoint(heavy.split())

    run(test)
