"""Settings of a gateway and of the processes that it has started.

Values only: who reads them from a command line checks them. And what one of them, a device, means
on this machine, as far as its device files tell.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zerowake.runtime.depth import Depth

LogFormat = Literal["text", "json"]
Device = Literal["auto", "cpu", "cuda"]
COMPILE_TOLERANCE = 1e-4  # largest error of a compiled form on the probe
COMPILE_TIMEOUT_S = 900.0
PREFIX = "ZEROWAKE_"
VARIABLES = frozenset(  # of an environment, that we know: others that look like one are told
    PREFIX + name
    for name in (
        "ADAPTER", "LAMBDA_INVOKE_MODE", "OBJECTS", "PARENT", "RUNPOD_CONCURRENCY", "SNAPSHOT", "STATE",
        "TRUST", "URL",
    )
)  # fmt: skip
BACKLOG = 2048  # connections that may wait until the event loop runs
_GPU_FILE = re.compile("nvidia[0-9]+|dxg|nvhost-gpu|nvgpu")  # a card, WSL, Jetson


def shows_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has a GPU's device file; what torch makes of it, instances find out."""
    return any(map(_GPU_FILE.fullmatch, os.listdir(devices)))


class InstanceSpec(NamedTuple):
    """What a process must know to run a function; travels as JSON in a ``fork`` frame.

    digest: which snapshot is to be found at the path ``snapshot``. trusted, code_dir, device,
    log_format: as in ``ServeConfig``.
    warm: make a warm-up call first: an instance that nobody waits for yet, or a zygote.
    """

    name: str
    digest: str
    snapshot: str
    trusted: tuple[str, ...] = ()
    code_dir: str | None = None
    device: Device = "cpu"
    warm: bool = False
    log_format: LogFormat = "text"

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "InstanceSpec":
        return cls(**{**fields, "trusted": tuple(fields["trusted"])})


class ServeConfig(NamedTuple):
    """How ``zerowake serve`` and ``zerowake run`` serve.

    host, port: where it listens; port 0 takes a free one. port_from: the option or the variable that
    chooses the port, for messages. depth: where functions start and rest.
    idle_s: seconds without calls after which a function sinks one step towards it. drain_s: how
    long calls may go on after SIGTERM. device: where weights go; auto takes a GPU if there is one.
    trusted: snapshot digests whose code the operator vouched for. code_dir: take the code from
    there, where it must be the same as the snapshot's. max_queued: calls of one function that may
    wait. max_body_nbytes: the largest body of a call. start_timeout_s: how long a restore, ``wake``
    included, may take. log_format: of the gateway's lines and of what functions print.
    log_level: of ``logging``, below which the gateway's own lines are left out.
    environment: names of variables that functions may see besides the harmless ones.
    alone: the platform stops the whole container, so there is one function, started from nothing and
    not forked: one instance of it, or as many as it may have where it takes requests whole.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    port_from: str = "--port"
    depth: Depth = Depth.PREWARMED
    idle_s: float = 60.0
    drain_s: float = 30.0
    device: Device = "auto"
    trusted: tuple[str, ...] = ()
    code_dir: Path | None = None
    max_queued: int = 1024
    max_body_nbytes: int = 16 << 20
    start_timeout_s: float = 300.0
    log_format: LogFormat = "text"
    log_level: int = logging.INFO
    environment: tuple[str, ...] = ()
    alone: bool = False
