"""Starts, stops and ends of one function's processes, and what is made of their failures."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from scripted import Caller, ScriptedInstance, World

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import (
    FunctionFailed,
    HandlerFailed,
    InstanceDied,
    RemoteError,
    Unforkable,
    ZygoteLost,
    to_problem,
)
from zerowake.runtime.forms import FormName
from zerowake.runtime.gateway.instances import Instance, State
from zerowake.runtime.gateway.processes import STOP_LIMIT_S, Processes
from zerowake.runtime.gateway.standing import SLOW_START_S
from zerowake.runtime.gateway.zygote_link import ZygoteLink
from zerowake.runtime.hooks import Moment
from zerowake.runtime.wire import Frame
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    ForbiddenClass,
    SnapshotError,
    UnsupportedVersion,
    UntrustedCode,
)
from zerowake.snapshot.opened import Snapshot

LIMIT_S = 300.0  # start_timeout_s


class Notes:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.exits: list[str] = []
        self.changes = 0

    async def on_frame(self, instance: Instance, frame: Frame) -> None:
        self.frames.append(frame.kind)

    def runs_as(self, form: FormName, reason: str) -> None:
        pass

    def on_exit(self, instance: Instance, died: InstanceDied) -> None:
        self.exits.append(str(died))

    def changed(self) -> None:
        self.changes += 1


def processes(
    world: World, snapshot: Snapshot | None = None, base: Callable[..., Any] | None = None
) -> tuple[Processes, Notes]:
    notes = Notes()
    config = ServeConfig(start_timeout_s=LIMIT_S)
    snapshot = snapshot or world.snapshot()
    made = Processes(snapshot, config, base or world.link, world.metrics, notes, world.loop.time)
    world.closing(made.close)
    return made, notes


async def ready(world: World, made: Processes) -> tuple[Instance, ScriptedInstance]:
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    scripted.ready()
    instance = await starting
    assert instance is not None
    return instance, scripted


async def with_zygote(world: World, made: Processes) -> Any:
    rising = asyncio.create_task(made.ensure_zygote())
    zygote = await world.base.zygote()
    zygote.up()
    await rising
    assert made.zygote_is_up
    return zygote


async def nobody() -> ZygoteLink:
    """A base that does not come up."""
    await asyncio.Event().wait()
    raise AssertionError


# -------------------------------------------------------------------- starts


async def test_a_start_ends_with_a_ready_instance_and_its_report(world: World) -> None:
    made, notes = processes(world)
    starting = made.start(hot=True, warm=True)
    assert made.starting == 1
    scripted = await world.base.instance()
    assert scripted.spec["warm"] and scripted.spec["name"] == "f"
    await world.advance(0.5)
    assert made.describe() == [{"pid": scripted.pid, "role": "instance", "state": "starting"}]
    scripted.ready(map=2.0)
    instance = await starting
    await world.quiet()
    assert instance is not None and made.ready == [instance] and made.starting == 0
    assert instance.restore_ms == {"restore": 500.0, "restore-map": 2.0}
    assert made.describe() == [{"pid": scripted.pid, "role": "instance", "state": "idle"}]
    scripted.send({"kind": "settled"})
    await world.quiet()
    assert notes.frames == ["settled"] and notes.changes


async def test_a_start_that_fails_is_counted_with_its_reason(world: World) -> None:
    ways: list[tuple[str, Callable[[ScriptedInstance], None]]] = [
        ("no database", lambda instance: instance.fail(FunctionFailed("no database"))),
        ("killed by SIGSEGV", lambda instance: instance.kill(signal.SIGSEGV)),
        ("killed by SIGKILL", lambda instance: instance.close()),  # hung up: it is ended
    ]
    for reason, end in ways:
        made, notes = processes(world)
        starting = made.start(hot=True, warm=False)
        scripted = await world.base.instance()
        end(scripted)
        assert await starting is None
        scripted.kill()
        await scripted.over()
        assert reason in made.standing.last_failure
        assert made.instances == [] and made.starting == 0 and made.standing.quarantined is None
        assert len(notes.exits) == 1
        made.standing.health.start_failed(world.loop.now_s, "another")
        made.standing.health.start_failed(world.loop.now_s, "a third")
        assert made.standing.health.failed


async def test_what_the_base_refuses_is_a_failed_start(world: World) -> None:
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    await world.base.refuse(FunctionFailed("out of memory"))
    assert await starting is None
    assert made.standing.last_failure == "out of memory"


async def test_a_system_that_has_no_descriptor_left_is_a_failed_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _notes = processes(world)
    await world.quiet()

    def socketpair() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("zerowake.runtime.gateway.zygote_link.socket.socketpair", socketpair)
    assert await made.start(hot=True, warm=False) is None
    assert "the system refuses another process" in made.standing.last_failure


@pytest.mark.parametrize(
    "error",
    [UntrustedCode, ForbiddenClass, DamagedSnapshot, UnsupportedVersion, SnapshotError],
)
async def test_what_no_second_try_mends_quarantines_the_function(
    world: World, error: type[Exception]
) -> None:
    made, _notes = processes(world)
    instance, other = await ready(world, made)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    scripted.fail(error("it is so"))
    assert await starting is None
    assert made.standing.quarantined and "it is so" in made.standing.quarantined
    assert made.standing.health.failed is None
    await other.over()  # what is idle runs no more of it
    assert instance.state is State.STOPPING and made.ready == []


async def test_quarantine_ends_what_runs_after_its_batch_and_what_starts_at_once(
    world: World,
) -> None:
    made, _notes = processes(world)
    busy, running = await ready(world, made)
    busy.state, busy.batch = State.BUSY, {0: Caller("f", b"a", 0.0).call}
    starts = [made.start(hot=True, warm=False) for _ in range(2)]
    first, second = await world.base.instance(), await world.base.instance()
    await world.quiet()
    first.fail(DamagedSnapshot("it is cut off"))
    assert [await start for start in starts] == [None, None]
    await second.over()
    assert busy.retiring and not running.ended.is_set()


async def test_a_damaged_snapshot_is_quarantined_before_anything_starts(world: World) -> None:
    snapshot = world.snapshot()
    weights = snapshot.path / "weights-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    made, notes = processes(world, snapshot)
    await world.quiet()
    assert made.standing.quarantined and "damaged" in made.standing.quarantined and notes.changes
    assert await made.start(hot=True, warm=False) is None
    assert world.base.asked == 0


def hashing(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> asyncio.Event:
    """Hashing ends when this is set, well or with ``error``."""
    hashed = asyncio.Event()

    async def check(_check_digests: object, snapshot: Snapshot) -> None:
        await hashed.wait()
        if error is not None:
            raise error

    monkeypatch.setattr(asyncio, "to_thread", check)
    return hashed


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_snapshot_is_hashed_beside_the_restore_and_used_only_after(
    world: World, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    hashed = hashing(monkeypatch, DamagedSnapshot("block 0 is damaged") if damaged else None)
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    scripted.ready()
    await world.quiet()
    assert not starting.done() and made.ready == []
    hashed.set()
    if damaged:
        assert await starting is None and made.standing.quarantined
        await scripted.over()
        assert made.instances == []
    else:
        assert await starting is not None and len(made.ready) == 1


# -------------------------------------------------------------------- limits of time


async def test_hashing_is_no_part_of_a_start_that_is_limited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = hashing(monkeypatch)
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    scripted.ready()
    await world.quiet()
    await world.advance(LIMIT_S + 1)
    assert not starting.done() and made.standing.slow is None
    hashed.set()
    assert await starting is not None and made.standing.last_failure == ""


async def test_an_instance_that_is_not_ready_in_time_is_ended(world: World) -> None:
    made, notes = processes(world)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    await world.advance(LIMIT_S - 1)
    assert not starting.done()
    await world.advance(1)
    assert await starting is None
    await scripted.over()
    assert "not ready after 300 s" in made.standing.last_failure
    assert made.instances == [] and len(notes.exits) == 1


async def test_a_slow_start_is_told_while_it_lasts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    said = "f has been starting for 10 s; does wake() or an import hang? it is given up after 300 s"
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    await world.advance(SLOW_START_S - 0.1)
    assert made.standing.slow is None
    await world.advance(0.1)
    assert made.standing.slow == said and caplog.messages == [said]
    scripted.ready()
    assert await starting is not None and made.standing.slow is None
    rising = asyncio.create_task(made.ensure_zygote())
    await world.base.zygote()
    await world.advance(SLOW_START_S)
    assert made.standing.slow and "does an import hang?" in made.standing.slow
    await world.advance(LIMIT_S)
    with pytest.raises(FunctionFailed):
        await rising
    assert made.standing.slow is None


async def test_an_instance_that_is_ready_too_late_takes_no_calls(world: World) -> None:
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    scripted = await world.base.instance()
    await world.quiet()
    scripted.ready()  # on its way when the time is over
    world.loop.now_s += LIMIT_S
    assert await starting is None
    while not made.instances[0].ready.done():
        await asyncio.sleep(0)
    assert made.ready == []
    await scripted.over()
    assert made.instances == []


async def test_a_start_does_not_wait_for_ever_for_a_base(world: World) -> None:
    made, _notes = processes(world, base=nobody)
    starting = made.start(hot=True, warm=False)
    await world.quiet()
    await world.advance(LIMIT_S)
    assert await starting is None
    assert made.starting == 0 and not made.base_is_up


async def test_a_zygote_that_is_not_up_in_time_is_ended(world: World) -> None:
    made, _notes = processes(world)
    rising = asyncio.create_task(made.ensure_zygote())
    zygote = await world.base.zygote()
    await world.quiet()
    await world.advance(LIMIT_S)
    with pytest.raises(FunctionFailed, match="not up after 300 s"):
        await rising
    await zygote.over()
    assert made.describe() == [] and "its zygote" in made.standing.last_failure
    await with_zygote(world, made)  # and the next one may do better


# -------------------------------------------------------------------- zygotes


async def test_a_zygote_is_what_instances_are_forked_from(world: World) -> None:
    made, _notes = processes(world)
    zygote = await with_zygote(world, made)
    assert zygote.spec["warm"]
    await made.ensure_zygote()  # there is one
    starting = made.start(hot=True, warm=False)
    scripted = await zygote.instance()
    scripted.ready()
    assert await starting in made.ready
    assert [row["role"] for row in made.describe()] == ["instance", "zygote"]
    await made.drop_zygote()
    assert zygote.ended.is_set() and not made.zygote_is_up
    assert len(made.ready) == 1


async def test_an_unforkable_function_knows_only_hot_and_cold(world: World) -> None:
    made, _notes = processes(world)
    starting = asyncio.create_task(made.ensure_zygote())
    zygote = await world.base.zygote()
    zygote.unforkable("a thread is running")
    with pytest.raises(Unforkable, match="a thread"):
        await starting
    assert made.standing.allowed == {Depth.HOT, Depth.COLD}
    assert made.standing.unforkable == "a thread is running"
    zygote.kill()
    await zygote.over()
    await ready(world, made)  # from the base
    assert made.standing.health.failed is None and made.standing.last_failure == ""


async def test_a_zygote_whose_warm_up_leaves_threads_is_made_again_without(world: World) -> None:
    made, _notes = processes(world)
    rising = asyncio.create_task(made.ensure_zygote())
    first = await world.base.zygote()
    first.unforkable("predict starts a thread", rehearsed=True)
    second = await world.base.zygote()
    assert (first.spec["warm"], second.spec["warm"]) == (True, False)
    second.up()
    await rising
    assert (
        made.zygote_is_up
        and made.standing.unforkable is None
        and made.standing.allowed == set(Depth)
    )
    await second.die()
    again = asyncio.create_task(made.ensure_zygote())
    third = await world.base.zygote()
    assert third.spec["warm"] is False  # learnt once
    third.up()
    await again


async def test_a_zygote_lost_with_a_fork_under_way_leaves_it_to_the_base(world: World) -> None:
    made, notes = processes(world)
    zygote = await with_zygote(world, made)
    starting = made.start(hot=True, warm=False)
    await zygote.next("fork")
    await zygote.die()
    scripted = await world.base.instance()
    scripted.ready()
    assert await starting in made.ready
    assert not made.zygote_is_up and notes.changes


async def test_a_child_whose_zygote_dies_before_it_names_it_ends_too(world: World) -> None:
    made, _notes = processes(world)
    zygote = await with_zygote(world, made)
    starting = made.start(hot=True, warm=False)
    orphan = await zygote.instance(tell=False)
    await zygote.die()
    await orphan.over()  # its socket has ended
    scripted = await world.base.instance()
    scripted.ready()
    assert await starting in made.ready
    await scripted.die()  # and with the next end the orphan is reaped
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan.pid, os.WNOHANG)


async def test_a_zygote_that_ends_before_it_is_up_leaves_the_start_to_the_base(
    world: World,
) -> None:
    made, _notes = processes(world)
    rising = asyncio.create_task(made.ensure_zygote())
    zygote = await world.base.zygote()
    await world.quiet()
    starting = made.start(hot=True, warm=False)
    await world.quiet()
    await zygote.die()
    with pytest.raises(ZygoteLost):
        await rising
    scripted = await world.base.instance()
    scripted.ready()
    assert await starting in made.ready


async def test_a_zygote_that_fails_counts_once_however_many_wait_for_it(world: World) -> None:
    made, _notes = processes(world)
    rising = asyncio.create_task(made.ensure_zygote())
    zygote = await world.base.zygote()
    await world.quiet()
    starts = [made.start(hot=True, warm=False) for _ in range(3)]
    await world.quiet()
    zygote.fail(FunctionFailed("a disk that is full"))
    with pytest.raises(RemoteError, match="a disk"):
        await rising
    assert [await start for start in starts] == [None] * 3
    assert made.standing.health.failed is None
    assert made.standing.health.may_start(
        world.loop.now_s
    )  # the first failure is made good at once


async def test_instances_outlive_their_zygote_and_their_ends_are_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, notes = processes(world)
    zygote = await with_zygote(world, made)
    starts = [made.start(hot=True, warm=False) for _ in range(2)]
    children = [await zygote.instance() for _ in starts]
    for child in children:
        child.ready()
    instances = [await start for start in starts]
    await zygote.die()
    assert made.ready == instances

    def both(_instance: Instance, died: InstanceDied) -> None:
        """The second ends while the first is cleared up after."""
        notes.exits.append(str(died))
        if len(notes.exits) > 1:
            return
        children[1].kill(signal.SIGSEGV)
        os.waitid(os.P_PID, children[1].pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(notes, "on_exit", both)
    await children[0].die(signal.SIGSEGV)
    await children[1].over()
    assert len(notes.exits) == 2
    assert all("killed by SIGSEGV" in died for died in notes.exits)


# -------------------------------------------------------------------- ends


async def test_a_death_is_counted_unless_the_call_is_known_to_kill(world: World) -> None:
    for poisoned in (False, True):
        made, notes = processes(world)
        for _ in range(5):  # FAILED_DEATHS
            instance, scripted = await ready(world, made)
            instance.poisoned = poisoned
            await scripted.die(signal.SIGSEGV)
        assert all("killed by SIGSEGV" in died for died in notes.exits)
        assert bool(made.standing.health.failed) is not poisoned


@pytest.mark.parametrize("harm", ["replaced", "cut off", "gone"])
async def test_a_snapshot_that_has_changed_is_quarantined_after_a_death(
    world: World, harm: str
) -> None:
    snapshot = world.snapshot()
    made, _notes = processes(world, snapshot)
    _instance, scripted = await ready(world, made)
    if harm == "cut off":
        os.truncate(snapshot.path / "weights-00001.safetensors", 100)
    else:
        snapshot.path.rename(snapshot.path.with_name("old"))
    if harm == "replaced":
        world.snapshot(timeout_s=1.0).path.rename(snapshot.path)
    await scripted.die()
    assert made.standing.quarantined
    assert ("another one lies" in made.standing.quarantined) is (harm == "replaced")


async def test_quarantine_ends_the_zygote(world: World) -> None:
    snapshot = world.snapshot()
    made, notes = processes(world, snapshot)
    zygote = await with_zygote(world, made)
    starts = [made.start(hot=True, warm=False) for _ in range(2)]
    dying, idle = [await zygote.instance() for _ in starts]
    for scripted in (dying, idle):
        scripted.ready()
    assert all([await start for start in starts])
    os.truncate(snapshot.path / "skeleton.json", 0)
    await dying.die()
    for scripted in (zygote, idle):
        await scripted.over()
    await world.quiet()
    assert made.standing.quarantined and made.describe() == [] and len(notes.exits) == 2


async def test_an_unharmed_snapshot_survives_a_death(world: World) -> None:
    made, _notes = processes(world)
    _instance, scripted = await ready(world, made)
    await scripted.die()
    assert made.standing.quarantined is None
    await ready(world, made)


async def test_a_snapshot_is_checked_when_a_zygote_is_lost(world: World) -> None:
    snapshot = world.snapshot()
    made, _notes = processes(world, snapshot)
    zygote = await with_zygote(world, made)
    os.truncate(snapshot.path / "skeleton.json", 0)
    await zygote.die()
    assert made.standing.quarantined


async def test_retiring_waits_for_the_batch(world: World) -> None:
    made, notes = processes(world)
    instance, scripted = await ready(world, made)
    instance.state = State.BUSY
    retiring = asyncio.create_task(made.retire(instance))
    await world.quiet()
    assert not retiring.done() and made.ready == []
    instance.state = State.IDLE
    await made.retire(instance)
    await retiring
    await world.quiet()
    assert scripted.ended.is_set() and made.instances == []
    assert made.standing.health.failed is None and len(notes.exits) == 1


async def test_an_instance_that_does_not_stop_is_ended(world: World) -> None:
    made, _notes = processes(world)
    instance, scripted = await ready(world, made)
    scripted.deaf = True
    retiring = asyncio.create_task(made.retire(instance))
    await scripted.next("stop")
    await world.advance(STOP_LIMIT_S)
    await retiring
    assert scripted.ended.is_set()


async def test_an_instance_retired_before_it_is_ready_is_no_failure(world: World) -> None:
    made, _notes = processes(world)
    starting = made.start(hot=True, warm=False)
    await world.base.instance()
    await world.quiet()
    await made.retire(made.instances[0])
    assert await starting is None
    assert made.standing.last_failure == "" and made.instances == []


async def test_close_ends_whatever_it_is_doing(world: World) -> None:
    made, _notes = processes(world)
    zygote = await with_zygote(world, made)
    starts = [made.start(hot=True, warm=False) for _ in range(4)]
    children = [await zygote.instance() for _ in range(3)]  # the fourth fork is never made
    for child in children[:2]:
        child.deaf = True
        child.ready()
    busy = await starts[0]
    idle = await starts[1]
    await world.quiet()
    assert busy is not None and idle is not None
    busy.state = State.BUSY
    children[1].deaf = False
    await made.close()
    for ended in (zygote, *children):
        await ended.over()


# -------------------------------------------------------------------- hooks


async def test_hooks_run_in_every_instance_and_their_end_is_awaited(world: World) -> None:
    made, _notes = processes(world)
    _instance, scripted = await ready(world, made)
    for moment in Moment:
        hooking = asyncio.create_task(made.hook(moment))
        frame = await scripted.next("hook")
        assert frame.header["moment"] == moment
        await world.quiet()
        assert not hooking.done()
        scripted.send({"kind": "hooked"})
        await hooking
    scripted.send({"kind": "hooked"})  # nobody has asked
    await world.quiet()
    assert made.ready


async def test_hooks_that_fail_or_kill_their_process(world: World) -> None:
    made, _notes = processes(world)
    _instance, scripted = await ready(world, made)
    hooking = asyncio.create_task(made.hook(Moment.BEFORE_SNAPSHOT))
    await scripted.next("hook")
    scripted.send({"kind": "hooked", "problem": to_problem(HandlerFailed("no"))})
    with pytest.raises(RemoteError, match="no"):
        await hooking
    hooking = asyncio.create_task(made.hook(Moment.AFTER_RESTORE))
    await scripted.next("hook")
    scripted.kill()
    with pytest.raises(RemoteError, match="the process that ran its hooks has ended"):
        await hooking


async def test_a_snapshot_that_a_restore_has_changed_runs_no_hooks(world: World) -> None:
    snapshot = world.snapshot()
    made, _notes = processes(world, snapshot)
    _instance, scripted = await ready(world, made)
    (snapshot.path / "manifest.json").unlink()
    await made.hook(Moment.AFTER_RESTORE)
    assert made.standing.quarantined and "there is no snapshot" in made.standing.quarantined
    await scripted.over()  # it is stopped
