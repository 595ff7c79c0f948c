"""The base zygote's process: how it is started, and with whom it lives.

Imports nothing slow: it is started before the gateway's own libraries are imported, so that both go
on side by side. Knows no event loop.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from zerowake.runtime import process
from zerowake.runtime.forms import Chosen
from zerowake.snapshot import compiled, names
from zerowake.snapshot.opened import Snapshot


class Flavour(StrEnum):
    """What a base zygote holds: torch, or for functions that need no torch only libtorch."""

    LIGHT = "light"
    TORCH = "torch"

    @classmethod
    def of(cls, chosen: Chosen) -> "Flavour":
        return cls.TORCH if chosen.needs_torch else cls.LIGHT


# What instances import; libraries that skeletons name come on top.
COMMON_MODULES = ("orjson",)
TORCH_MODULES = ("torch", "zerowake.snapshot.weights", "zerowake.snapshot.staging")
LIBTORCH_MODULE = "zerowake.snapshot.libtorch"


def shared_modules(flavour: Flavour, functions: Iterable[tuple[Snapshot, Chosen]]) -> list[str]:
    """The modules for the base zygote of ``flavour``, which these functions share.

    Model libraries are taken from the skeletons, whose names have passed the allow-list.
    """
    modules = [*COMMON_MODULES, *(TORCH_MODULES if flavour is Flavour.TORCH else ())]
    for snapshot, chosen in functions:
        skeleton = snapshot.skeleton
        if chosen.compiled is not None:
            modules.append(LIBTORCH_MODULE)
            skeleton = compiled.prune(chosen.compiled, snapshot)
        own = names.own_modules(snapshot.manifest.code.files)
        named = {name.partition(":")[0] for _kind, name in skeleton.names}
        modules += sorted(named - own - {"builtins", ""})
        if any(node["t"] == "tokenizer" for node in skeleton.nodes):
            modules.append("tokenizers")
    return list(dict.fromkeys(modules))


class BaseProcess:
    """The process; ``start`` starts it, and another one in place of a lost one.

    socket: our end of its control socket. started: whether there has been one.
    """

    def __init__(
        self, modules: list[str], environ: Mapping[str, str], named: Sequence[str]
    ) -> None:
        process.become_subreaper()
        process.raise_descriptor_limit()
        self.modules = modules
        self._environment = process.function_environment(environ, named)
        # The read end is for zygotes and instances; our write end closes when this process ends,
        # however it ends, and the kernel then ends all of them.
        self._alive_read, self._alive_write = os.pipe()
        self.started = False

    def start(self) -> None:
        self.started = True
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            fds = (theirs.fileno(), self._alive_read)
            # -P: no module is taken from the directory that the gateway was started in.
            command = [sys.executable, "-P", "-m", "zerowake.runtime.zygote"]
            command += [*map(str, fds), json.dumps(self.modules)]
            self._child = subprocess.Popen(
                command,
                env=self._environment,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the gateway, which drains
            )
        process.AWAITED.add(self._child.pid)

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self) -> None:
        """End every process that holds the pipe."""
        os.close(self._alive_write)
