"""How deep a function sleeps: by idle time, step by step, and on command."""

import asyncio
from typing import Any

import pytest
from scripted import ScriptedInstance, ScriptedZygote, World

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import FunctionBusy, FunctionFailed, Unforkable
from zerowake.runtime.gateway.depths import BUSY_LIMIT_S
from zerowake.runtime.gateway.served import Served
from zerowake.runtime.policy.lifecycle import FIRST_DELAY_S
from zerowake.snapshot.errors import DamagedSnapshot

IDLE_S = 60.0


def roles(served: Served) -> list[str]:
    return sorted(row["role"] for row in served.describe()["processes"])


async def up(world: World) -> ScriptedZygote:
    """The function's zygote, which is asked for next."""
    zygote = await world.base.zygote()
    zygote.up()
    return zygote


async def prewarmed(world: World, zygote: ScriptedZygote) -> ScriptedInstance:
    instance = await zygote.instance()
    assert instance.spec["warm"]
    instance.ready()
    await world.quiet()
    return instance


async def at_prewarmed(
    world: World, **options: Any
) -> tuple[Served, ScriptedZygote, ScriptedInstance]:
    """A function that rests at prewarmed, and is there."""
    served = world.serve(depth=Depth.PREWARMED, **options)
    zygote = await up(world)
    return served, zygote, await prewarmed(world, zygote)


# -------------------------------------------------------------------- by itself


async def test_a_function_without_calls_sinks_step_by_step(world: World) -> None:
    served = world.serve()
    hot = await world.hot(served)
    await world.advance(IDLE_S - 1)
    assert world.base.asked == 0
    await world.advance(1)
    zygote = await up(world)
    warm = await prewarmed(world, zygote)
    await hot.over()  # a fresh fork has taken over
    assert served.depth is Depth.PREWARMED and roles(served) == ["prewarmed", "zygote"]
    await world.advance(IDLE_S - 1)
    assert not warm.ended.is_set()
    await world.advance(1)
    await warm.over()
    assert served.depth is Depth.ZYGOTE and roles(served) == ["zygote"]
    await world.advance(IDLE_S)
    await zygote.over()
    assert served.depth is Depth.COLD and roles(served) == []
    await world.advance(10 * IDLE_S)
    assert world.base.asked == 0


async def test_a_call_starts_the_idle_time_anew(world: World) -> None:
    served = world.serve()
    hot = await world.hot(served)
    await world.advance(IDLE_S - 1)
    world.submit(served, b"a")
    await hot.serve(b"a")
    await world.advance(IDLE_S - 1)
    assert world.base.asked == 0
    await world.advance(1)
    assert world.base.asked == 1


async def test_a_function_does_not_sink_while_a_call_runs(world: World) -> None:
    served = world.serve(timeout_s=10 * IDLE_S)
    hot = await world.hot(served)
    world.submit(served, b"a")
    await hot.batch()
    await world.advance(2 * IDLE_S)
    assert world.base.asked == 0 and served.depth is Depth.HOT


async def test_a_function_sinks_only_to_where_it_rests(world: World) -> None:
    served, _zygote, warm = await at_prewarmed(world)
    assert served.at_rest
    await world.advance(10 * IDLE_S)
    assert served.depth is Depth.PREWARMED and not warm.ended.is_set()


async def test_a_prewarmed_instance_takes_the_call_and_is_replaced_later(world: World) -> None:
    served, zygote, warm = await at_prewarmed(world)
    (caller,) = world.submit(served, b"a")
    await warm.serve(b"a")
    assert caller.call.depth is Depth.PREWARMED and served.depth is Depth.HOT
    assert "restore" not in caller.call.timings_ms  # it was over before
    await world.advance(IDLE_S)
    await prewarmed(world, zygote)
    await warm.over()
    assert served.depth is Depth.PREWARMED


async def test_a_function_comes_up_hot_where_it_rests_hot(world: World) -> None:
    served = world.serve(depth=Depth.HOT)
    assert not served.at_rest
    instance = await world.base.instance()
    assert instance.spec["warm"]
    instance.ready()
    await world.quiet()
    assert served.depth is Depth.HOT and served.at_rest


async def test_a_rise_that_fails_is_tried_again_with_growing_delays(world: World) -> None:
    served = world.serve(depth=Depth.ZYGOTE)
    for delay_s in (0.0, FIRST_DELAY_S):
        (await world.base.zygote()).fail(FunctionFailed("a disk that is full"))
        await world.quiet()
        assert (world.base.asked == 0) is (delay_s > 0)
        await world.advance(delay_s)
    (await world.base.zygote()).fail(FunctionFailed("a disk that is full"))
    await world.quiet()
    assert served.at_rest and "a disk" in str(served.failed)  # nothing to be waited for
    assert world.base.asked == 0


async def test_a_call_during_a_move_has_an_instance_of_its_own(world: World) -> None:
    served = world.serve(depth=Depth.PREWARMED)
    zygote = await world.base.zygote()
    await world.quiet()
    (caller,) = world.submit(served, b"a")
    zygote.up()
    instance = await zygote.instance()
    await world.quiet()
    assert zygote.asked == 0  # and the move does not ask for a second one
    instance.ready()
    await instance.serve(b"a")
    assert caller.outcome == "ok" and served.depth is Depth.HOT


async def test_a_call_while_a_commanded_zygote_rises_is_answered(world: World) -> None:
    served = world.serve()
    sleeping = asyncio.create_task(served.bring_to(Depth.ZYGOTE))
    zygote = await world.base.zygote()
    await world.quiet()
    (caller,) = world.submit(served, b"a")
    zygote.up()
    await world.quiet()
    while zygote.asked:  # the first may be retired before it is ready
        instance = await zygote.instance()
        await world.quiet()
    instance.ready()
    await instance.serve(b"a")
    await sleeping
    assert caller.outcome == "ok"


async def test_a_lost_zygote_is_made_again_where_the_function_rests_at_it(world: World) -> None:
    served = world.serve(depth=Depth.ZYGOTE)
    zygote = await up(world)
    await world.quiet()
    assert served.depth is Depth.ZYGOTE
    await zygote.die()
    assert served.depth is Depth.COLD
    await up(world)
    await world.quiet()
    assert served.depth is Depth.ZYGOTE and served.at_rest


async def test_an_unforkable_function_sinks_from_hot_to_cold(world: World) -> None:
    served = world.serve(depth=Depth.ZYGOTE)
    zygote = await world.base.zygote()
    zygote.unforkable("a thread is running")
    await world.quiet()
    zygote.kill()
    described = served.describe()
    assert (described["depths"], described["reason"]) == (["hot", "cold"], "a thread is running")
    assert served.at_rest
    hot = await world.hot(served)
    await world.advance(10 * IDLE_S)  # its floor is zygote, and cold is below
    assert not hot.ended.is_set() and world.base.asked == 0
    await served.bring_to(Depth.COLD)
    await hot.over()
    for depth in (Depth.PREWARMED, Depth.ZYGOTE):
        with pytest.raises(Unforkable, match="a thread is running"):
            await served.bring_to(depth)


# -------------------------------------------------------------------- on command


@pytest.mark.parametrize("depth", [Depth.PREWARMED, Depth.ZYGOTE, Depth.COLD])
async def test_a_command_brings_it_down_and_a_call_up_again(world: World, depth: Depth) -> None:
    served = world.serve()
    hot = await world.hot(served)
    sleeping = asyncio.create_task(served.bring_to(depth))
    source = world.base if depth is Depth.COLD else await up(world)
    instance = await prewarmed(world, source) if depth is Depth.PREWARMED else None
    await sleeping
    await hot.over()
    assert served.depth is depth
    await world.advance(IDLE_S / 2)
    assert served.depth is depth
    (caller,) = world.submit(served, b"a")
    if instance is None:
        instance = await source.instance()
        instance.ready()
    await instance.serve(b"a")
    assert (caller.outcome, caller.call.depth, served.depth) == ("ok", depth, Depth.HOT)


async def test_a_commanded_depth_is_kept_until_a_call(world: World) -> None:
    served, zygote, warm = await at_prewarmed(world)
    await served.bring_to(Depth.COLD)
    await warm.over()
    await zygote.over()
    await world.advance(10 * IDLE_S)
    assert served.depth is Depth.COLD and world.base.asked == 0 and served.at_rest
    world.submit(served, b"a")
    instance = await world.base.instance()
    instance.ready()
    await instance.serve(b"a")
    await world.advance(IDLE_S)
    await prewarmed(world, await up(world))
    assert served.depth is Depth.PREWARMED


async def test_sleep_waits_for_a_pause_between_calls_but_not_for_ever(world: World) -> None:
    served = world.serve(timeout_s=10 * BUSY_LIMIT_S)
    hot = await world.hot(served)
    world.submit(served, b"a")
    await hot.batch()
    sleeping = asyncio.create_task(served.bring_to(Depth.COLD))
    await world.advance(BUSY_LIMIT_S - 1)
    assert not sleeping.done()
    await world.advance(1)
    with pytest.raises(FunctionBusy, match="without a pause"):
        await sleeping
    assert not hot.ended.is_set()
    sleeping = asyncio.create_task(served.bring_to(Depth.COLD))
    await world.quiet()
    hot.answer(b"a")
    await sleeping
    assert hot.ended.is_set() and served.depth is Depth.COLD


async def test_a_function_that_keeps_instances_does_not_sleep(world: World) -> None:
    served = world.serve(instances=(1, 2))
    instance = await world.base.instance()
    instance.ready()
    await world.quiet()
    with pytest.raises(FunctionBusy, match="keeps 1 instance"):
        await served.bring_to(Depth.COLD)
    await world.advance(10 * IDLE_S)
    assert served.depth is Depth.HOT and not instance.ended.is_set()


async def test_a_function_that_is_kept_awake_waits_for_no_moment(world: World) -> None:
    """What ``run`` serves: a container that is frozen, or restored a month later, owes nothing."""
    served = world.serve(instances=(1, 1), config={"idle_s": 0.01})
    instance = await world.hot(served)
    assert not world.loop.timers
    await world.advance(30 * 86400.0)
    assert served.depth is Depth.HOT
    (caller,) = world.submit(served, b"a")
    await instance.serve(b"a")
    assert caller.answered == ("ok", [b"a"]) and not world.base.asked
    assert caller.call.timings_ms == {"queue": 0.0, "predict": 1.0}
    (slow,) = world.submit(served, b"b")  # its time is counted from now
    await instance.batch()
    (due_s,) = world.loop.timers
    assert due_s == world.loop.now_s + served.info.settings.timeout_s
    instance.answer(b"b")
    await world.quiet()
    assert slow.outcome == "ok" and not world.loop.timers


async def test_a_prewarming_that_fails_says_why(world: World) -> None:
    served = world.serve()
    sleeping = asyncio.create_task(served.bring_to(Depth.PREWARMED))
    zygote = await up(world)
    (await zygote.instance()).fail(FunctionFailed("no database"))
    with pytest.raises(FunctionFailed, match="cannot be prewarmed: no database"):
        await sleeping


async def test_wake_brings_up_an_instance_that_has_been_warmed(world: World) -> None:
    served = world.serve()
    waking = asyncio.create_task(served.bring_to(Depth.HOT))
    instance = await world.base.instance()
    assert instance.spec["warm"]
    instance.ready()
    await waking
    assert served.depth is Depth.HOT
    await world.advance(IDLE_S)  # and idle time counts from then
    assert world.base.asked == 1


async def test_wake_takes_the_prewarmed_one(world: World) -> None:
    served, zygote, warm = await at_prewarmed(world)
    await served.bring_to(Depth.HOT)
    assert served.depth is Depth.HOT and zygote.asked == 0
    assert served.describe()["processes"][0] == {
        "pid": warm.pid,
        "role": "instance",
        "state": "idle",
    }


async def test_wake_gives_a_failed_function_another_chance_at_once(world: World) -> None:
    served = world.serve()
    (caller,) = world.submit(served, b"a")
    for delay_s in (0.0, FIRST_DELAY_S, 0.0):
        (await world.base.instance()).fail(FunctionFailed("no database"))
        await world.advance(delay_s)
    assert served.failed and caller.outcome == "function_failed"
    waking = asyncio.create_task(served.bring_to(Depth.HOT))
    (await world.base.instance()).fail(FunctionFailed("still none"))
    with pytest.raises(FunctionFailed, match="cannot be woken: still none"):
        await waking
    waking = asyncio.create_task(served.bring_to(Depth.HOT))
    (await world.base.instance()).ready()
    await waking
    assert served.failed is None and served.depth is Depth.HOT


async def test_wake_does_not_mend_a_quarantined_function(world: World) -> None:
    served = world.serve()
    world.submit(served, b"a")
    (await world.base.instance()).fail(DamagedSnapshot("it is cut off"))
    await world.quiet()
    with pytest.raises(FunctionFailed, match="cut off"):
        await served.bring_to(Depth.HOT)


async def test_close_ends_a_move_under_way(world: World) -> None:
    served = world.serve(depth=Depth.PREWARMED)
    zygote = await up(world)
    warm = await zygote.instance()
    await world.quiet()
    await served.close()
    for scripted in (zygote, warm):
        await scripted.over()


async def test_a_wake_ends_when_the_function_is_closed(world: World) -> None:
    served = world.serve()
    waking = asyncio.create_task(served.bring_to(Depth.HOT))
    await world.quiet()
    await served.close()
    with pytest.raises(FunctionFailed, match="cannot be woken"):
        await waking
