"""RunPod's queue protocol, spoken over asyncio as the workers of their SDK 1.12 speak it.

Jobs are taken by a long poll and answered by posts; each URL comes from the environment. Source:
https://github.com/runpod/runpod-python (serverless/modules/rp_job, rp_http, rp_ping, rp_scale).
Connections are kept open; each has one request at a time. Knows no function.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from zerowake.adapters.http1 import Response, head
from zerowake.adapters.wire_http import Wire
from zerowake.runtime.errors import ConfigError
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("zerowake.adapters")
T = TypeVar("T")

GET_JOB, POST_OUTPUT = "RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_WEBHOOK_POST_OUTPUT"
POST_STREAM, PING = "RUNPOD_WEBHOOK_POST_STREAM", "RUNPOD_WEBHOOK_PING"
WORKER, KEY = "RUNPOD_POD_ID", "RUNPOD_AI_API_KEY"

SPOKEN = "1.12.0"  # the version of their SDK whose protocol this is; heartbeats tell it
POLL_S = 90.0  # the longest that a poll waits
POST_S = 60.0  # the longest that a post or a heartbeat takes
FULL_S = 5.0  # pause after 429
BROKEN_S = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0)  # pauses while it is out of reach; then the last again
EMPTY_S = 0.05  # the least time of a poll that brings nothing, should the server not hold it
RETRIES_S = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0)  # pauses before a post is sent again: Fibonacci
FORM = {
    "charset": "utf-8",
    "Content-Type": "application/x-www-form-urlencoded",
}  # it is JSON, though


class JobServerError(ZerowakeError):
    """The job server is out of reach, or answers with something that is no answer.

    http_status: what it has answered; 0 for nothing.
    """

    status, code = 502, "job_server"

    def __init__(self, message: str, http_status: int = 0) -> None:
        super().__init__(message)
        self.http_status = http_status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may go well later."""
        return self.http_status in (0, 408, 425, 429) or self.http_status >= 500


class NoAnswer(JobServerError):
    """Nothing for as long as one waits: usual of a poll."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job. problem: what is wrong with it, so that it cannot be run."""

    id: str
    input: Any = None
    problem: str = ""


@dataclass(slots=True)
class Line:
    """One connection to the server of a URL. https where the URL says so."""

    url: str
    _wire: Wire | None = field(default=None, init=False)

    @property
    def idle(self) -> bool:
        """Whether a poll may be cancelled: nothing of a job has arrived yet."""
        return self._wire is None or not self._wire.has_begun()

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        limit_s: float = POST_S,
    ) -> Response:
        """Raises JobServerError when there is no answer after ``limit_s``, whatever the reason."""
        parts = urlsplit(self.url)
        told = {**headers, "Content-Length": str(len(body))} if method == "POST" else headers
        try:
            async with asyncio.timeout(limit_s):
                if self._wire is None or self._wire.closed:
                    self._wire = await _connect(parts.scheme, parts.hostname or "", parts.port)
                return await self._wire.send(head(method, target, parts.netloc, told) + body)
        except TimeoutError as error:
            self.close()
            raise NoAnswer(f"{parts.netloc}: no answer after {limit_s:g} s") from error
        except OSError as error:
            self.close()
            raise JobServerError(f"{parts.netloc}: {str(error) or type(error).__name__}") from error
        except asyncio.CancelledError:
            self.close()  # its answer must not be taken for the next one's
            raise

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None


class JobServer:
    """Every request that a worker makes. ``environ``: the worker's. Raises ConfigError.

    takes, stops: the polls that ``take`` and ``unwanted`` are to be asked through.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.worker = environ.get(WORKER) or str(uuid.uuid4())
        self._take_url = _url(environ, GET_JOB).replace("$ID", self.worker)
        self._output_url = _url(environ, POST_OUTPUT)
        self._stream_url = _url(environ, POST_STREAM, "")
        self._ping_url = _url(environ, PING, "").replace("$RUNPOD_POD_ID", self.worker)
        self.pinged = bool(self._ping_url and environ.get(KEY) and environ.get(WORKER))
        self._headers = {"Authorization": environ.get(KEY, ""), "Accept": "application/json"}
        self._taking, self._stopping = Line(self._take_url), Line(self._take_url)
        self.takes = Poll("jobs", self._taking)
        self.stops = Poll("jobs to stop", self._stopping)
        self._pinging = Line(self._ping_url)
        self._posting: dict[str, list[Line]] = {}  # those that are free, by scheme and address

    async def take(self, count: int, *, busy: bool) -> list[Job]:
        """Up to ``count`` jobs, waiting for the first one; [] when none came.

        busy: whether others are under way. Raises JobServerError.
        """
        url = self._take_url
        if count > 1:
            url = _with(url.replace("/job-take/", "/job-take-batch/"), batch_size=str(count))
        url = _with(url, job_in_progress="1" if busy else "0")
        response = await self._taking.request("GET", _target(url), self._headers, limit_s=POLL_S)
        if response.status in (204, 400):  # 400 is usual under FlashBoot
            return []
        found = _json(response)
        if isinstance(found, dict):
            found = [found]
        if not isinstance(found, list):
            raise JobServerError(f"it gives {type(found).__name__}, which is no list of jobs")
        jobs = [_job(each) for each in found]
        return [job for job in jobs if job is not None]

    @property
    def takes_chunks(self) -> bool:
        """Whether there is a place for the chunks of a job that streams."""
        return bool(self._stream_url)

    @property
    def tells_stops(self) -> bool:
        """Whether there is a place to ask for the jobs that nobody wants any more."""
        return "/job-take/" in self._take_url

    async def unwanted(self) -> list[str]:
        """Ids of jobs to give up, waiting for the first one; [] when none came.

        Raises JobServerError.
        """
        url = self._take_url.replace("/job-take/", "/job-stop/")
        response = await self._stopping.request("GET", _target(url), self._headers, limit_s=POLL_S)
        if response.status == 204:
            return []
        found = _json(response)
        ids = found.get("jobsToStop") if isinstance(found, dict) else None
        return [each for each in ids if isinstance(each, str)] if isinstance(ids, list) else []

    async def output(self, id_: str, body: bytes, *, stream: bool) -> None:
        """Post what a job has come to: JSON text. stream: chunks of it were posted before.

        Sent again while the server cannot be reached. Raises JobServerError.
        """
        await self._post(self._output_url, id_, body, stream)

    async def chunk(self, id_: str, body: bytes) -> None:
        """Post one chunk of a job that streams, as ``output``."""
        await self._post(self._stream_url, id_, body, False)  # as theirs

    async def ping(self, ids: Iterable[str]) -> None:
        """A heartbeat with the jobs under way. Raises JobServerError."""
        jobs = ",".join(ids)
        told = {"job_id": jobs} if jobs else {}
        url = _with(self._ping_url, **told, runpod_version=SPOKEN)
        _check(await self._pinging.request("GET", _target(url), self._headers))

    def close(self) -> None:
        free = [line for lines in self._posting.values() for line in lines]
        for line in (self._taking, self._stopping, self._pinging, *free):
            line.close()

    async def _post(self, template: str, id_: str, body: bytes, stream: bool) -> None:
        url = template.replace("$RUNPOD_POD_ID", self.worker).replace("$ID", quote(id_, safe=""))
        url = _with(url, isStream="true" if stream else "false")
        headers = {**self._headers, **FORM, "X-Request-ID": id_}
        pauses_s = iter(RETRIES_S)
        while True:
            try:
                return _check(await self._send(url, headers, body))
            except JobServerError as error:
                if not error.may_pass or (pause_s := next(pauses_s, None)) is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        free = self._posting.setdefault("{0.scheme}://{0.netloc}".format(urlsplit(url)), [])
        line = free.pop() if free else Line(url)
        response = await line.request("POST", _target(url), headers, body)
        free.append(line)
        return response


class Poll:
    """One kind of poll, asked again and again; paced, so that no server is stormed.

    what: what it brings, for the log. line: the connection that it waits on.
    """

    def __init__(self, what: str, line: Line) -> None:
        self._what = what
        self._line = line
        self._pausing = False
        self._broken = 0

    @property
    def idle(self) -> bool:
        return self._pausing or self._line.idle

    async def once(self, ask: Callable[[], Awaitable[list[T]]]) -> list[T]:
        """What the poll brings. [] when it has brought nothing, and the pause after that is over."""
        began_s = time.monotonic()
        try:
            found = await ask()
            self._broken = 0
            if found:
                return found
            pause_s = began_s + EMPTY_S - time.monotonic()
        except NoAnswer:
            pause_s = 0.0
        except JobServerError as error:
            pause_s = BROKEN_S[min(self._broken, len(BROKEN_S) - 1)]
            if error.http_status == 429:
                pause_s = FULL_S
            self._broken += 1
            # The first may only have found the connection closed that it had kept.
            level = logging.ERROR if self._broken > 1 else logging.INFO
            log.log(level, "the job server gives no %s: %s", self._what, error)
        self._pausing = True
        try:
            await asyncio.sleep(max(0.0, pause_s))
        finally:
            self._pausing = False
        return []


_tls: "ssl.SSLContext | None" = None


async def _connect(scheme: str, host: str, port: int | None) -> Wire:
    global _tls
    context = None
    if scheme == "https":
        if _tls is None:
            import ssl  # the certificates take a while to read, so once, and only for https

            _tls = ssl.create_default_context()
        context = _tls
    port = port or (443 if context else 80)
    _, wire = await asyncio.get_running_loop().create_connection(Wire, host, port, ssl=context)
    return wire


def _url(environ: Mapping[str, str], name: str, default: str | None = None) -> str:
    url = environ.get(name) or default
    if url is None:
        raise ConfigError(f"{name} is not set: this is no worker of a RunPod endpoint")
    parts = urlsplit(url)
    try:
        usable = not url or (
            parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        )
    except ValueError:  # a port that is no number
        usable = False
    if not usable or any(letter <= " " for letter in url):
        raise ConfigError(f"{name} is {url!r:.80}; it must be an http or https URL")
    return url


def _with(url: str, **query: str) -> str:
    for name, value in query.items():
        url += f"{'&' if '?' in url else '?'}{name}={quote(value)}"
    return url


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _check(response: Response) -> None:
    if response.status >= 300:
        said = response.body[:300].decode(errors="replace")
        raise JobServerError(f"it answers {response.status}: {said}", response.status)


def _json(response: Response) -> Any:
    _check(response)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(response.body) if response.body else []
    raise JobServerError(f"its answer is no JSON: {response.body[:100]!r}")


def _job(found: Any) -> Job | None:
    if not isinstance(found, dict) or not isinstance(found.get("id"), str) or not found["id"]:
        log.error("a job without an id, which nobody can answer: %.200r", found)
        return None
    if not found["id"].isprintable() or not found["id"].isascii():
        log.error("a job whose id is no header: %.200r", found["id"])
        return None
    if "input" not in found:
        return Job(found["id"], problem="the job has no input")
    return Job(found["id"], found["input"])
