"""The base zygotes' processes: how they are started, and with whom they live.

Imports nothing slow: they are started before the gateway's own libraries are imported, so that all
of it goes on side by side. Knows no event loop.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum

from zerowake.runtime import process
from zerowake.runtime.wire import encode


class Flavour(StrEnum):
    """What a base zygote holds: torch, or for functions that need no torch only libtorch."""

    LIGHT = "light"
    TORCH = "torch"


class BaseProcess:
    """A base's process; ``start`` starts it, and another one in place of a lost one.

    named: variables that functions may see beside the harmless ones of ``environ``. once: it does
    not fork, it becomes the first child that it is asked for. socket: our end of its control
    socket. started: whether there has been one.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        named: Iterable[str],
        *,
        once: bool = False,
    ) -> None:
        process.become_subreaper()
        process.raise_descriptor_limit()
        self.started = False
        self._once = once
        self._modules: list[str] | None = None
        self._environment = process.function_environment(environ, named)
        # The read end is for zygotes and instances; our write end closes when this process ends,
        # however it ends, and the kernel then ends all of them.
        self._alive_read, self._alive_write = os.pipe()

    def start(self, *, libtorch: bool = False) -> None:
        """Start it. libtorch: load that at once, it takes longer than anything else."""
        self.started = True
        self.socket, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._alive_read)
            # -P: no module is taken from the directory that the gateway was started in.
            command = [sys.executable, "-P", "-m", "zerowake.runtime.preload", *map(str, fds)]
            self._child = subprocess.Popen(
                [*command, *(["libtorch"] if libtorch else []), *(["once"] if self._once else [])],
                env=self._environment,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the gateway, which drains
            )
        process.AWAITED.add(self._child.pid)
        if self._modules is not None:
            self.share(self._modules)

    def share(self, modules: list[str]) -> None:
        """Say what its functions share; it is up once it has imported that."""
        self._modules = modules
        if self.started:
            self.socket.setblocking(True)
            self.socket.sendall(encode({"kind": "import", "modules": modules}))
            self.socket.setblocking(False)

    def dismiss(self) -> None:
        """End one that was started on a guess, before it was told what to import."""
        self.started = False
        self.socket.close()
        process.AWAITED.discard(self.pid)  # it is reaped as orphans are

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self) -> None:
        """End every process that holds the pipe."""
        os.close(self._alive_write)
