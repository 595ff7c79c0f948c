"""The gateway's ends of sockets: frames in whatever pieces, nonsense, and the ends of processes."""

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scripted import ScriptedInstance, ScriptedZygote, World

from zerowake.runtime.config import InstanceSpec
from zerowake.runtime.errors import FunctionFailed, RemoteError, Unforkable, ZygoteLost
from zerowake.runtime.gateway.instance_link import REST_S, InstanceLink
from zerowake.runtime.gateway.zygote_link import ZygoteLink, adopt
from zerowake.runtime.wire import HEAD, Frame, encode

SPEC = InstanceSpec("f", "sha256:0", "/nowhere")
NONSENSE = [
    HEAD.pack(1 << 31, 0),
    HEAD.pack(4, 0) + b"}{}{",
    encode({"no": "kind"}),
    HEAD.pack(2, 0) + b"[]",
]


def linked(
    world: World, on_frame: Callable[[Frame], Awaitable[None]] | None = None
) -> tuple[InstanceLink, ScriptedInstance, list[Frame]]:
    forked, instance = world.forked()
    seen: list[Frame] = []

    async def note(frame: Frame) -> None:
        assert frame.kind
        seen.append(frame)

    link = InstanceLink(forked, on_frame or note)
    adopt(forked.pid, forked.exited)
    return link, instance, seen


def zygote(world: World) -> tuple[ZygoteLink, ScriptedZygote, list[ZygoteLink]]:
    """The link, its other end, and the links that were said to be lost."""
    sock, scripted = world.pair(ScriptedZygote)
    exited: asyncio.Future[int | None] = world.loop.create_future()
    lost: list[ZygoteLink] = []
    link = ZygoteLink("f", scripted.pid, sock, exited, lost.append)
    adopt(scripted.pid, exited)
    return link, scripted, lost


# -------------------------------------------------------------------- instances


async def test_at_rest_frames_are_read_later_or_when_something_is_sent(world: World) -> None:
    link, instance, seen = linked(world)
    instance.send({"kind": "a"})
    await world.quiet()
    for wake in (lambda: world.advance(REST_S), lambda: _send(link, world)):
        seen.clear()
        link.rest()
        link.rest()
        instance.send({"kind": "b"})
        instance.send({"kind": "c"})
        await world.quiet()
        assert not seen
        await wake()
        assert [frame.kind for frame in seen] == ["b", "c"]
    instance.send({"kind": "d"})
    await world.quiet()
    assert seen[-1].kind == "d"


async def _send(link: InstanceLink, world: World) -> None:
    link.send({"kind": "hook"})
    await world.quiet()


async def test_an_instance_that_ends_while_nobody_reads_is_heard_out(world: World) -> None:
    link, instance, seen = linked(world)
    instance.send({"kind": "a"})
    await world.quiet()
    link.rest()
    instance.send({"kind": "b"})
    await instance.die()
    await link.drained(1.0)
    assert [frame.kind for frame in seen] == ["a", "b"]


async def test_an_instance_that_has_ended_when_something_is_sent_is_heard_out(world: World) -> None:
    link, instance, seen = linked(world)
    instance.send({"kind": "a"})
    await world.quiet()
    link.rest()
    instance.send({"kind": "b"})
    instance.close()
    link.send({"kind": "hook"})
    await instance.die()
    await link.drained(1.0)
    assert [frame.kind for frame in seen] == ["a", "b"]


async def test_a_frame_that_arrives_byte_by_byte_is_one_frame(world: World) -> None:
    _link, instance, seen = linked(world)
    for byte in encode({"kind": "result", "call": 0}, b"\x00body"):
        assert not seen
        instance.send_bytes(bytes([byte]))
        await world.quiet()
    assert [(frame.kind, frame.body) for frame in seen] == [("result", b"\x00body")]


async def test_the_next_frame_waits_until_the_one_before_is_handled(world: World) -> None:
    handled: list[str] = []
    gate = asyncio.Event()

    async def slowly(frame: Frame) -> None:
        await gate.wait()
        handled.append(frame.kind)

    _link, instance, _seen = linked(world, slowly)
    sent = 0
    with pytest.raises(BlockingIOError):  # a sender is held back in the end
        while True:
            instance.send_bytes(encode({"kind": "item"}, bytes(1 << 12)))
            sent += 1
            await world.quiet()
    assert sent and not handled
    gate.set()
    await world.quiet()
    assert len(handled) == sent


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_an_instance_that_sends_nonsense_is_ended(world: World, nonsense: bytes) -> None:
    link, instance, seen = linked(world)
    instance.deaf = True
    instance.send_bytes(encode({"kind": "began"}) + nonsense)
    await instance.over()
    assert os.WTERMSIG(await link.exited or 0) == signal.SIGKILL
    assert len(seen) <= 1


async def test_an_instance_that_hangs_up_is_ended(world: World) -> None:
    link, instance, _seen = linked(world)
    instance.close()
    await instance.over()
    assert os.WTERMSIG(await link.exited or 0) == signal.SIGKILL


async def test_what_is_sent_before_the_link_is_up_arrives_in_order(world: World) -> None:
    link, instance, _seen = linked(world)
    link.send({"kind": "batch"}, b"1")
    link.send({"kind": "cancel"})
    assert (await instance.next("batch")).parts() == [b"1"]
    await instance.next("cancel")


async def test_sending_to_an_instance_that_is_gone_is_harmless(world: World) -> None:
    link, instance, _seen = linked(world)
    await instance.die()
    link.send({"kind": "batch"}, b"1")
    link.kill()
    await link.drained(limit_s=1.0)
    assert link.exited.done()


# -------------------------------------------------------------------- zygotes


async def test_a_fork_hands_over_pid_and_socket(world: World) -> None:
    link, scripted, _lost = zygote(world)
    scripted.up()
    asking = asyncio.create_task(link.fork("instance", SPEC))
    child = await scripted.instance()
    forked = await asking
    assert (forked.pid, InstanceSpec.from_json(child.spec)) == (child.pid, SPEC)
    child.send_bytes(b"hello")
    assert await world.loop.sock_recv(forked.socket, 10) == b"hello"
    await child.die(signal.SIGSEGV)
    assert os.WTERMSIG(await forked.exited or 0) == signal.SIGSEGV
    forked.socket.close()


async def test_a_child_that_has_ended_before_we_hear_of_it_is_known_to_have(world: World) -> None:
    link, scripted, _lost = zygote(world)
    asking = asyncio.create_task(link.fork("instance", SPEC))
    ticket = (await scripted.next("fork")).header["ticket"]
    forked_frame = encode({"kind": "forked", "ticket": ticket, "pid": 1 << 22})
    scripted.send_bytes(forked_frame + encode({"kind": "exit", "pid": 1 << 22, "status": 256}))
    forked = await asking
    assert await forked.exited == 256
    forked.socket.close()


async def test_what_a_zygote_says_about_itself_reaches_who_waits(world: World) -> None:
    says: list[tuple[Callable[[ScriptedZygote], None], type[Exception]]] = [
        (lambda z: z.unforkable("a thread"), Unforkable),
        (lambda z: z.fail(FunctionFailed("no such file")), RemoteError),
        (lambda z: z.kill(), ZygoteLost),
    ]
    for say, raised in says:
        link, scripted, _lost = zygote(world)
        say(scripted)
        with pytest.raises(raised):
            await link.up
        assert not link.is_up


async def test_a_refused_fork_says_why(world: World) -> None:
    link, scripted, _lost = zygote(world)
    asking = asyncio.create_task(link.fork("instance", SPEC))
    await scripted.refuse(FunctionFailed("out of memory"))
    with pytest.raises(RemoteError, match="out of memory"):
        await asking


async def test_who_waits_for_a_fork_hears_that_the_zygote_is_gone(world: World) -> None:
    link, scripted, lost = zygote(world)
    scripted.up()
    asking = asyncio.create_task(link.fork("instance", SPEC))
    await world.quiet()
    await scripted.die()
    for fork in (asking, link.fork("instance", SPEC)):
        with pytest.raises(ZygoteLost):
            await fork
    assert lost == [link] and link.lost


async def test_a_zygote_that_is_closed_is_not_lost_and_its_child_lives(world: World) -> None:
    link, scripted, lost = zygote(world)
    scripted.up()
    asking = asyncio.create_task(link.fork("instance", SPEC))
    child = await scripted.instance()
    forked = await asking
    link.close()
    link.close()
    await scripted.over()
    assert not lost and link.exited.done()
    assert not forked.exited.done()
    await child.die(signal.SIGTERM)  # an orphan: its status comes from the system, not the zygote
    assert os.WTERMSIG(await forked.exited or 0) == signal.SIGTERM
    forked.socket.close()


@pytest.mark.parametrize("nonsense", [*NONSENSE, encode({"kind": "up", "report": {}}) * 2])
async def test_a_zygote_that_sends_nonsense_is_ended(world: World, nonsense: bytes) -> None:
    link, scripted, lost = zygote(world)
    scripted.deaf = True
    scripted.send_bytes(nonsense)
    await scripted.over()
    assert os.WTERMSIG(await link.exited or 0) == signal.SIGKILL
    assert lost == [link]


# -------------------------------------------------------------------- orphans


async def test_a_process_that_nobody_can_wait_for_has_no_status(world: World) -> None:
    exited = world.loop.create_future()
    adopt(1 << 22, exited)  # past the largest pid: as good as gone
    assert await exited is None


async def test_adoption_waits_for_a_free_descriptor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forked, instance = world.forked()
    full: list[Any] = [OSError(errno.EMFILE, "too many open files")]
    real = os.pidfd_open

    def pidfd_open(pid: int) -> int:
        if full:
            raise full.pop()
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    exited = world.loop.create_future()
    adopt(instance.pid, exited)
    await instance.die()
    assert not exited.done()
    await world.advance(1.0)
    assert os.WTERMSIG(await exited) == signal.SIGKILL
