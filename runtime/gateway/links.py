"""The gateway's ends of the sockets to zygotes and instances, and the end of their processes.

Frames in, callbacks out. What to do about any of it is decided by ``processes``, and for the base
zygote by ``pool``.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from zerowake.runtime.config import InstanceSpec
from zerowake.runtime.errors import RemoteError, Unforkable, ZygoteLost
from zerowake.runtime.process import AWAITED
from zerowake.runtime.wire import READ_NBYTES, Decoder, Frame, encode

log = logging.getLogger("zerowake.gateway")

REST_S = 0.01


class Forked(NamedTuple):
    """A child of a zygote: its pid, our end of its socket, its wait status once it has ended.

    The status is None when the process ended with its zygote and nobody could ask for it.
    """

    pid: int
    socket: socket.socket
    exited: "asyncio.Future[int | None]"


class ZygoteLink:
    """The control socket of one zygote.

    ``up`` resolves to the ``up`` frame's header; RemoteError, Unforkable or ZygoteLost otherwise.
    ``on_lost`` is called once when the socket ends without ``close`` having been asked for.
    """

    def __init__(
        self,
        name: str,
        pid: int,
        sock: socket.socket,
        exited: "asyncio.Future[int | None]",
        on_lost: Callable[["ZygoteLink"], None],
    ) -> None:
        self.name = name
        self.pid = pid
        self.exited = exited
        self.up: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.up.add_done_callback(mark_seen)
        self.closing = False
        self.lost = False
        self.became = False  # it has not forked the child, it has become it
        self._socket = sock
        self._on_lost = on_lost
        self._tickets: dict[int, asyncio.Future[tuple[int, asyncio.Future[int | None]]]] = {}
        self._ticket = 0
        self._children: dict[int, asyncio.Future[int | None]] = {}
        self._reader = asyncio.create_task(self._read(), name=f"read zygote {name}")

    @property
    def is_up(self) -> bool:
        return self.up.done() and not self.up.cancelled() and self.up.exception() is None

    async def fork(self, role: str, spec: InstanceSpec) -> Forked:
        """Ask for a child. Raises ZygoteLost, OSError, or what the zygote says against it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._ticket += 1
        ticket = self._ticket
        answer = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = answer
        header = {"kind": "fork", "ticket": ticket, "role": role, "spec": spec.to_json()}
        try:
            with theirs:  # a few hundred bytes always fit into an empty socket buffer
                socket.send_fds(self._socket, [encode(header)], [theirs.fileno()])
            # The future, not the pid: the child may have ended already when we get to run.
            pid, exited = await answer
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise ZygoteLost(f"the zygote {self.name} is gone: {error}") from error
            raise
        finally:
            self._tickets.pop(ticket, None)
        return Forked(pid, ours, exited)

    def kill(self) -> None:
        """End the zygote now; its other children live on."""
        _kill(self.pid, self.exited)

    def close(self) -> None:
        """End the zygote by closing its socket; its other children live on."""
        if not self.closing:
            self.closing = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        decoder = Decoder()
        try:
            while data := await loop.sock_recv(self._socket, READ_NBYTES):
                for frame in decoder.feed(data):
                    self._handle(frame)
        except OSError:
            pass
        except Exception:  # a module can write into this socket: what it leaves is no zygote
            log.exception("zygote %s: cannot read its frames; it is ended", self.name)
            self.kill()
        finally:
            self._socket.close()
            self._lose()

    def _handle(self, frame: Frame) -> None:
        header = frame.header
        match frame.kind:
            case "up":
                self.up.set_result(header)
            case "failed":
                self.up.set_exception(RemoteError(header["problem"]))
            case "unforkable":
                self.up.set_exception(Unforkable(header["reason"], rehearsed=header["rehearsed"]))
            case "forked":
                if header["pid"] == self.pid:
                    self.became, exited = True, self.exited
                else:
                    exited = asyncio.get_running_loop().create_future()
                    self._children[header["pid"]] = exited
                if (answer := self._tickets.get(header["ticket"])) and not answer.done():
                    answer.set_result((header["pid"], exited))
            case "refused":
                if (answer := self._tickets.get(header["ticket"])) and not answer.done():
                    answer.set_exception(RemoteError(header["problem"]))
            case "exit":
                ended = self._children.pop(header["pid"], None)
                if ended is not None and not ended.done():
                    ended.set_result(header["status"])

    def _lose(self) -> None:
        self.lost = True
        lost = ZygoteLost(f"the zygote {self.name} has ended")
        waiting: list[asyncio.Future[Any]] = [self.up, *self._tickets.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(lost)
        for pid, exited in self._children.items():
            adopt(pid, exited)
        if not self.closing:
            self._on_lost(self)


def _kill(pid: int, exited: "asyncio.Future[int | None]") -> None:
    """Kill a process that has not ended. It is ours or our zygote's to reap: its pid is its own."""
    if not exited.done():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def mark_seen(future: "asyncio.Future[Any]") -> None:
    """Mark a failure as seen: whoever needs the result asks again and gets it again."""
    if not future.cancelled():
        future.exception()


def adopt(pid: int, exited: "asyncio.Future[int | None]") -> None:
    """Watch a process whose parent is gone; as its subreaper we are its parent now."""
    loop = asyncio.get_running_loop()
    AWAITED.add(pid)  # its status is for us

    def resolve() -> None:
        try:
            status: int | None = os.waitpid(pid, os.WNOHANG)[1]
        except ChildProcessError:
            status = None
        AWAITED.discard(pid)
        if not exited.done():
            exited.set_result(status)

    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        loop.call_soon(resolve)
        return
    except OSError:  # no descriptor left: others will become free
        loop.call_later(0.5, adopt, pid, exited)
        return

    def readable() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        resolve()

    loop.add_reader(pidfd, readable)


class InstanceLink(asyncio.Protocol):
    """The socket of one instance. What ``on_frame`` returns for a frame is awaited before the next
    frame is looked at, which holds back a sender; None for one that is dealt with.

    A protocol and no stream: most frames are dealt with where they arrive, and a task that is woken
    for each of them cost a call 50 us.
    """

    def __init__(self, forked: Forked, on_frame: Callable[[Frame], Awaitable[None] | None]) -> None:
        self.pid = forked.pid
        self.exited = forked.exited
        self._socket = forked.socket
        self._on_frame = on_frame
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._handling: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._rest: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening = asyncio.create_task(self._open(forked.socket))

    def send(self, header: dict[str, Any], *parts: bytes) -> None:
        """Queue a frame; an instance that is gone is noticed by its exit, not here."""
        self._attend()
        data = encode(header, *parts)
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def send_with(self, descriptor: int, header: dict[str, Any]) -> bool:
        """Send a frame and a descriptor; False when that does not go at once."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        data = encode(header)
        try:
            sent = socket.send_fds(self._socket, [data], [descriptor])
        except OSError:
            return False
        if sent < len(data):
            transport.write(data[sent:])
        return True

    def kill(self) -> None:
        """End the process now."""
        _kill(self.pid, self.exited)

    def rest(self) -> None:
        """Look at nothing that comes for a moment, unless something is sent.

        A write that wakes somebody costs its writer as much as the rest of an empty call. What comes
        meanwhile is read in one go; when nothing has, the next frame wakes us as always.
        """
        if self._rest is None and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._rest = asyncio.get_running_loop().call_later(REST_S, self._attend)

    def _attend(self) -> None:
        if self._rest is None:
            return
        self._rest.cancel()
        self._rest = None
        if self._handling is None and self._transport is not None:
            self._transport.resume_reading()

    async def drained(self, limit_s: float) -> None:
        """Wait until what the instance has sent is handled: until its socket's end, or the limit."""
        self._attend()
        await asyncio.wait([self._over], timeout=limit_s)

    async def _open(self, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
        except OSError:
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        for data in self._early:
            self._transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except ValueError:
            self._distrust()
            return
        self._frames += frames
        if self._handling is None:
            self._handle()

    def connection_lost(self, exc: Exception | None) -> None:
        if (
            exc is not None
        ):  # a write has found it gone: what it had said before is still to be read
            with contextlib.suppress(OSError):
                while data := self._socket.recv(READ_NBYTES):
                    self.data_received(data)
        self._lost = True
        if self._handling is None:
            self._end()

    def _handle(self) -> None:
        """Deal with the frames that are here."""
        try:
            while self._frames:
                if (waits := self._on_frame(self._frames.popleft())) is not None:
                    if self._transport is not None and not self._transport.is_closing():
                        self._transport.pause_reading()
                    self._handling = asyncio.create_task(self._await(waits))
                    return
        except Exception:
            self._distrust()

    async def _await(self, waits: Awaitable[None]) -> None:
        try:
            await waits
        except Exception:
            self._distrust()
        self._handling = None
        self._handle()
        if self._handling is not None:
            return
        if self._lost:
            self._end()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _distrust(self) -> None:
        """A frame makes no sense: this process is not to be trusted further."""
        log.exception("instance %d: cannot read its frames; it is ended", self.pid)
        self._frames.clear()
        if self._transport is not None:
            self._transport.close()
        self.kill()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
        self.kill()  # who does not listen any more is of no use
