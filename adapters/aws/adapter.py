"""AWS Lambda: one process, one model, and as many invocations at a time as the platform allows.

Each slot is a ``Line`` of its own to the Runtime API that asks for an invocation, has it answered and
asks again. All slots feed one queue, so concurrent invocations and the records of their batches run
as batches of one model (the official Python client forks a process for each slot instead).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from zerowake.adapters.aws.invocations import Invocations
from zerowake.adapters.aws.messages import Event
from zerowake.adapters.aws.runtime_api import Line, RuntimeApiError
from zerowake.adapters.port import Capabilities, PlatformExit
from zerowake.adapters.pull import Pull, number
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError, InvocationError, to_problem
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.hooks import Moment
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    from zerowake.adapters.objects import Objects
    from zerowake.runtime.gateway.asgi import ASGIApp
    from zerowake.runtime.metrics import Metrics

log = logging.getLogger("zerowake.adapters")

ADDRESS = "AWS_LAMBDA_RUNTIME_API"
CONCURRENCY = "AWS_LAMBDA_MAX_CONCURRENCY"
START = "AWS_LAMBDA_INITIALIZATION_TYPE"
SNAP_START = "snap-start"
MODE = "ZEROWAKE_LAMBDA_INVOKE_MODE"  # as the function URL's InvokeMode, which no event tells
LOG_LEVEL = "AWS_LAMBDA_LOG_LEVEL"
LEVELS = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "WARN": 30, "ERROR": 40, "FATAL": 50}
LEND_AFTER = 4  # direct invocations
LONG_MS = 50.0  # beside which a tenth of a millisecond is nothing
AGAIN_AFTER = 1000  # direct invocations, after a long one
INIT_S = 9.0  # of the 10 s that an on-demand start may take; after them the first call pays


class HookFailed(PlatformExit):
    """What the author wants done before a snapshot, or after its restore, went wrong."""

    def __init__(self, moment: Moment, problem: dict[str, Any]) -> None:
        before = moment is Moment.BEFORE_SNAPSHOT
        super().__init__(problem["detail"], 64 if before else 65)  # as awslambdaric
        self.path = "/runtime/init/error" if before else "/runtime/restore/error"
        self.type = "Runtime.BeforeSnapshotError" if before else "Runtime.AfterRestoreError"
        self.problem = problem


class Lambda(Pull):
    """The ``Adapter`` of AWS Lambda, on-demand and Managed Instances."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="AWS Lambda",
        shape="pull",
        streaming="response streaming",
        mid_stream_error="error trailers",
        events=(
            "function URL",
            "API Gateway (HTTP, REST)",
            "ALB",
            "SQS",
            "SNS",
            "S3",
            "EventBridge",
            "Kinesis",
            "DynamoDB",
            "MSK",
        ),
        partial_batch=True,
        concurrency="1; on Managed Instances AWS_LAMBDA_MAX_CONCURRENCY",
        cancel=False,
        request_nbytes=6 << 20,
        response_nbytes=6 << 20,
        timeout="15 min",
        start_s=10.0,
        drain_s=0.5,
        hooks="SnapStart",
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        is_json = environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"
        level = environ.get(LOG_LEVEL, "")
        if level and level.upper() not in LEVELS:
            raise ConfigError(f"{LOG_LEVEL} is {level!r:.40}; it is one of {', '.join(LEVELS)}")
        return config._replace(
            max_body_nbytes=64 << 20,  # the platform has its own limit, and we are told no other
            log_format="json" if is_json else config.log_format,
            log_level=LEVELS[level.upper()] if level else config.log_level,
        )

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None:
        super().__init__()
        self._config = config
        self._address = environ.get(ADDRESS, "")
        if not self._address:
            raise ConfigError(f"{ADDRESS} is not set: this is no Lambda environment")
        self._slots = number(CONCURRENCY, environ.get(CONCURRENCY, "1"))
        mode = environ.get(MODE, "BUFFERED")
        if mode.upper() not in ("BUFFERED", "RESPONSE_STREAM"):
            raise ConfigError(f"{MODE} is {mode!r:.40}; it is BUFFERED or RESPONSE_STREAM")
        self._streaming = mode.upper() == "RESPONSE_STREAM"
        self._snap_start = environ.get(START) == SNAP_START
        # Only a start on demand is limited; on Managed Instances nobody waits for it.
        on_demand = environ.get(START, "on-demand") == "on-demand" and CONCURRENCY not in environ
        self._init_s = INIT_S if on_demand else None
        self._environ = environ
        self._extension: asyncio.Task[None] | None = None
        self._extension_line = Line(self._address)
        self._lines: list[Line] = []
        self._directly = 0  # how many direct invocations there have been since one of another kind
        self._recall: Callable[[], None] = lambda: None

    async def serve(self, functions: Functions, metrics: "Metrics") -> None:
        limit_nbytes = self._config.max_body_nbytes

        def app() -> "ASGIApp":
            import zerowake
            from zerowake.runtime.gateway.app import create_app

            version = zerowake.__version__
            return create_app(functions, metrics, max_body_nbytes=limit_nbytes, version=version)

        caller = Caller(functions, metrics, checks=False)

        def objects() -> "Objects":
            from zerowake.adapters.objects import Objects, allowed

            # Who may invoke us may name any object, unless it is set.
            return Objects(limit_nbytes, allowed(self._environ))

        invocations = Invocations(caller, app, streaming=self._streaming, objects=objects)
        registered = asyncio.Event()
        self._extension = asyncio.create_task(self._be_extension(registered))
        # The first poll ends the start: until then the platform gives us all its cores.
        await self._until_up(functions, self._init_s)
        await self._unless_drained(registered.wait())  # not after the first poll: it ends the start
        if self._snap_start and not self._draining:
            await self._be_restored(functions)
        if self._draining:
            return
        names = ", ".join(functions.names()) or "what is still fetched"
        log.info("serving %s on AWS Lambda, %d at a time", names, self._slots)
        self._recall = partial(_recall, functions)
        slots = [asyncio.create_task(self._slot(invocations)) for _ in range(self._slots)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:  # when one has found the platform broken
                slot.cancel()

    def drain(self) -> None:
        for line in self._lines:
            line.polls_on = False
        super().drain()
        self._recall()

    def close(self) -> None:
        super().close()
        if self._extension is not None:
            self._extension.cancel()

    @staticmethod
    def report_error(environ: Mapping[str, str], error: BaseException) -> None:
        async def report() -> None:
            line = Line(environ[ADDRESS])
            if isinstance(error, HookFailed):
                await line.post_error(error.path, error.problem, error.type)
            else:
                await line.post_error("/runtime/init/error", to_problem(error))
            line.close()

        if isinstance(error, RuntimeApiError) or not environ.get(ADDRESS):
            return  # it is the one that is broken, or nobody is there
        with contextlib.suppress(ZerowakeError):
            asyncio.run(report())

    # ---------------------------------------------------------------- start and slots

    async def _be_restored(self, functions: Functions) -> None:
        """Be snapshotted here, and go on in each environment that is made of the snapshot.

        https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks.html. No connection to
        the Runtime API and no random state of before is used afterwards. Nor is a time: deadlines are
        compared with the clock at each event, and no timer of a function that is up is set.
        Raises HookFailed.
        """
        (name,) = functions.names()
        await self._hook(functions, name, Moment.BEFORE_SNAPSHOT)
        line = Line(self._address)
        await self._unless_drained(line.restore_next(), line)
        line.close()
        if self._draining:
            return
        self._extension_line.close()  # so that it asks again, on another one
        import random

        random.seed()
        await self._hook(functions, name, Moment.AFTER_RESTORE)

    async def _hook(self, functions: Functions, name: str, moment: Moment) -> None:
        try:
            await functions.hook(name, moment)
        except InvocationError as error:
            raise HookFailed(moment, to_problem(error)) from error

    async def _be_extension(self, registered: asyncio.Event) -> None:
        """Be an internal extension: without one the platform ends us without a SIGTERM."""
        line = self._extension_line
        try:
            identifier = await line.register_extension("zerowake")
            registered.set()
            await line.extension_next(identifier)
        except ZerowakeError as error:
            log.info("no extension, so no SIGTERM before the end: %s", error)
        finally:
            registered.set()
            line.close()

    async def _slot(self, invocations: Invocations) -> None:
        line = Line(self._address)
        self._lines.append(line)
        line.polls_on = not self._draining
        try:
            while (event := await self._poll(line)) is not None:
                is_time = self._lends_after(event)
                await invocations.answer(line, event)
                if is_time and invocations.lends and not self._draining:
                    from zerowake.adapters.aws.lent import Lent  # not of a start

                    await Lent.while_it_lasts(line, invocations, self._took)
        finally:
            line.close()

    def _lends_after(self, event: Event) -> bool:
        """Whether the function's own process is to read this slot's connection from then on.

        It can answer direct invocations only, and while it runs one nothing else that comes is looked
        at. So all of them have to be direct ones, and where there are several at a time, short ones.
        """
        if event.is_direct:
            self._directly += 1
        else:
            self._directly = 0
            self._recall()
        return self._directly > LEND_AFTER

    def _took(self, predict_ms: float) -> None:
        if self._slots > 1 and predict_ms > LONG_MS:
            self._directly = -AGAIN_AFTER
            self._recall()

    async def _poll(self, line: Line) -> Event | None:
        return await self._unless_drained(line.next(), line, begun=line.brings)


def _recall(functions: Functions) -> None:
    for name in functions.names():
        functions.recall(name)
