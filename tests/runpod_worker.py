"""What tests/apps/zoo.py has as Echo and Count, as workers of RunPod's SDK: runpod_worker.py NAME SLOTS."""

import sys
from collections.abc import Iterator
from typing import Any

import runpod  # type: ignore[import-not-found]


def echo(job: dict[str, Any]) -> dict[str, Any]:
    if job["input"].get("fail"):
        raise ValueError("asked to")
    return {"echo": job["input"]["value"]}


def count(job: dict[str, Any]) -> Iterator[int]:
    for number in range(job["input"]["start"], job["input"]["stop"]):
        if number == job["input"].get("fail_at"):
            raise RuntimeError(f"failed at {number}")
        yield number


runpod.serverless.start(
    {
        "handler": {"echo": echo, "count": count}[sys.argv[1]],
        "concurrency_modifier": lambda current: int(sys.argv[2]),
        "return_aggregate_stream": True,
    }
)
