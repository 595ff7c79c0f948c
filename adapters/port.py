"""What an adapter is: an ingress of a platform, and what that platform can do.

``docs/adapters.md`` teaches writing one.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import InvocationError
from zerowake.runtime.gateway.port import Ingress
from zerowake.snapshot.errors import ZerowakeError


class Port(NamedTuple):
    """Where an adapter listens: what ``variable`` says, ``default`` where it says nothing."""

    variable: str
    default: int


class Capabilities(NamedTuple):
    """What a platform offers and demands; the table in docs/adapters.md is made of these.

    platform: as its vendor calls it. shape: whether the platform is asked for calls, or asks us.
    streaming, mid_stream_error: how chunks, and an error after the first of them, reach the caller;
    "" where they cannot. events: kinds of calls beside a plain request. partial_batch: whether items
    of a batch can fail alone. concurrency: calls at a time for one container. cancel: whether we
    learn that a caller has left. request_nbytes, response_nbytes: the platform's limits, None where
    it has none. timeout: how long a call may take, in words. start_s: seconds that a start may take.
    drain_s: seconds between the word that we are to end and the end. hooks: what the platform does
    with a started container beside calling it. model: where the platform lays the model, a folder or
    the $VARIABLE that names one; taken when none is named. port: None where it does not listen.
    """

    platform: str
    shape: Literal["pull", "push"]
    streaming: str = ""
    mid_stream_error: str = ""
    events: tuple[str, ...] = ()
    partial_batch: bool = False
    concurrency: str = "as many as come"
    cancel: bool = True
    request_nbytes: int | None = None
    response_nbytes: int | None = None
    timeout: str = ""
    start_s: float | None = None
    drain_s: float = 30.0
    hooks: str = ""
    model: str = ""
    port: Port | None = None


class AnswerTooLarge(InvocationError):
    """The call has ended well, and the platform does not take as much as it answers."""

    status, code = 502, "answer_too_large"


class PlatformExit(ZerowakeError):
    """An end whose exit code means something to the platform."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Adapter(Ingress, Protocol):
    """An ``Ingress`` of one platform. ``run`` makes one, and calls its methods in this order.

    ``configure`` (from a class), then the object: ``open``, ``serve``, ``drain``, ``close``; and
    ``report_error`` (of the class) instead of what follows, once something has gone wrong.

    Where the platform snapshots a started container, ``serve`` is what stands still meanwhile: with
    the function up and no call taken, it has ``Functions.hook`` run before the snapshot and after the
    restore, asks the platform for that in between, and makes its connections anew.
    """

    capabilities: ClassVar[Capabilities]

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        """``config`` as the platform's environment wants it: address, limits, drain.

        Raises ConfigError naming the variable that makes no sense.
        """
        ...

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None: ...

    @staticmethod
    def report_error(environ: Mapping[str, str], error: BaseException) -> None:
        """Tell the platform why there will be no calls: a start or a restore has failed, or what
        ``environ`` says makes no sense.

        Which of them, ``error`` says where the platform wants to know. The process then ends with
        exit code 1, or that of a PlatformExit.
        """
