"""The other ends of the gateway's sockets, played by a test in the gateway's own event loop.

Processes are real (``sleep``), so pids, kills and wait statuses are. What they say is scripted, and
time stands still until the test moves it. No model, no torch.
"""

import asyncio
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from support import PATIENCE_S, ROOT, function_info

from zerowake.runtime import process
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import to_problem
from zerowake.runtime.forms import Chosen, FormName
from zerowake.runtime.gateway.base import BaseProcess
from zerowake.runtime.gateway.opening import Opened
from zerowake.runtime.gateway.served import Served
from zerowake.runtime.gateway.zygote_link import Forked, ZygoteLink
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics
from zerowake.runtime.settings import Settings
from zerowake.runtime.wire import READ_NBYTES, Decoder, Frame, encode
from zerowake.snapshot import manifest
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import open_snapshot

DUE_S = time.get_clock_info("monotonic").resolution  # asyncio takes what is so near for due
GOOD = ROOT / "tests" / "hostile" / "corpus" / "good"


class _Selector(selectors.DefaultSelector):
    """Tells when the loop has nothing to do any more; a test that hangs ends here."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = 0
        self.waiting: list[asyncio.Future[None]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout < DUE_S):
            return events
        if self.waiting and not self.threads:
            for future in self.waiting:
                if not future.done():
                    future.set_result(None)
            self.waiting.clear()
            return []
        if events := super().select(PATIENCE_S / 3):
            return events
        raise TimeoutError("nothing happens any more, and time stands still")


class StillLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is ``now_s``: timers and timeouts wait for the test to move it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._told = _Selector()
        super().__init__(self._told)

    def time(self) -> float:
        return self.now_s

    @property
    def timers(self) -> list[float]:
        """When those that are set are due."""
        return [timer.when() for timer in self._scheduled if not timer.cancelled()]

    def run_in_executor(self, *arguments: Any) -> Any:
        future = super().run_in_executor(*arguments)
        self._told.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _future: object) -> None:
        self._told.threads -= 1

    async def quiet(self) -> None:
        """Wait until everything that can happen at this time has happened, processes' ends apart."""
        future = self.create_future()
        self._told.waiting.append(future)
        await future

    async def advance(self, seconds: float) -> None:
        """Let time pass once nothing more happens now, and what is due then happen."""
        await self.quiet()
        self.now_s += seconds
        await self.quiet()


class Scripted:
    """A process: a real pid, and the end of a socket that the test speaks for.

    deaf: it does not end when its socket does, or when it is told to stop. spec: what its zygote was
    asked to fork it with.
    """

    def __init__(
        self, world: "World", sock: socket.socket, parent: "ScriptedZygote | None" = None
    ) -> None:
        sock.setblocking(False)
        sock.set_inheritable(False)
        self.world = world
        self.socket = sock
        self.parent = parent
        self.spec: dict[str, Any] = {}
        self.deaf = False
        self.is_open = True
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.pid = os.posix_spawnp("sleep", ["sleep", "120"], os.environ)
        self.pidfd = os.pidfd_open(self.pid)
        self.ended = asyncio.Event()
        self._decoder = Decoder()
        process.AWAITED.add(self.pid)
        world.processes.append(self)
        world.loop.add_reader(self.pidfd, self._on_exit)
        world.loop.add_reader(sock, self._on_data)

    def send(self, header: dict[str, Any], *parts: bytes) -> None:
        self.send_bytes(encode(header, *parts))

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    async def next(self, kind: str) -> Frame:
        """The next frame, which has to be of this kind."""
        frame = await self.frames.get()
        assert frame.kind == kind, frame.header
        return frame

    def fail(self, error: Exception) -> None:
        self.send({"kind": "failed", "problem": to_problem(error)})

    def kill(self, signum: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    async def die(self, signum: int = signal.SIGKILL) -> None:
        """Be killed; returns when everybody has taken note."""
        self.kill(signum)
        await self.over()

    async def over(self) -> None:
        """Wait for its end, whoever ends it, and for what follows from it."""
        await self.ended.wait()
        await self.world.quiet()

    def close(self) -> None:
        """Its end of the socket goes, as it does when a process ends."""
        if self.is_open:
            self.is_open = False
            self.world.loop.remove_reader(self.socket)
            self.socket.close()

    def take(self, frame: Frame, descriptors: list[int]) -> None:
        if frame.kind == "stop" and not self.deaf:
            self.kill()
        else:
            self.frames.put_nowait(frame)

    def _on_data(self) -> None:
        data, descriptors, _flags, _address = socket.recv_fds(self.socket, READ_NBYTES, 4)
        for frame in self._decoder.feed(data):
            self.take(frame, descriptors)
        if not data:
            self.world.loop.remove_reader(self.socket)
            if not self.deaf:
                self.kill()

    def _on_exit(self) -> None:
        self.world.loop.remove_reader(self.pidfd)
        self.close()
        if self.parent is not None and self.parent.is_open:
            self.parent.reap(self)
        self.ended.set()


S = TypeVar("S", bound=Scripted)


class ScriptedInstance(Scripted):
    """An instance."""

    def ready(self, form: FormName = FormName.PLAIN, reason: str = "", **report_ms: float) -> None:
        report = {"total": 3.0, **report_ms}
        self.send({"kind": "ready", "report": report, "form": form, "reason": reason})

    async def batch(self) -> list[bytes]:
        """The bodies of the next batch."""
        return (await self.next("batch")).parts()

    def answer(self, *results: bytes) -> None:
        """One result for each call of the batch, and the batch is settled."""
        for place, result in enumerate(results):
            self.send({"kind": "result", "call": place, "predict_ms": 1.0}, result)
        self.send({"kind": "settled"})

    async def serve(self, *bodies: bytes) -> None:
        """Expect a batch of these bodies and answer it with the same."""
        assert await self.batch() == list(bodies)
        self.answer(*bodies)
        await self.world.quiet()


class ScriptedZygote(Scripted):
    """A zygote: ``instance`` and ``zygote`` do what it is asked next."""

    def __init__(
        self, world: "World", sock: socket.socket, parent: "ScriptedZygote | None" = None
    ) -> None:
        super().__init__(world, sock, parent)
        self.children: list[Scripted] = []
        self._sockets: asyncio.Queue[socket.socket] = asyncio.Queue()

    @property
    def asked(self) -> int:
        """How many forks it has been asked for and has not answered."""
        return self.frames.qsize()

    def up(self) -> None:
        self.send({"kind": "up", "report": {"total": 5.0}})

    def unforkable(self, reason: str, *, rehearsed: bool = False) -> None:
        self.send({"kind": "unforkable", "reason": reason, "rehearsed": rehearsed})

    async def instance(self, *, tell: bool = True) -> ScriptedInstance:
        """Fork the instance that is asked for. tell: send the ``forked`` frame."""
        return await self._fork("instance", ScriptedInstance, tell)

    async def zygote(self) -> "ScriptedZygote":
        return await self._fork("zygote", ScriptedZygote, True)

    async def refuse(self, error: Exception) -> None:
        frame = await self.next("fork")
        self._sockets.get_nowait().close()
        refusal = {"kind": "refused", "ticket": frame.header["ticket"]}
        self.send({**refusal, "problem": to_problem(error)})

    async def _fork(self, role: str, kind: type[S], tell: bool) -> S:
        frame = await self.next("fork")
        assert frame.header["role"] == role, frame.header
        child = kind(self.world, self._sockets.get_nowait(), self)
        child.spec = frame.header["spec"]
        self.children.append(child)
        if tell:
            self.send({"kind": "forked", "ticket": frame.header["ticket"], "pid": child.pid})
        return child

    def take(self, frame: Frame, descriptors: list[int]) -> None:
        super().take(frame, descriptors)
        self._sockets.put_nowait(socket.socket(fileno=descriptors.pop(0)))

    def reap(self, child: Scripted) -> None:
        _pid, status = os.waitpid(child.pid, 0)
        process.AWAITED.discard(child.pid)
        self.children.remove(child)
        with contextlib.suppress(BrokenPipeError):  # the gateway has closed it this very moment
            self.send({"kind": "exit", "pid": child.pid, "status": status})

    def kill(self, signum: int = signal.SIGKILL) -> None:
        super().kill(signum)
        self.close()

    def close(self) -> None:
        """Its children are the gateway's from now on."""
        orphans = self.children if self.is_open else []
        super().close()
        for child in orphans:
            process.AWAITED.discard(child.pid)
        while not self._sockets.empty():
            self._sockets.get_nowait().close()


class ScriptedBase:
    """Stands in for ``BaseProcess``: each start is a new scripted zygote."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.starts = 0
        self.started = True
        self.start()

    def start(self) -> None:
        self.socket, self.zygote = self._world.pair(ScriptedZygote)
        self.pid = self.zygote.pid
        self.starts += 1

    def close(self) -> None:
        pass

    @property
    def as_process(self) -> BaseProcess:
        return cast(BaseProcess, self)


class Caller:
    """One call and whoever waits for it. outcome: "ok", the code of a problem, None until then.

    reads: clear it for a reader that does not read.
    """

    def __init__(self, function: str, body: bytes, now_s: float) -> None:
        self.call = Invocation(function, body, self, now_s)
        self.items: list[bytes] = []
        self.outcome: str | None = None
        self.problem: dict[str, Any] = {}
        self.reads = asyncio.Event()
        self.reads.set()

    async def item(self, chunk: bytes) -> None:
        await self.reads.wait()
        self.items.append(chunk)

    def finish(self, result: bytes | None = None) -> None:
        assert self.outcome is None, "answered twice"
        if result is not None:
            self.items.append(result)
        self.outcome = "ok"

    def fail(self, problem: dict[str, object]) -> None:
        assert self.outcome is None, "answered twice"
        self.outcome, self.problem = str(problem["code"]), dict(problem)

    @property
    def answered(self) -> tuple[str | None, list[bytes]]:
        return self.outcome, self.items


class World:
    """What a test needs: a base zygote that is up, snapshots, time."""

    def __init__(self, loop: StillLoop, folder: Path) -> None:
        self.loop = loop
        self.quiet = loop.quiet
        self.advance = loop.advance
        self.metrics = Metrics()
        self.errors: list[dict[str, Any]] = []
        self.processes: list[Scripted] = []
        self._folder = folder
        self._closing: list[Callable[[], Coroutine[Any, Any, None]]] = []
        loop.set_exception_handler(lambda _loop, context: self.errors.append(context))

    async def open(self) -> "World":
        sock, self.base = self.pair(ScriptedZygote)
        exited: asyncio.Future[int | None] = self.loop.create_future()
        self._link = ZygoteLink("base", self.base.pid, sock, exited, lambda _link: None)
        self.base.up()
        return self

    async def link(self) -> ZygoteLink:
        """The base, as ``Served`` and ``Processes`` ask for it."""
        await asyncio.shield(self._link.up)
        return self._link

    async def close(self) -> None:
        for scripted in self.processes:
            if scripted is not self.base:
                scripted.kill()
        for close in self._closing:
            await close()
        for scripted in self.processes:
            if scripted is not self.base:
                await scripted.ended.wait()
        self._link.close()
        await self.base.ended.wait()
        await self.quiet()
        for scripted in self.processes:
            os.close(scripted.pidfd)
            process.AWAITED.discard(scripted.pid)
            with contextlib.suppress(ChildProcessError):  # reaped already
                os.waitpid(scripted.pid, 0)
        assert not self.errors, self.errors

    def closing(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await ``close()`` at the end."""
        self._closing.append(close)

    def pair(self, kind: type[S]) -> tuple[socket.socket, S]:
        """The gateway's end of a socket, and the scripted process at the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return ours, kind(self, theirs)

    def forked(self) -> tuple[Forked, ScriptedInstance]:
        """An instance as a zygote hands it over, and its other end."""
        sock, instance = self.pair(ScriptedInstance)
        exited: asyncio.Future[int | None] = self.loop.create_future()
        return Forked(instance.pid, sock, exited), instance

    def snapshot(self, name: str = "f", *, kind: str = "item", **settings: Any) -> Snapshot:
        """A snapshot whose author has declared ``settings``."""
        path = self._folder / f"{name}-{len(list(self._folder.iterdir()))}"
        shutil.copytree(GOOD, path)
        info = function_info(name, kind, settings=Settings(name, **settings))
        plain = json.loads((path / "manifest.json").read_bytes())
        plain |= {"name": name, "function": info.to_json()}
        (path / "manifest.json").write_bytes(manifest.canonical(plain))
        return open_snapshot(path)

    def opened(self, name: str = "f", *, kind: str = "item", **settings: Any) -> Opened:
        """The same, as the command line gives it to a pool."""
        return _opened(self.snapshot(name, kind=kind, **settings))

    def serve(
        self,
        snapshot: Snapshot | None = None,
        *,
        depth: Depth = Depth.COLD,
        config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Served:
        snapshot = snapshot or self.snapshot(**settings)
        made = ServeConfig(depth=depth, **(config or {}))
        served = Served(_opened(snapshot), made, self.link, self.metrics, self.loop.time)
        self.closing(served.close)
        served.changed()
        return served

    def submit(self, served: Served, *bodies: bytes) -> list[Caller]:
        """One call with each body."""
        callers = [Caller(served.name, body, self.loop.now_s) for body in bodies]
        for caller in callers:
            served.submit(caller.call)
        return callers

    async def hot(self, served: Served) -> ScriptedInstance:
        """An instance that has served one call."""
        (caller,) = self.submit(served, b"first")
        instance = await self.base.instance()
        instance.ready()
        await instance.serve(b"first")
        assert caller.answered == ("ok", [b"first"])
        return instance


def _opened(snapshot: Snapshot) -> Opened:
    return Opened(snapshot, FunctionInfo.of(snapshot.manifest), Chosen(FormName.PLAIN))
