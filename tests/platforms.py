"""The platforms that adapters are tested on: how each starts a container, calls it and asks for its state.

``Platform`` is what the conformance suite needs of one; ``PushPlatform`` plays all those that send
HTTP requests, a ``PullPlatform`` is asked for calls. Containers are real processes (``zerowake run`` in the platform's environment).
"""

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from fake_api import FakeApi
from fake_jobs import FakeJobs
from support import PATIENCE_S, Gateway, Reply, free_ports
from threaded import Threaded

from zerowake.adapters import KNOWN, POD

MARKS = {POD, *(mark for known in KNOWN.values() for mark in known.marks)}


@dataclass
class Answer:
    """error: what is said to be wrong, "" for a result."""

    status: int
    value: Any = None
    error: str = ""


class Container(Protocol):
    """One function on a platform."""

    process: "subprocess.Popen[bytes]"
    log: list[str]

    def call(self, value: Any) -> Answer: ...

    def state(self) -> str:
        """What the platform makes of the answer to its probe: ready, starting or failed."""

    def stop(self) -> int: ...


class Platform(Protocol):
    name: str

    def start(self, snapshot: object, *options: str, **environ: str) -> Any:
        """A ``Container``."""


@dataclass
class PushPlatform:
    """A platform that sends requests.

    environ: what it sets, with the port. path: where calls go, by the function's name. wrap, unwrap:
    a value in the body of a request, and of an answer. many, unwrap_many: several; None where a
    request has one. error: what an answer says is wrong. through: where requests pass unchanged.
    probe: path and the statuses of ready, starting and failed.
    """

    name: str
    environ: Callable[[int], dict[str, str]] = lambda port: {"PORT": str(port)}
    options: tuple[str, ...] = ()
    path: Callable[[str], str] = lambda name: "/"
    wrap: Callable[[Any], Any] = lambda value: value
    unwrap: Callable[[Any], Any] = lambda value: value
    many: Callable[[list[Any]], Any] | None = None
    unwrap_many: Callable[[Any], Any] = lambda value: value
    error: Callable[[Any], str] = lambda value: value["detail"]
    through: str = "/"
    probe: tuple[str, int, int, int] = ("/readyz", 200, 503, 503)
    probe_headers: dict[str, str] = field(default_factory=dict)

    def start(self, snapshot: object, *options: str, **environ: str) -> "PushContainer":
        (port,) = free_ports(1)
        process = _run(snapshot, [*self.options, *options], {**self.environ(port), **environ})
        container = PushContainer(process, f"http://127.0.0.1:{port}", platform=self)
        threading.Thread(target=container.collect, daemon=True).start()
        return container


def _run(
    snapshot: object, options: list[str], environ: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """``zerowake run`` where only ``environ`` tells the platform."""
    target = [] if snapshot is None else [str(snapshot)]
    ours = {name: value for name, value in os.environ.items() if name not in MARKS}
    return subprocess.Popen(
        [sys.executable, "-m", "zerowake", "run", *target, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ours, **environ},
    )


@dataclass
class Process(Gateway):
    """A container's process and what it says."""

    def collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.decode(errors="replace").rstrip("\n"))


@dataclass
class PushContainer(Process):
    platform: PushPlatform = field(kw_only=True)

    @property
    def function_name(self) -> str:
        """From the log, as tests do not ask an operator's route."""
        serving = re.compile(r"serving (\w+)( on http|$)")
        found: re.Match[str] = self.until(
            lambda: next(filter(None, map(serving.search, list(self.log))), None)
        )
        return found[1]

    def call(self, value: Any) -> Answer:  # type: ignore[override]
        return self._told(self.post(value), self.platform.unwrap)

    def post(self, value: Any) -> Reply:
        platform = self.platform
        body = json.dumps(platform.wrap(value)).encode()
        headers = {"content-type": "application/json"}
        return self.request("POST", platform.path(self.function_name), body, headers)

    def many(self, values: list[Any]) -> Answer:
        platform = self.platform
        assert platform.many is not None
        path, body = platform.path(self.function_name), json.dumps(platform.many(values)).encode()
        return self._told(self.request("POST", path, body), platform.unwrap_many)

    def _told(self, reply: Reply, unwrap: Callable[[Any], Any]) -> Answer:
        told = reply.json()
        if reply.status >= 400:
            return Answer(reply.status, error=self.platform.error(told))
        inner = (told.get("Outputs") or {}).get("res") if isinstance(told, dict) else None
        if inner is not None and inner["statusCode"] >= 400:  # Azure: the status that callers see
            return Answer(inner["statusCode"], error=json.loads(inner["body"])["detail"])
        return Answer(reply.status, unwrap(told))

    def event(self, event: dict[str, Any] | list[Any], **headers: str) -> Reply:
        kind = "cloudevents-batch+json" if isinstance(event, list) else "cloudevents+json"
        told = {"content-type": f"application/{kind}", **headers}
        return self.request("POST", "/", json.dumps(event).encode(), told)

    def state(self) -> str:
        path, *statuses = self.platform.probe
        try:
            status = self.request("GET", path, headers=self.platform.probe_headers).status
        except OSError:
            assert self.process.poll() is None, "\n".join(self.log)
            return "starting"
        return dict(zip(reversed(statuses), ("failed", "starting", "ready"), strict=True))[status]

    def until_ready(self) -> "PushContainer":
        self.until(lambda: self.state() == "ready")
        return self

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE_S)

    def open_stream(self, value: Any, accept: str = "*/*") -> http.client.HTTPResponse:
        connection = self.connect()
        headers = {"content-type": "application/json", "accept": accept}
        connection.request("POST", self.platform.through, json.dumps(value), headers)
        return connection.getresponse()

    def count(self, outcome: str) -> float:
        """How many calls have ended so."""
        text = self.request("GET", "/metrics").body.decode()
        wanted = (
            f'zerowake_invocations_total{{function="{self.function_name}",outcome="{outcome}"}} '
        )
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted))


def event(data: Any, **attributes: Any) -> dict[str, Any]:
    """A CloudEvent."""
    return {
        "specversion": "1.0",
        "id": "e1",
        "source": "/tests",
        "type": "t",
        "data": data,
    } | attributes


def _azure_http(value: Any) -> Any:
    return {
        "Data": {"req": {"Url": "/", "Method": "POST", "Body": json.dumps(value)}},
        "Metadata": {},
    }


KNATIVE = {"K_SERVICE": "s", "K_REVISION": "s-1", "K_CONFIGURATION": "s"}

PUSH = [
    PushPlatform("container"),
    PushPlatform(
        "knative",
        lambda port: {"PORT": str(port), **KNATIVE, POD: "10.0.0.1"},
        probe=("/whatever", 200, 503, 503),
        probe_headers={"K-Network-Probe": "probe"},
    ),
    PushPlatform("cloud-run", lambda port: {"PORT": str(port), **KNATIVE}),
    PushPlatform(
        "kserve",
        lambda port: {"PORT": str(port), "MODEL_NAME": "mine"},
        options=("--adapter", "kserve"),  # there is no /mnt/models here
        path=lambda name: f"/v1/models/{name}:predict",
        wrap=lambda value: {"instances": [value]},
        unwrap=lambda value: value["predictions"][0],
        many=lambda values: {"instances": values},
        unwrap_many=lambda value: value["predictions"],
        error=lambda value: value["error"],
        through="/invoke/count",
        probe=("/v2/health/ready", 200, 503, 503),
    ),
    PushPlatform(
        "sagemaker",
        lambda port: {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_SAFE_PORT_RANGE": "1-2"},
        path=lambda name: "/invocations",
        through="/invocations",
        probe=("/ping", 200, 503, 503),
    ),
    PushPlatform(
        "vertex",
        lambda port: {
            "AIP_HTTP_PORT": str(port),
            "AIP_HEALTH_ROUTE": "/v1/health",
            "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict",
        },
        path=lambda name: "/v1/endpoints/1:predict",
        wrap=lambda value: {"instances": [value]},
        unwrap=lambda value: value["predictions"][0],
        many=lambda values: {"instances": values},
        unwrap_many=lambda value: value["predictions"],
        through="/v1/endpoints/1:predict",
        probe=("/v1/health", 200, 503, 503),
    ),
    PushPlatform(
        "azure",
        lambda port: {"FUNCTIONS_CUSTOMHANDLER_PORT": str(port)},
        path=lambda name: "/OrderTrigger",
        wrap=_azure_http,
        unwrap=lambda value: value["ReturnValue"],
        through="/api/orders/new",
    ),
    PushPlatform(
        "runpod-http",
        lambda port: {"PORT": str(port), "RUNPOD_ENDPOINT_ID": "e"},
        probe=("/ping", 200, 204, 503),
    ),
]


# ---------------------------------------------------------------------------- platforms that are asked


class Caller(Protocol):
    """The platform's side: calls wait there until they are asked for. ``close`` ends it."""

    environ: dict[str, str]

    def call(self, values: list[Any]) -> list[str]:
        """Have calls wait, all at once; their ids."""

    def answer(self, id_: str) -> Answer: ...

    def chunks(self, id_: str, count: int) -> list[Any]:
        """The first chunks of an answer, once there are so many."""

    def polled(self) -> bool:
        """Whether somebody waits for a call."""

    def left(self) -> list[str]:
        """The calls that nobody has been given."""

    def arrived(self, ids: list[str]) -> bool:
        """Whether all of these have reached who asked."""

    def close(self) -> None: ...


class RunPodCaller:
    def __init__(self) -> None:
        self.jobs = Threaded(FakeJobs)
        self.environ = {**self.jobs.server.environ, "ZEROWAKE_RUNPOD_CONCURRENCY": "8"}
        self.close = self.jobs.close

    def call(self, values: list[Any]) -> list[str]:
        return self.jobs.do(self.jobs.server.submit(*values))

    def answer(self, id_: str) -> Answer:
        told = self.jobs.do(self.jobs.server.answer(id_))
        if "error" in told:
            problem = json.loads(told["error"])["problem"]
            return Answer(problem["status"], error=problem["detail"])
        return Answer(200, told["output"])

    def chunks(self, id_: str, count: int) -> list[Any]:
        chunks = self.jobs.server.chunks
        self.jobs.do(self.jobs.server.until(lambda: len(chunks.get(id_, ())) >= count))
        return [chunk.json()["output"] for chunk in chunks.get(id_, ())]

    def polled(self) -> bool:
        return self.jobs.server.polling == 2  # jobs, and jobs to stop

    def left(self) -> list[str]:
        return self.jobs.server.queued

    def arrived(self, ids: list[str]) -> bool:
        return not set(ids) & set(self.jobs.server.queued)

    def stop(self, id_: str) -> None:
        self.jobs.do(self.jobs.server.stop(id_))


class LambdaCaller:
    """slots: of a Managed Instance; None where there is one, on demand."""

    def __init__(self, slots: int | None = 8) -> None:
        self.api = Threaded(FakeApi)
        self.environ = {
            "AWS_LAMBDA_RUNTIME_API": self.api.server.address,
            "ZEROWAKE_LAMBDA_INVOKE_MODE": "RESPONSE_STREAM",
        }
        if slots is not None:
            self.environ["AWS_LAMBDA_MAX_CONCURRENCY"] = str(slots)
        self.close = self.api.close

    def call(self, values: list[Any]) -> list[str]:
        async def invoke() -> list[str]:
            return [self.api.server.invoke(value) for value in values]

        return self.api.do(invoke())

    def answer(self, id_: str) -> Answer:
        told = self.api.do(self.api.server.answer(id_))
        error = told.trailers.get("lambda-runtime-function-error-body", "")
        if told.kind == "error" or error:
            problem = json.loads(base64.b64decode(error) if error else told.body)["problem"]
            return Answer(problem["status"], error=problem["detail"])
        return Answer(200, told.json() if not told.chunks else self.chunks(id_, 0))

    def chunks(self, id_: str, count: int) -> list[Any]:
        chunks = self.api.do(self.api.server.chunks(id_, count))
        return [json.loads(line) for line in b"".join(chunks).splitlines()]

    def polled(self) -> bool:
        return self.api.server.polling > 0

    def left(self) -> list[str]:
        return self.api.server.waiting

    def arrived(self, ids: list[str]) -> bool:
        return set(ids) <= self.api.server.given


@dataclass
class PullPlatform:
    """A platform that is asked for calls. cancels: whether it tells of calls that nobody wants.

    adapter: its name in ``KNOWN``. slots: how many calls it has at a time. events: whether it brings
    events. warm: malformed calls before the first one, so many that the function's process polls itself.
    """

    name: str
    caller: Callable[[], Any]
    adapter: str
    cancels: bool = False
    slots: int = 8
    events: bool = False
    warm: int = 0

    def start(self, snapshot: object, *options: str, **environ: str) -> "PullContainer":
        return self.with_caller(self.caller(), snapshot, *options, **environ)

    def with_caller(
        self, caller: Any, snapshot: object, *options: str, **environ: str
    ) -> "PullContainer":
        """As ``start``, where calls may be waiting already."""
        options = ("--drain-s", "30", *options)  # Lambda gives half a second, busy machines take it
        process = _run(snapshot, [*options], {**caller.environ, **environ})
        container = PullContainer(process, "", platform=self, caller=caller)
        threading.Thread(target=container.collect, daemon=True).start()
        return container


@dataclass
class PullContainer(Process):
    platform: PullPlatform = field(kw_only=True)
    caller: Any = field(kw_only=True)  # a Caller

    def call(self, value: Any) -> Answer:  # type: ignore[override]
        return self.many([value])[0]

    def many(self, values: list[Any]) -> list[Answer]:
        return [self.caller.answer(id_) for id_ in self.caller.call(values)]

    def state(self) -> str:
        if self.process.poll() is not None:
            return "failed"
        return "ready" if self.caller.polled() else "starting"

    def until_ready(self) -> "PullContainer":
        def ready() -> bool:
            state = self.state()
            assert state != "failed", "\n".join(self.log)
            return state == "ready"

        self.until(ready)
        self.many([None] * self.platform.warm)
        return self

    def until_said(self, text: str, count: int = 1) -> None:
        self.until(lambda: sum(text in line for line in list(self.log)) >= count)


PULL = [
    PullPlatform("lambda", LambdaCaller, "lambda", events=True),
    PullPlatform("lambda-warm", LambdaCaller, "lambda", events=True, warm=100),
    PullPlatform("lambda-one", lambda: LambdaCaller(None), "lambda", slots=1, events=True),
    PullPlatform("runpod", RunPodCaller, "runpod", cancels=True),
]
