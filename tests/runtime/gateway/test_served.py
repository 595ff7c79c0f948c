"""Calls of one function: which run together, where, how often, and how each is answered."""

import asyncio
import os
import signal
from typing import Any

import pytest
from scripted import Caller, ScriptedInstance, World

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import FunctionFailed, QueueFull
from zerowake.runtime.exchange import ReplyHead, RequestHead
from zerowake.runtime.forms import FormName
from zerowake.runtime.gateway.served import Served
from zerowake.runtime.policy.lifecycle import (
    FAILED_DEATHS,
    FIRST_COOL_DOWN_S,
    FIRST_DELAY_S,
    MAX_DELAY_S,
)
from zerowake.runtime.settings import Batch
from zerowake.snapshot.errors import DamagedSnapshot


async def ready(world: World) -> ScriptedInstance:
    """The instance that is asked for next."""
    instance = await world.base.instance()
    instance.ready()
    return instance


def batches_of(size: int, window_ms: float = 0.0) -> dict[str, Any]:
    return {"kind": "batch", "batch": Batch(size, window_ms)}


def outcomes(callers: list[Caller]) -> list[str | None]:
    return [caller.outcome for caller in callers]


# -------------------------------------------------------------------- batches


async def test_a_call_goes_to_the_idle_instance_and_comes_back(world: World) -> None:
    served = world.serve()
    instance = await world.hot(served)
    (caller,) = world.submit(served, b"1")
    assert served.in_use and caller.call.depth is Depth.HOT
    frame = await instance.next("batch")
    assert frame.header["calls"] == [{"id": caller.call.id, "timeout_s": 30.0}]
    await world.advance(0.25)
    instance.answer(b"one")
    await world.quiet()
    assert caller.answered == ("ok", [b"one"])
    assert caller.call.timings_ms == {"queue": 0.0, "predict": 1.0}
    assert not served.in_use and world.base.asked == 0


async def test_a_request_takes_its_head_along_and_its_reply_brings_one(world: World) -> None:
    served = world.serve(kind="http")
    instance = await world.hot(served)
    callers = [Caller("f", body, world.loop.time()) for body in (b"", b"event")]
    callers[0].call.head = RequestHead("GET", "/x", headers=(("a", "1"), ("a", "2")))
    for caller in callers:
        served.submit(caller.call)
    (told,) = (await instance.next("batch")).header["calls"]
    assert RequestHead.from_json(told["head"]) == callers[0].call.head
    head = ReplyHead(404, (("b", "\xe9"),))
    instance.send({"kind": "result", "call": 0, "predict_ms": 1, "head": head.to_json()}, b"")
    instance.send({"kind": "settled"})
    (told,) = (await instance.next("batch")).header["calls"]
    assert "head" not in told
    instance.answer(b"1")
    await world.quiet()
    assert [caller.answered for caller in callers] == [("ok", [b""]), ("ok", [b"1"])]
    assert [caller.call.reply for caller in callers] == [head, None]


async def test_what_arrives_during_a_restore_is_the_first_batch(world: World) -> None:
    served = world.serve(**batches_of(4))
    callers = world.submit(served, b"a", b"b")
    instance = await world.base.instance()
    callers += world.submit(served, b"c")
    await world.advance(0.25)
    instance.ready(map=1.5)
    await instance.serve(b"a", b"b", b"c")
    assert outcomes(callers) == ["ok"] * 3
    assert {caller.call.depth for caller in callers} == {Depth.COLD}
    timings = callers[0].call.timings_ms
    assert (timings["queue"], timings["restore"], timings["restore-map"]) == (250.0, 250.0, 1.5)


async def test_a_restore_before_anybody_called_is_in_nobodys_timings(world: World) -> None:
    served = world.serve(instances=(1, 1))
    served.changed()
    instance = await world.base.instance()
    await world.advance(0.25)
    instance.ready(map=1.5)
    await world.advance(0.5)
    (caller,) = world.submit(served, b"a")
    await instance.serve(b"a")
    assert caller.call.timings_ms == {"queue": 0.0, "predict": 1.0}


async def test_calls_join_the_next_batch_until_an_instance_is_free(world: World) -> None:
    served = world.serve(**batches_of(4))
    instance = await world.hot(served)
    first = world.submit(served, b"a")
    assert await instance.batch() == [b"a"]
    rest = world.submit(served, b"b", b"c")
    await world.quiet()
    rest += world.submit(served, b"d", b"e", b"f")
    await world.quiet()
    assert instance.frames.empty()
    instance.answer(b"a")
    await instance.serve(b"b", b"c", b"d", b"e")  # max_size
    await instance.serve(b"f")
    assert outcomes(first + rest) == ["ok"] * 6


async def test_after_a_batch_the_window_waits_for_company(world: World) -> None:
    served = world.serve(**batches_of(3, window_ms=5.0))
    instance = await world.hot(served)
    await world.advance(1.0)
    lone = world.submit(served, b"lone")  # who is alone does not wait
    assert await instance.batch() == [b"lone"]
    pair = world.submit(served, b"a", b"b")
    instance.answer(b"lone")
    await instance.serve(b"a", b"b")
    early = world.submit(served, b"c")
    await world.advance(0.004)
    assert instance.frames.empty()
    await world.advance(0.001)
    await instance.serve(b"c")
    assert outcomes(lone + pair + early) == ["ok"] * 4


async def test_a_full_batch_does_not_wait_for_its_window(world: World) -> None:
    served = world.serve(**batches_of(2, window_ms=5.0))
    instance = await world.hot(served)
    calls = world.submit(served, b"x")
    calls += world.submit(served, b"a", b"b")
    assert await instance.batch() == [b"x"]
    instance.answer(b"x")
    await instance.serve(b"a", b"b")
    calls += world.submit(served, b"c")
    await world.quiet()
    assert instance.frames.empty()
    calls += world.submit(served, b"d")
    await instance.serve(b"c", b"d")
    assert outcomes(calls) == ["ok"] * 5


async def test_a_problem_of_one_item_is_its_own(world: World) -> None:
    served = world.serve(**batches_of(2))
    callers = world.submit(served, b"a", b"b")
    instance = await ready(world)
    await instance.batch()
    problem = {"code": "handler_failed", "status": 500}
    instance.send({"kind": "result", "call": 1, "predict_ms": 1.0, "problem": problem})
    instance.send({"kind": "result", "call": 0, "predict_ms": 1.0}, b"a")
    instance.send({"kind": "settled"})
    await world.quiet()
    assert outcomes(callers) == ["ok", "handler_failed"]


async def test_more_instances_start_for_more_than_a_batch(world: World) -> None:
    served = world.serve(instances=(0, 3))
    callers = world.submit(served, b"a", b"b", b"c", b"d")
    await world.quiet()
    instances = [await ready(world) for _ in range(3)]
    assert world.base.asked == 0
    for instance, body in zip(instances, (b"a", b"b", b"c"), strict=True):
        assert await instance.batch() == [body]
    instances[1].answer(b"b")
    await instances[1].serve(b"d")
    assert outcomes(callers) == [None, "ok", None, "ok"]
    assert served.gauges().instances[Depth.HOT] == 3


async def test_a_queue_that_is_full_refuses(world: World) -> None:
    served = world.serve(config={"max_queued": 2})
    world.submit(served, b"a", b"b")
    with pytest.raises(QueueFull):
        world.submit(served, b"c")
    assert served.describe()["queued"] == 2


async def test_a_call_that_is_cancelled_while_it_waits_never_runs(world: World) -> None:
    served = world.serve(**batches_of(4))
    gone, stays = world.submit(served, b"a", b"b")
    served.cancel(gone.call)
    instance = await ready(world)
    await instance.serve(b"b")
    assert outcomes([gone, stays]) == ["cancelled", "ok"]


# -------------------------------------------------------------------- deaths


async def test_after_a_death_each_call_runs_again_alone(world: World) -> None:
    served = world.serve(**batches_of(4))
    callers = world.submit(served, b"a", b"poison", b"c")
    first = await ready(world)
    assert len(await first.batch()) == 3
    await first.die(signal.SIGSEGV)
    second = await ready(world)
    await second.serve(b"a")
    assert await second.batch() == [b"poison"]
    await second.die(signal.SIGSEGV)
    third = await ready(world)
    await third.serve(b"c")
    assert outcomes(callers) == ["ok", "instance_died", "ok"]
    assert "SIGSEGV" in callers[1].problem["detail"]


async def test_what_was_answered_before_the_death_stays_answered(world: World) -> None:
    served = world.serve(**batches_of(2))
    callers = world.submit(served, b"a", b"b")
    instance = await ready(world)
    await instance.batch()
    instance.send({"kind": "result", "call": 0, "predict_ms": 1.0}, b"a")
    await instance.die()
    await (await ready(world)).serve(b"b")
    assert outcomes(callers) == ["ok", "ok"]


async def test_of_a_call_that_kills_twice_one_death_counts(world: World) -> None:
    served = world.serve()
    callers: list[Caller] = []
    while served.failed is None:
        callers += world.submit(served, b"poison")
        while callers[-1].outcome is None:
            await world.advance(MAX_DELAY_S)
            instance = await ready(world)
            await instance.batch()
            await instance.die(signal.SIGSEGV)
    wanted = ["instance_died"] * (FAILED_DEATHS - 1) + ["function_failed"]
    assert outcomes(callers) == wanted
    assert f"{FAILED_DEATHS} instances in a row died" in served.failed


@pytest.mark.parametrize("began", [False, True])
async def test_without_retry_only_what_has_not_begun_runs_again(world: World, began: bool) -> None:
    served = world.serve(retry=False)
    callers = world.submit(served, b"a")
    instance = await ready(world)
    await instance.batch()
    if began:
        instance.send({"kind": "began"})
        await world.quiet()
    await instance.die()
    if not began:
        await (await ready(world)).serve(b"a")
    assert outcomes(callers) == ["instance_died" if began else "ok"]
    assert world.base.asked == 0


async def test_calls_that_kill_and_must_not_run_again_leave_the_function_to_others(
    world: World,
) -> None:
    served = world.serve(retry=False)
    for _ in range(2 * FAILED_DEATHS):
        callers = world.submit(served, b"kills")
        instance = await ready(world)
        await instance.batch()
        instance.send({"kind": "began"})
        await world.quiet()
        await instance.die(signal.SIGSEGV)
        assert outcomes(callers) == ["instance_died"]
    assert served.failed is None


async def test_a_caller_who_has_left_is_not_run_again(world: World) -> None:
    served = world.serve()
    (gone,) = world.submit(served, b"a")
    instance = await ready(world)
    await instance.batch()
    served.cancel(gone.call)
    await instance.die()
    assert gone.outcome == "cancelled"
    assert world.base.asked == 0 and not served.in_use


# -------------------------------------------------------------------- too slow


async def test_a_call_over_its_time_is_ended_with_its_process(world: World) -> None:
    served = world.serve(timeout_s=2.0)
    (slow,) = world.submit(served, b"slow")
    instance = await ready(world)
    await instance.batch()
    await world.advance(1.9)
    assert not instance.ended.is_set() and slow.outcome is None
    await world.advance(0.1)
    await instance.over()
    assert slow.outcome == "predict_timeout"
    assert "timeout_s=2" in slow.problem["detail"]
    assert served.failed is None
    (after,) = world.submit(served, b"after")
    await (await ready(world)).serve(b"after")
    assert after.outcome == "ok"


async def test_a_batch_over_its_time_runs_again_one_by_one(world: World) -> None:
    served = world.serve(timeout_s=2.0, **batches_of(3))
    callers = world.submit(served, b"a", b"slow", b"c")
    first = await ready(world)
    await first.batch()
    await world.advance(2.0)
    await first.over()
    second = await ready(world)
    await second.serve(b"a")
    assert await second.batch() == [b"slow"]
    await world.advance(2.0)
    await second.over()
    await (await ready(world)).serve(b"c")
    assert outcomes(callers) == ["ok", "predict_timeout", "ok"]


async def test_without_retry_a_batch_over_its_time_is_answered_at_once(world: World) -> None:
    served = world.serve(timeout_s=2.0, retry=False, **batches_of(2))
    callers = world.submit(served, b"a", b"b")
    instance = await ready(world)
    await instance.batch()
    instance.send({"kind": "began"})
    await world.quiet()
    await world.advance(2.0)
    await instance.over()
    assert outcomes(callers) == ["predict_timeout"] * 2


async def test_each_part_of_a_halved_batch_has_the_whole_time(world: World) -> None:
    served = world.serve(timeout_s=2.0, **batches_of(2))
    callers = world.submit(served, b"a", b"b")
    instance = await ready(world)
    await instance.batch()
    await world.advance(1.5)
    instance.send({"kind": "again"})
    await world.advance(1.5)
    instance.answer(b"a", b"b")
    await world.quiet()
    assert outcomes(callers) == ["ok", "ok"]


async def test_an_answer_that_crosses_the_kill_counts_and_its_instance_is_gone(
    world: World,
) -> None:
    served = world.serve(timeout_s=2.0)
    (caller,) = world.submit(served, b"a")
    instance = await ready(world)
    await instance.batch()
    world.loop.call_at(world.loop.time() + 2.0, instance.answer, b"a")  # once the time is over
    world.loop.now_s += 2.0
    await instance.over()
    assert caller.outcome == "ok"
    (after,) = world.submit(served, b"b")
    await (await ready(world)).serve(b"b")
    assert after.outcome == "ok" and served.failed is None


# -------------------------------------------------------------------- streams


async def streaming(world: World) -> tuple[Served, Caller, ScriptedInstance]:
    served = world.serve(kind="stream", timeout_s=2.0)
    (caller,) = world.submit(served, b"a")
    instance = await ready(world)
    await instance.batch()
    instance.send({"kind": "item", "call": 0}, b"1")
    await world.quiet()
    assert caller.answered == (None, [b"1"])
    return served, caller, instance


def end_stream(instance: ScriptedInstance) -> None:
    instance.send({"kind": "result", "call": 0, "predict_ms": 1.0})
    instance.send({"kind": "settled"})


async def test_a_stream_has_its_time_for_each_item(world: World) -> None:
    _served, caller, instance = await streaming(world)
    for item in (b"2", b"3"):
        await world.advance(1.9)
        instance.send({"kind": "item", "call": 0}, item)
        await world.quiet()
    end_stream(instance)
    await world.quiet()
    assert caller.answered == ("ok", [b"1", b"2", b"3"])


async def test_a_stream_between_items_for_too_long_is_ended(world: World) -> None:
    _served, caller, instance = await streaming(world)
    await world.advance(2.0)
    await instance.over()
    assert caller.answered == ("predict_timeout", [b"1"])


async def test_a_stream_that_has_started_is_not_run_again(world: World) -> None:
    _served, caller, instance = await streaming(world)
    await instance.die()
    assert caller.outcome == "instance_died" and world.base.asked == 0


async def test_a_reader_who_leaves_a_stream_stops_it(world: World) -> None:
    served, caller, instance = await streaming(world)
    served.cancel(caller.call)
    assert (await instance.next("cancel")).header["call"] == 0
    instance.send({"kind": "item", "call": 0}, b"2")  # it was on its way
    end_stream(instance)
    await world.quiet()
    assert caller.answered == ("cancelled", [b"1"])
    assert not served.in_use


async def test_a_reader_who_does_not_read_loses_the_stream_not_the_instance(world: World) -> None:
    served, caller, instance = await streaming(world)
    caller.reads.clear()
    instance.send({"kind": "item", "call": 0}, b"2")
    await world.quiet()
    await world.advance(1.9)
    assert caller.outcome is None
    await world.advance(0.1)
    await instance.next("cancel")
    assert caller.answered == ("cancelled", [b"1"])
    end_stream(instance)
    await world.quiet()
    assert not served.in_use and not instance.ended.is_set()


async def test_a_reader_slower_than_a_dying_instance_starts_no_timer_for_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    _served, caller, instance = await streaming(world)
    caller.reads.clear()
    instance.send({"kind": "item", "call": 0}, b"2")
    await world.quiet()
    await instance.die()
    await world.advance(1.0)  # for what it had sent to be read
    assert caller.outcome == "instance_died"
    caller.reads.set()
    await world.advance(5.0)
    assert "timeout_s" not in caplog.text


# -------------------------------------------------------------------- starts that fail


async def fail_start(world: World, reason: str = "no database") -> None:
    instance = await world.base.instance()
    instance.fail(FunctionFailed(reason))
    await world.quiet()


async def test_a_start_that_takes_long_is_the_reason_shown(world: World) -> None:
    served = world.serve(config={"start_timeout_s": 20.0})
    world.submit(served, b"a")
    await world.base.instance()
    await world.advance(10.0)
    assert (served.describe()["state"], served.failed) == ("starting", None)
    assert "given up after 20 s" in served.describe()["reason"]


async def test_starts_that_fail_back_off_until_the_function_is_failed(world: World) -> None:
    served = world.serve()
    (caller,) = world.submit(served, b"a")
    await fail_start(world)
    await fail_start(world)  # at once
    assert world.base.asked == 0 and caller.outcome is None
    await world.advance(FIRST_DELAY_S)
    await fail_start(world)
    assert caller.outcome == "function_failed"
    assert caller.problem["retry_after_s"] == FIRST_COOL_DOWN_S
    assert "no database" in caller.problem["detail"] and "wake" in caller.problem["detail"]
    assert served.describe()["state"] == "failed" and served.at_rest
    await world.advance(FIRST_COOL_DOWN_S - 1)
    with pytest.raises(FunctionFailed) as refused:
        world.submit(served, b"b")
    assert refused.value.retry_after_s == 1


async def failed(world: World, **settings: Any) -> Served:
    served = world.serve(**settings)
    world.submit(served, b"a")
    await fail_start(world)
    await fail_start(world)
    await world.advance(FIRST_DELAY_S)
    await fail_start(world)
    assert served.failed
    return served


async def test_after_the_cool_down_one_trial_is_made(world: World) -> None:
    served = await failed(world, instances=(0, 3))
    await world.advance(FIRST_COOL_DOWN_S)
    callers = world.submit(served, b"a", b"b", b"c")
    trial = await world.base.instance()
    await world.quiet()
    assert world.base.asked == 0
    trial.ready()
    for body in (b"a", b"b", b"c"):
        await trial.serve(body)
    assert outcomes(callers) == ["ok"] * 3 and served.failed is None


async def test_a_trial_that_fails_doubles_the_pause(world: World) -> None:
    served = await failed(world)
    await world.advance(FIRST_COOL_DOWN_S)
    (caller,) = world.submit(served, b"a")
    await fail_start(world, "still none")
    assert caller.problem["retry_after_s"] == 2 * FIRST_COOL_DOWN_S
    assert "still none" in caller.problem["detail"]


async def test_what_is_permanent_answers_everybody_at_once(world: World) -> None:
    served = world.serve()
    callers = world.submit(served, b"a", b"b")
    instance = await world.base.instance()
    instance.fail(DamagedSnapshot("skeleton.json is cut off"))
    await world.quiet()
    assert outcomes(callers) == ["function_failed"] * 2
    assert "quarantined" in callers[0].problem["detail"]
    assert "retry_after_s" not in callers[0].problem
    with pytest.raises(FunctionFailed, match="skeleton"):
        world.submit(served, b"c")


async def test_a_snapshot_replaced_under_its_instance_is_not_restored(world: World) -> None:
    snapshot = world.snapshot()
    served = world.serve(snapshot)
    instance = await world.hot(served)
    (caller,) = world.submit(served, b"a")
    await instance.batch()
    os.truncate(snapshot.path / "weights-00001.safetensors", 10)
    await instance.die(signal.SIGBUS)
    assert caller.outcome == "function_failed"
    assert world.base.asked == 0 and "quarantined" in str(served.failed)


# -------------------------------------------------------------------- ends


async def test_close_answers_everybody(world: World) -> None:
    served = world.serve()
    running, waiting = world.submit(served, b"a", b"b")
    instance = await ready(world)
    await instance.batch()
    await served.close()
    await instance.over()
    assert outcomes([running, waiting]) == ["draining"] * 2


async def test_quiet_returns_when_the_last_call_is_answered(world: World) -> None:
    served = world.serve()
    instance = await world.hot(served)
    world.submit(served, b"a", b"b")
    quiet = asyncio.create_task(served.quiet())
    await instance.serve(b"a")
    assert not quiet.done()
    await instance.serve(b"b")
    await quiet


async def test_the_fewest_instances_are_kept(world: World) -> None:
    served = world.serve(instances=(2, 2))
    await world.quiet()
    pair = [await ready(world), await ready(world)]
    await world.quiet()
    assert served.depth is Depth.HOT and world.base.asked == 0
    await pair[0].die()
    await ready(world)
    await world.quiet()
    assert len(served.describe()["processes"]) == 2


async def test_a_call_stays_in_use_until_its_dead_instance_is_cleared_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, looked = world.serve(), asyncio.Event()
    instance = await world.hot(served)
    (caller,) = world.submit(served, b"1")
    await instance.next("batch")
    monkeypatch.setattr(served._processes, "_check_snapshot", looked.wait)
    await instance.die()
    assert served.in_use, "a drain that looks now would lose the call"
    looked.set()
    other = await ready(world)
    await other.next("batch")
    other.answer(b"again")
    await world.quiet()
    assert caller.answered == ("ok", [b"again"])


async def test_the_form_that_really_runs_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    served = world.serve()
    assert served.describe()["form"] == "plain"
    (caller,) = world.submit(served, b"first")
    instance = await world.base.instance()
    instance.ready(FormName.EAGER, "the compiled form cannot be used: it is gone")
    await instance.serve(b"first")
    assert caller.answered == ("ok", [b"first"])
    told = served.describe()
    assert told["form"] == "eager" and "it is gone" in told["reason"]
    assert "runs as eager now: the compiled form cannot be used: it is gone" in caplog.text
    metrics, _type = await world.metrics.scrape("")
    assert b'form="eager"' in metrics and b'form="plain"' not in metrics
