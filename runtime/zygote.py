"""A process that is forked from and never serves: the base, and one for each function.

The base holds what functions share (interpreter, torch, the model libraries that their snapshots
name). A function's zygote is a fork of the base that also holds the function's code and its object,
bound to the mapped weights and not woken. Both answer ``fork`` frames: the child's socket comes
with the frame, the answer is ``forked`` with its pid, and ``exit`` when it has ended.

One thread, no event loop, no device: what a fork must not find here is checked, not hoped for.
"""

import contextlib
import gc
import importlib
import logging
import os
import selectors
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from zerowake.runtime import instance, process
from zerowake.runtime.config import InstanceSpec
from zerowake.runtime.errors import FunctionFailed, to_problem
from zerowake.runtime.instance import Kit
from zerowake.runtime.logs import FunctionOutput, print_exception
from zerowake.runtime.wire import Connection
from zerowake.snapshot.errors import ZerowakeError
from zerowake.snapshot.fingerprint import fingerprint_id
from zerowake.snapshot.restore import keep_tokenizers
from zerowake.snapshot.store import open_snapshot

BARE = "bare"  # a base that imports nothing for its functions
FAILED = 3  # exit code of a child that could not be restored, and has said why
ONCE = "once"  # a base that is not to be forked from


class Zygote:
    """Serves forks until the gateway's end of ``control`` is closed.

    once: it becomes the first child that it is asked for itself.
    """

    def __init__(
        self, control: Connection, alive_fd: int, kit: Kit | None = None, *, once: bool = False
    ) -> None:
        self._control = control
        self._alive_fd = alive_fd
        self._kit = kit
        self._once = once
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, InstanceSpec]] = {}  # by pidfd

    def serve(self) -> None:
        while True:
            for key, _events in self._selector.select():
                if key.fd in self._children:
                    self._reap(key.fd)
                    continue
                while True:
                    frame = self._control.receive()
                    if frame is None:
                        return
                    self._fork(frame.header)
                    if not self._control.pending():
                        break

    def _fork(self, request: dict[str, Any]) -> None:
        child_fd = self._control.descriptors.pop(0)
        if self._once:
            told = {"kind": "forked", "ticket": request["ticket"], "pid": os.getpid()}
            self._control.send(told)
            self._become_child(request, child_fd)
        try:
            _assert_device_untouched()
        except ZerowakeError as error:
            os.close(child_fd)
            refusal = {"kind": "refused", "ticket": request["ticket"], "problem": to_problem(error)}
            self._control.send(refusal)
            return
        try:
            pid = os.fork()
        except OSError as error:  # out of memory or processes: not for ever, perhaps
            os.close(child_fd)
            problem = to_problem(FunctionFailed(f"the system refuses a fork: {error}"))
            self._control.send({"kind": "refused", "ticket": request["ticket"], "problem": problem})
            return
        if pid == 0:
            self._become_child(request, child_fd)
        os.close(child_fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid, InstanceSpec.from_json(request["spec"])
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._control.send({"kind": "forked", "ticket": request["ticket"], "pid": pid})

    def _reap(self, pidfd: int) -> None:
        pid, spec = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _pid, status = os.waitpid(pid, 0)
        self._control.send({"kind": "exit", "pid": pid, "status": status})
        if self._kit is None and status == 0:  # what ends a process must not end this one
            _keep_tokenizers(spec)

    def _become_child(self, request: dict[str, Any], child_fd: int) -> NoReturn:
        """Never returns: the parent's frames must not be run again by a child."""
        code = 1
        try:
            self._selector.close()
            self._control.socket.close()
            connection = Connection(socket.socket(fileno=child_fd))
            process.close_descriptors(keep=(child_fd, self._alive_fd))
            process.die_with(self._alive_fd)
            spec = InstanceSpec.from_json(request["spec"])
            if request["role"] == "zygote":
                process.set_name(f"zw-z {spec.name}")
                restored = serve_function(connection, self._alive_fd, spec)
            else:
                process.set_name(f"zw-i {spec.name}")
                gc.enable()
                restored = instance.main(connection, spec, self._kit)
            code = 0 if restored else FAILED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def serve_function(control: Connection, alive_fd: int, spec: InstanceSpec) -> bool:
    """The life of a function's zygote: restore, check that it may be forked, serve forks.

    Returns whether it could be restored.
    """
    output = FunctionOutput(spec.name, spec.log_format)
    output.install()
    sockets_before = process.sockets()
    started = time.perf_counter()
    try:
        kit = instance.prepare(spec, in_zygote=True)
        reason = process.unforkable_reason("importing the module", sockets_before)
        rehearsed = reason is None and spec.warm and instance.rehearse(kit, output)
        if rehearsed:
            reason = process.unforkable_reason("a call of predict", sockets_before)
    except BaseException as error:
        print_exception(error.__cause__ or error)
        control.send({"kind": "failed", "problem": to_problem(error)})
        return False
    if reason is not None:
        control.send({"kind": "unforkable", "reason": reason, "rehearsed": rehearsed})
        return True
    # Objects that live now are shared with every fork: the collector must not touch their pages.
    gc.collect()
    gc.freeze()
    total_ms = 1e3 * (time.perf_counter() - started)
    control.send({"kind": "up", "report": {**kit.report_ms, "total": total_ms}})
    Zygote(control, alive_fd, kit).serve()
    return True


def main(arguments: list[str]) -> None:
    """The base: ``CONTROL_FD ALIVE_FD [bare | once]``, which the gateway tells what to import."""
    control_fd, alive_fd = int(arguments[0]), int(arguments[1])
    os.set_inheritable(control_fd, False)
    os.set_inheritable(alive_fd, False)
    process.die_with(alive_fd)
    process.set_name("zw-base")
    process.ignore_terminal_signals()
    gc.disable()  # a collection here writes into pages that every fork shares
    started = time.perf_counter()
    control = Connection(socket.socket(fileno=control_fd))
    modules = [] if BARE in arguments else _modules(control)
    _import(modules)
    if ONCE in arguments:
        control.send({"kind": "up", "report": {}})
        Zygote(control, alive_fd, once=True).serve()
        return
    if modules and (reason := process.unforkable_reason("importing them", process.sockets())):
        # A library that cannot be shared stays out of the base; functions import it themselves.
        print(
            f"base zygote: starting again without {', '.join(modules)}: {reason}", file=sys.stderr
        )
        os.set_inheritable(control_fd, True)
        os.set_inheritable(alive_fd, True)
        command = [sys.executable, "-P", "-m", __name__, *arguments[:2], BARE]
        os.execv(sys.executable, command)
    _run_torch_once()
    if "zerowake.snapshot.libtorch" in modules:  # named where a function runs on it
        with contextlib.suppress(ZerowakeError, OSError):  # a fork will say what is wrong
            sys.modules["zerowake.snapshot.libtorch"].libtorch().run_once()
            fingerprint_id()  # what it reads is remembered: 1 ms of each fork
    gc.freeze()  # without a collection: it would take 180 ms of every start from nothing
    report = {"import": 1e3 * (time.perf_counter() - started)}
    control.send({"kind": "up", "report": report})
    Zygote(control, alive_fd).serve()


def _modules(control: Connection) -> list[str]:
    """What the gateway says to import, which may come after this process has begun."""
    frame = control.receive()
    if frame is None:
        sys.exit(0)  # the gateway is gone
    modules: list[str] = frame.header["modules"]
    return modules


def _keep_tokenizers(spec: InstanceSpec) -> None:
    """Have the next start of a function that has gone to sleep find its tokenizers made.

    Now, because nobody waits for it. Only where all forks have the library anyway.
    """
    if "tokenizers" not in sys.modules:
        return
    with contextlib.suppress(BaseException):  # a panic of the library's is no Exception
        snapshot = open_snapshot(Path(spec.snapshot), checked=spec.digest)
        if snapshot.digest == spec.digest:  # what lies there now has been restored
            keep_tokenizers(snapshot)


def _assert_device_untouched() -> None:
    """Raises DeviceError when this process must not fork because it has used an accelerator."""
    if "torch" in sys.modules:
        from zerowake.snapshot.device import assert_cuda_untouched

        assert_cuda_untouched()


def _run_torch_once() -> None:
    """Compute something tiny, where torch is loaded, on this one thread.

    Kernel dispatch and library set-up happen at the first use of an operator. Done here they are
    shared by every fork: a first MiniLM call took 24 ms after this and 32 without.
    """
    if (torch := sys.modules.get("torch")) is not None:
        with torch.no_grad():
            layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
            layer(torch.zeros(1, 8, 64))


def _import(modules: list[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the function that needs it will say so, with its own name
            logging.getLogger("zerowake").warning("base zygote: cannot import %s: %s", name, error)


if __name__ == "__main__":
    main(sys.argv[1:])
