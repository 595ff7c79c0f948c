"""RunPod's queue: jobs are taken as fast as the model runs, so that they run as its batches.

One poll asks for as many jobs as there are free slots, each job is one call, and each call's end frees
a slot at once (their SDK looks once a second). Heartbeats and the jobs to stop have tasks of their
own. A job is answered once, or left alone where that is impossible: RunPod then gives it to another
worker, or lets it time out.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from zerowake.adapters.calls import body_of, json_of
from zerowake.adapters.port import AnswerTooLarge, Capabilities
from zerowake.adapters.pull import Pull, number
from zerowake.adapters.runpod_api import SPOKEN, Job, JobServer, JobServerError
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import BadRequest, Draining, FunctionFailed
from zerowake.runtime.exchange import encoded
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.gateway.port import Functions
from zerowake.runtime.gateway.problems import describe
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.metrics import Metrics
from zerowake.runtime.settings import Settings

log = logging.getLogger("zerowake.adapters")

CONCURRENCY = "ZEROWAKE_RUNPOD_CONCURRENCY"
INTERVAL = "RUNPOD_PING_INTERVAL"  # milliseconds
HOSTNAME = "RUNPOD_POD_HOSTNAME"
RESULT_NBYTES = 20 << 20


class RunPod(Pull):
    """The ``Adapter`` of RunPod's queue endpoints."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="RunPod queue",
        shape="pull",
        streaming="each chunk by itself, and all at the end",
        mid_stream_error="the job ends with the error",
        concurrency=f"two batches; or {CONCURRENCY}",
        request_nbytes=RESULT_NBYTES,
        response_nbytes=RESULT_NBYTES,
        timeout="600 s, 5 s to 7 d",
    )

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return config

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None:
        super().__init__()
        self._server = JobServer(environ)
        wanted = environ.get(CONCURRENCY)
        self._slots = number(CONCURRENCY, wanted) if wanted else 0  # 0: as its batches want it
        self._interval_s = number(INTERVAL, environ.get(INTERVAL) or "10000") / 1e3
        self._host = environ.get(HOSTNAME, "unknown")
        # Jobs under way. None: its answer is on its way, and can be stopped no more.
        self._jobs: dict[str, asyncio.Task[Any] | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._failed = ""  # why the function runs no more

    async def serve(self, functions: Functions, metrics: Metrics) -> None:
        await self._until_up(functions)  # until then others may have the jobs
        if self._draining:
            return
        (self._name,) = functions.names()
        self._caller = Caller(functions, metrics, checks=False)
        self._slots = self._slots or _slots(functions.find(self._name).settings)
        log.info("serving %s on RunPod, %d jobs at a time", self._name, self._slots)
        beside = [asyncio.create_task(self._heartbeats()), asyncio.create_task(self._stop_jobs())]
        try:
            await self._take_jobs()
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._failed:
                raise FunctionFailed(self._failed)
        finally:
            for task in (*beside, *self._tasks):
                task.cancel()
            self._server.close()

    @staticmethod
    def report_error(environ: Mapping[str, str], error: BaseException) -> None:
        """Nobody to tell: no job is taken, and RunPod replaces a worker that has ended."""

    # ---------------------------------------------------------------- jobs in

    async def _take_jobs(self) -> None:
        """Until we are to end."""
        server = self._server

        async def take() -> list[Job]:
            return await server.take(self._slots - len(self._jobs), busy=bool(self._jobs))

        while await self._unless_drained(self._room()):
            found = await self._unless_drained(server.takes.once(take), server.takes)
            for job in found or ():
                self._begin(job)

    async def _room(self) -> bool:
        """Wait for a free slot."""
        while len(self._jobs) >= self._slots:
            self._freed.clear()
            await self._freed.wait()
        return True

    async def _stop_jobs(self) -> None:
        """Give up the jobs that the server says nobody wants."""
        if not self._server.tells_stops:
            log.warning("no job can be stopped: the URL of jobs is not one that has /job-take/")
            return
        while True:
            for id_ in await self._server.stops.once(self._server.unwanted):
                if (task := self._jobs.get(id_)) is not None:
                    task.cancel()

    async def _heartbeats(self) -> None:
        while self._server.pinged:
            pause_s = self._interval_s
            try:
                await self._server.ping(self._jobs)
            except JobServerError as error:
                log.warning("no heartbeat: %s", error)
                pause_s = min(1.0, pause_s)
            await asyncio.sleep(pause_s)

    # ---------------------------------------------------------------- one job

    def _begin(self, job: Job) -> None:
        if job.id in self._jobs:
            log.warning("job %s has come a second time, and is under way already", job.id)
            return
        task = asyncio.create_task(self._run(job))
        self._jobs[job.id] = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(job, done))

    def _end(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._jobs[job.id]
        self._tasks.discard(task)
        self._freed.set()

    async def _run(self, job: Job) -> None:
        """From the job to its answer."""
        info = self._caller.functions.find(self._name)
        try:
            answer = b'{"output": %b}' % await self._result(info, job)
        except asyncio.CancelledError:
            log.info("job %s is stopped", job.id)
            return
        except Exception as error:
            problem = describe(error, f"{self._name} {job.id}")
            answer = self._error(problem)
            if problem["code"] == Draining.code:
                log.warning("job %s is left to another worker: this one is to end", job.id)
                return
            # The jobs that wait are better off elsewhere.
            if problem["code"] == FunctionFailed.code:
                self._failed = problem["detail"]
                self.drain()
        self._jobs[job.id] = None
        try:
            await self._answer(job, answer, stream=info.kind is Kind.STREAM)
        except JobServerError as error:
            log.error("job %s: its answer goes lost, and it times out: %s", job.id, error)

    async def _result(self, info: FunctionInfo, job: Job) -> bytes:
        """The result as JSON text; chunks of a stream are posted as they come."""
        if job.problem:
            raise BadRequest(job.problem)
        body = body_of(info, job.input)
        if info.kind is not Kind.STREAM:
            return json_of(info, await self._caller.call(self._name, body, job.id))
        chunks: list[bytes] = []
        async with contextlib.aclosing(self._caller.stream(self._name, body, job.id)) as parts:
            posted = self._server.takes_chunks
            async for part in parts:
                for chunk in part:
                    posted = posted and await self._chunk(info, job, chunk)
                chunks += part
        return json_of(info, chunks)

    async def _chunk(self, info: FunctionInfo, job: Job, chunk: bytes) -> bool:
        """Post one. False when it could not be: a stream has no gaps, so the rest comes at the end."""
        text = json.dumps(encoded(chunk)).encode() if info.raw_output else chunk
        try:
            await self._server.chunk(job.id, b'{"output": %b}' % text)
        except JobServerError as error:
            log.error("job %s: no more chunks, all comes at the end: %s", job.id, error)
            return False
        return True

    async def _answer(self, job: Job, answer: bytes, *, stream: bool) -> None:
        try:
            await self._server.output(job.id, answer, stream=stream)
        except JobServerError as error:
            large = error.http_status == 413 or (
                error.http_status == 400 and len(answer) > RESULT_NBYTES
            )
            if not large:
                raise
            told = AnswerTooLarge(
                f"the result has {len(answer)} bytes, which RunPod does not take ({error}); put it "
                "into a store, and answer with its place"
            )
            log.error("job %s: %s", job.id, told)
            problem = describe(told, f"{self._name} {job.id}")
            await self._server.output(job.id, self._error(problem), stream=stream)

    def _error(self, problem: Mapping[str, Any]) -> bytes:
        """As their SDK tells it: an object in a text; what else we know stands in ``problem``."""
        told = {
            "error_type": problem["code"],
            "error_message": problem["detail"],
            "error_traceback": "",  # the author's stands in the log
            "hostname": self._host,
            "worker_id": self._server.worker,
            "runpod_version": SPOKEN,
            "problem": problem,
        }
        return json.dumps({"error": json.dumps(told)}).encode()


def _slots(settings: Settings) -> int:
    """One batch to run and one to gather, for each instance; single items are left to other workers."""
    at_once = 2 * settings.batch.max_size if settings.batch and settings.batch.max_size > 1 else 1
    return at_once * settings.instances[1]
