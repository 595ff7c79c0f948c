"""All functions together: found by name, replaced, drained and closed; and the base they share."""

import asyncio
from typing import Any

import pytest
from scripted import Caller, ScriptedBase, ScriptedInstance, World

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import Draining, UnknownFunction, ZygoteLost
from zerowake.runtime.gateway.base import Flavour
from zerowake.runtime.gateway.pool import Base, Pool
from zerowake.runtime.policy.lifecycle import start_delay_s

DRAIN_S = 5.0  # shorter than any predict may take


class Gateway:
    """A pool over a scripted base."""

    def __init__(self, world: World, *names: str, **config: Any) -> None:
        self.world = world
        self.base = ScriptedBase(world)
        self.base.zygote.up()
        config = {"depth": Depth.COLD, **config}
        self.pool = Pool(
            ServeConfig(**config), {Flavour.LIGHT: self.base.as_process}, world.metrics
        )
        for name in names:
            self.pool.serve(world.opened(name))
        world.closing(self.pool.close)

    def submit(self, name: str, body: bytes) -> Caller:
        caller = Caller(name, body, self.world.loop.now_s)
        self.pool.submit(caller.call)
        return caller

    async def instance(self) -> ScriptedInstance:
        instance = await self.base.zygote.instance()
        instance.ready()
        return instance

    async def running(self, name: str = "f") -> tuple[Caller, ScriptedInstance]:
        """A call that runs, and where."""
        caller = self.submit(name, b"a")
        instance = await self.instance()
        assert await instance.batch() == [b"a"]
        return caller, instance


# -------------------------------------------------------------------- by name


async def test_functions_are_found_by_name_and_the_nearest_are_offered(world: World) -> None:
    gateway = Gateway(world, "zebra", "classify", "embed", "classifier")
    assert gateway.pool.names() == ["zebra", "classify", "embed", "classifier"]
    assert gateway.pool.find("embed").name == "embed"
    with pytest.raises(UnknownFunction) as unknown:
        gateway.pool.find("clasify")
    said = "'clasify'; did you mean 'classify'?; served are: classifier, classify, embed, zebra"
    assert said in str(unknown.value)
    for ask in (
        gateway.pool.wake("embd"),
        gateway.pool.sleep("embd", Depth.COLD),
    ):
        with pytest.raises(UnknownFunction, match=r"'embed'\?; served are: classifier"):
            await ask
    with pytest.raises(UnknownFunction):
        gateway.submit("embd", b"a")


async def test_without_functions_none_are_offered(world: World) -> None:
    with pytest.raises(UnknownFunction, match="served are: none"):
        Gateway(world).pool.find("f")


async def test_calls_go_to_the_function_they_name(world: World) -> None:
    gateway = Gateway(world, "f", "g")
    caller = gateway.submit("g", b"a")
    instance = await gateway.instance()
    assert instance.spec["name"] == "g"
    await instance.serve(b"a")
    assert caller.outcome == "ok"
    assert {row["name"]: row["depth"] for row in gateway.pool.describe()} == {
        "f": "cold",
        "g": "hot",
    }


async def test_sleep_and_wake_by_name(world: World) -> None:
    gateway = Gateway(world, "f")
    waking = asyncio.create_task(gateway.pool.wake("f"))
    instance = await gateway.instance()
    await waking
    await gateway.pool.sleep("f", Depth.COLD)
    assert instance.ended.is_set()


async def test_a_pool_is_ready_when_every_function_is_where_it_rests(world: World) -> None:
    gateway = Gateway(world, "f", "g", depth=Depth.ZYGOTE)
    for _ in range(2):
        assert not gateway.pool.ready
        (await gateway.base.zygote.zygote()).up()
        await world.quiet()
    assert gateway.pool.ready
    gateway.pool.draining = True
    assert not gateway.pool.ready


# -------------------------------------------------------------------- replaced


async def test_a_replaced_function_finishes_its_calls_and_is_retired(world: World) -> None:
    gateway = Gateway(world, "f")
    running, old = await gateway.running()
    waiting = gateway.submit("f", b"b")
    replacement = world.opened("f", timeout_s=7.0)
    gateway.pool.serve(replacement)
    assert gateway.pool.digest("f") == replacement.snapshot.digest
    after = gateway.submit("f", b"c")
    new = await gateway.instance()
    await new.serve(b"c")
    old.answer(b"a")
    await old.serve(b"b")
    await old.over()
    assert [c.outcome for c in (running, waiting, after)] == ["ok"] * 3
    assert not new.ended.is_set() and len(gateway.pool.describe()) == 1


async def test_a_caller_of_the_replaced_function_can_still_leave(world: World) -> None:
    gateway = Gateway(world, "f")
    running, old = await gateway.running()
    waiting = gateway.submit("f", b"b")
    gateway.pool.serve(world.opened("f", timeout_s=7.0))
    gateway.pool.cancel(waiting.call)
    old.answer(b"a")
    await old.over()
    assert (running.outcome, waiting.outcome) == ("ok", "cancelled")


# -------------------------------------------------------------------- ends


async def test_a_drain_refuses_new_calls_and_waits_for_those_under_way(world: World) -> None:
    gateway = Gateway(world, "f")
    running, old = await gateway.running()
    gateway.pool.serve(world.opened("f", timeout_s=7.0))
    waiting = gateway.submit("f", b"b")
    draining = asyncio.create_task(gateway.pool.drain(DRAIN_S))
    await world.quiet()
    with pytest.raises(Draining):
        gateway.submit("f", b"c")
    await (await gateway.instance()).serve(b"b")
    assert not draining.done()  # the replaced function has a call still
    old.answer(b"a")
    await draining
    assert (running.outcome, waiting.outcome) == ("ok", "ok")


async def test_calls_that_outlast_the_drain_are_answered_when_the_pool_closes(
    world: World,
) -> None:
    gateway = Gateway(world, "f", "g")
    replaced, first = await gateway.running()
    gateway.pool.serve(world.opened("f", timeout_s=7.0))
    running, second = await gateway.running()
    waiting = gateway.submit("f", b"b")
    starting = gateway.submit("g", b"c")
    third = await gateway.base.zygote.instance()
    draining = asyncio.create_task(gateway.pool.drain(DRAIN_S))
    await world.advance(DRAIN_S - 1)
    assert not draining.done()
    await world.advance(1)
    await draining
    await gateway.pool.close()
    callers = (replaced, running, waiting, starting)
    assert [caller.outcome for caller in callers] == ["draining"] * 4
    for scripted in (first, second, third, gateway.base.zygote):
        await scripted.over()


# -------------------------------------------------------------------- the base


async def test_a_base_is_started_again_when_it_is_needed(world: World) -> None:
    gateway = Gateway(world, "f")
    first = gateway.submit("f", b"a")
    instance = await gateway.instance()
    await instance.serve(b"a")
    await gateway.base.zygote.die()
    assert gateway.base.starts == 1
    second = gateway.submit("f", b"b")
    await instance.serve(b"b")  # who lives needs no base
    await instance.die()
    third = gateway.submit("f", b"c")
    await world.quiet()
    assert gateway.base.starts == 2
    gateway.base.zygote.up()
    await (await gateway.instance()).serve(b"c")
    assert [c.outcome for c in (first, second, third)] == ["ok"] * 3


async def test_a_base_that_does_not_come_up_is_started_with_growing_delays(world: World) -> None:
    process = ScriptedBase(world)
    base = Base(process.as_process)
    for losses in range(1, 6):
        asking = asyncio.create_task(base.link())
        delay_s = start_delay_s(losses - 1)
        await world.advance(delay_s * 0.9)
        assert (process.starts == losses) is (delay_s == 0)
        await world.advance(delay_s * 0.1)
        assert process.starts == losses
        await process.zygote.die()
        with pytest.raises(ZygoteLost):
            await asking
    assert delay_s > 0
    asking = asyncio.create_task(base.link())
    await world.advance(start_delay_s(5))
    process.zygote.up()
    await asking
    await process.zygote.die()  # it was up: the count is anew
    again = asyncio.create_task(base.link())
    await world.quiet()
    assert process.starts == 7
    process.zygote.up()
    await again
    base.close()
    await process.zygote.over()


async def test_all_who_ask_for_a_lost_base_get_the_same_new_one(world: World) -> None:
    process = ScriptedBase(world)
    base = Base(process.as_process)
    process.zygote.up()
    await base.link()
    await process.zygote.die()
    asking = [asyncio.create_task(base.link()) for _ in range(3)]
    await world.quiet()
    process.zygote.up()
    assert len({await link for link in asking}) == 1
    assert process.starts == 2
    base.close()
    await process.zygote.over()


# -------------------------------------------------------------------- loaded and removed


async def test_a_snapshot_is_loaded_under_a_name_of_the_caller_s(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(world)
    snapshot = world.opened("f")
    monkeypatch.setattr("zerowake.runtime.gateway.pool.open_target", lambda *given: snapshot)
    loading = asyncio.create_task(gateway.pool.load("/path", "mine"))
    instance = await gateway.instance()
    await loading
    assert gateway.pool.names() == ["mine"] and gateway.pool.find("mine").name == "mine"
    assert instance.spec["name"] == "mine"
    caller = gateway.submit("mine", b"a")
    assert await instance.batch() == [b"a"]
    removing = asyncio.create_task(gateway.pool.remove("mine"))
    await world.quiet()
    assert gateway.pool.names() == [] and not removing.done()  # its call is under way
    with pytest.raises(UnknownFunction):
        gateway.submit("mine", b"b")
    with pytest.raises(UnknownFunction):
        await gateway.pool.remove("mine")
    instance.answer(b"a")
    await removing
    assert caller.outcome == "ok" and instance.ended.is_set()


async def test_a_pool_whose_functions_have_all_failed_is_not_ready(world: World) -> None:
    gateway = Gateway(world, "f")
    assert gateway.pool.ready
    gateway.pool._served["f"]._processes.standing.quarantined = "its files have changed"
    assert not gateway.pool.ready
    gateway.pool.serve(world.opened("g"))
    assert gateway.pool.ready
