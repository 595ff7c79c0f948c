"""The gateway's end of a zygote's socket, and the ends of processes.

Frames in, futures and one callback out. What to do about any of it is decided by ``processes``, and for
the base zygote by ``pool``.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from zerowake.runtime.config import InstanceSpec
from zerowake.runtime.errors import RemoteError, Unforkable, ZygoteLost
from zerowake.runtime.process import AWAITED
from zerowake.runtime.wire import READ_NBYTES, Decoder, Frame, encode

log = logging.getLogger("zerowake.gateway")


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
        kill(self.pid, self.exited)

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


def kill(pid: int, exited: "asyncio.Future[int | None]") -> None:
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
