"""Functions that behave well, badly and strangely, for the tests of the runtime. None needs torch."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from zerowake import Batch, InvalidInput, function


class Order(TypedDict):
    do: str


@function(batch=Batch(max_size=4, window_ms=30), examples=[{"do": "ok"}], timeout_s=6)
class Batched:
    """Does to its process what the item says."""

    def predict(self, items: list[Order]) -> list[dict[str, Any]]:
        for item in items:
            match item["do"]:
                case "raise":
                    raise RuntimeError("this item is bad")
                case "refuse":
                    raise InvalidInput("this item is not acceptable")
                case "exit":
                    sys.exit(3)
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "segv":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "hang":
                    time.sleep(3600)
                case "slow":
                    time.sleep(2.0)
                case gate if gate.startswith("gate:"):
                    while not os.path.exists(gate.removeprefix("gate:")):
                        time.sleep(0.01)
                case "short":
                    return [{}] * (len(items) - 1)
                case "nan":
                    return [{"x": float("nan") if i["do"] == "nan" else 1.0} for i in items]
        return [{"did": item["do"], "batch": len(items)} for item in items]


@function(examples=[{"do": "ok"}], retry=False, timeout_s=2)
class Once:
    """Must not run twice on one item."""

    def load(self) -> None:
        self.path = ""

    def predict(self, do: str, log: str = "") -> str:
        if log:
            with open(log, "a") as file:
                file.write(f"{do}\n")
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "hang":
            time.sleep(3600)
        return do


@dataclass
class Span:
    start: int
    stop: int
    fail_at: int = -1
    pause_s: float = 0.0


@function(examples=[{"start": 0, "stop": 3}], timeout_s=5)
class Count:
    """A stream."""

    def predict(self, span: Span) -> Iterator[int]:
        for number in range(span.start, span.stop):
            if number == span.fail_at:
                raise RuntimeError(f"failed at {number}")
            time.sleep(span.pause_s)
            print("counted", number)
            yield number


@function(examples=[b"some bytes"])
class Reverse:
    """Bytes in, bytes out."""

    def predict(self, data: bytes) -> bytes:
        return data[::-1]


@function(examples=[{"a": 1, "b": 2}])
class Add:
    """Several parameters, and state from load."""

    def load(self) -> None:
        self.offset = 1000

    def predict(self, a: int, b: int = 5) -> int:
        return self.offset + a + b


@function(examples=[None])
class Environment:
    """What a function's process can see."""

    def predict(self, name: str | None) -> dict[str, Any]:
        import random

        print(f"asked for {name}")
        fds = {
            fd: os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if _open(fd)
        }
        return {
            "value": os.environ.get(name) if name else None,
            "fds": fds if name else {},
            "random": random.random() if name else 0.0,
            "torch": "torch" in sys.modules if name else False,
            "pid": os.getpid() if name else 0,
        }


def _open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@function(examples=[1])
class NeverWakes:
    def wake(self) -> None:
        if os.environ.get("ZEROWAKE_TEST_WAKE_FAILS"):
            raise ConnectionError("the database is not there")
        while not os.path.exists(os.environ.get("ZEROWAKE_TEST_WAKE_GATE", "/")):
            time.sleep(0.01)

    def predict(self, x: int) -> int:
        return x


@function(examples=[1])
class FailsToLoad:
    def load(self) -> None:
        raise ValueError("no such model")

    def predict(self, x: int) -> int:
        return x


@function(examples=[1])
class Unfreezable:
    def load(self) -> None:
        self.file = open("/dev/null")  # noqa: SIM115

    def predict(self, x: int) -> int:
        return x


@function(examples=[0], instances=(0, 3))
class Wide:
    """May run in several processes."""

    def predict(self, x: float) -> int:
        time.sleep(x)
        return os.getpid() if x else 0
