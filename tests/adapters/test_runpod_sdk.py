"""The same jobs through us and through RunPod's own SDK, on the same job server: the same posts."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parts
import pytest
from fake_jobs import SDK, WORKER, Asked, FakeJobs, kill, sdk_worker
from platforms import MARKS
from support import PATIENCE_S
from threaded import Threaded

SLOTS = 4
VALUES: list[Any] = [None, True, 0, -1.5, 2**53, "é\u2028", "\U0001f600", [], {}, {"a": [1, {}]}]
TOLD = ("authorization", "x-request-id", "content-type", "charset")


class Worker:
    """A worker, ours or theirs, with a job server of its own."""

    def __init__(self, jobs: Threaded[FakeJobs], process: "subprocess.Popen[bytes]") -> None:
        self.jobs, self.process = jobs, process
        self.log: list[str] = []
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.decode(errors="replace"))

    def run(self, *inputs: Any) -> list[str]:
        """Ids of the jobs, once all are answered."""
        ids = self.jobs.do(self.jobs.server.submit(*inputs))
        for id_ in ids:
            self.jobs.do(self.jobs.server.answer(id_))
        return ids

    def trace(self, id_: str) -> list[Any]:
        """What was posted for the job: where, how and what, errors as the names in them."""
        return [
            (
                asked.verb,
                asked.method,
                asked.query,
                {name: asked.headers.get(name) for name in TOLD},
                _said(asked),
            )
            for asked in self.jobs.server.asked
            if asked.id == id_
        ]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def _said(asked: Asked) -> Any:
    said = asked.json()
    return said if "error" not in said else {name: type(said[name]) for name in said}


Both = Callable[[str], tuple[Worker, Worker]]


@pytest.fixture(scope="module")
def both(frozen: Callable[[str], Path]) -> Iterator[Both]:
    """``both("Echo")``: our worker and theirs with this function of the zoo."""
    sdk = parts.venv(SDK)
    made: dict[str, tuple[Worker, Worker]] = {}

    def start(function: str) -> tuple[Worker, Worker]:
        if function not in made:
            ours, theirs = Threaded(FakeJobs), Threaded(FakeJobs)
            environ = {name: value for name, value in os.environ.items() if name not in MARKS}
            more = {"ZEROWAKE_RUNPOD_CONCURRENCY": str(SLOTS), "RUNPOD_PING_INTERVAL": "1000"}
            process = subprocess.Popen(
                [sys.executable, "-m", "zerowake", "run", str(frozen(f"zoo.py:{function}"))],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environ, **ours.server.environ, **more},
            )
            beside = sdk_worker(sdk, function.lower(), SLOTS, theirs.server)
            made[function] = Worker(ours, process), Worker(theirs, beside)
        return made[function]

    yield start
    for mine, other in made.values():
        mine.process.kill()
        kill(other.process)
        for worker in (mine, other):
            worker.jobs.close()


def test_results_are_posted_as_theirs(both: Both) -> None:
    ours, theirs = both("Echo")
    inputs = [{"value": value} for value in VALUES]
    for mine, other, value in zip(ours.run(*inputs), theirs.run(*inputs), VALUES, strict=True):
        assert ours.trace(mine) == theirs.trace(other)
        assert ours.trace(mine)[0][-1] == {"output": {"echo": value}}


def test_errors_are_posted_as_theirs(both: Both) -> None:
    ours, theirs = both("Echo")
    (mine,), (other,) = (each.run({"value": 1, "fail": True}) for each in (ours, theirs))
    assert ours.trace(mine) == theirs.trace(other)
    told, known = (
        json.loads(each.jobs.server.answers[id_][0].json()["error"])
        for each, id_ in ((ours, mine), (theirs, other))
    )
    assert known.keys() - told.keys() == set()
    for name in ("worker_id", "hostname", "runpod_version"):
        assert told[name] == known[name]
    assert told["worker_id"] == WORKER
    assert (told["error_message"], known["error_message"]) == ("ValueError: asked to", "asked to")


def test_streams_are_posted_as_theirs(both: Both) -> None:
    ours, theirs = both("Count")
    for span in ({"start": 0, "stop": 5}, {"start": 0, "stop": 0}):
        (mine,), (other,) = (each.run(span) for each in (ours, theirs))
        assert ours.trace(mine) == theirs.trace(other)
    (mine,), (other,) = (each.run({"start": 0, "stop": 5, "fail_at": 3}) for each in (ours, theirs))
    assert ours.trace(mine) == theirs.trace(other)
    assert [verb for verb, *_ in ours.trace(mine)] == ["stream"] * 3 + ["done"]


def test_polls_and_heartbeats_ask_as_theirs_and_both_end_well(both: Both) -> None:
    asked: list[dict[str, Any]] = []
    for worker in both("Echo"):
        server = worker.jobs.server
        worker.jobs.do(server.until(lambda server=server: server.verbs("ping")))
        worker.run(*[{"value": 1}] * (3 * SLOTS))
        found = {}
        for each in server.verbs("take", "take-batch", "stop", "ping"):
            query = each.query.keys() - {"job_id"}
            found[each.verb] = (each.method, query, each.headers["authorization"])
        sizes = {int(each.query["batch_size"]) for each in server.verbs("take-batch")}
        assert sizes <= set(range(2, SLOTS + 1)) and SLOTS in sizes
        asked.append(found)
        server.hold_s = 0.0  # theirs ends when its polls do
        worker.jobs.do(server.stop("nobody"))
        last = worker.jobs.do(server.submit({"value": "last"}))
        worker.jobs.do(server.answer(last[0]))
        assert worker.stop() == 0, worker.log
    ours, theirs = asked
    assert theirs.keys() >= {"take-batch", "stop", "ping"}
    for verb in theirs.keys() & ours.keys():
        assert ours[verb] == theirs[verb]
