"""What an author may set on a function, checked where it is declared.

Knows no classes, annotations or processes. Travels as plain JSON in the snapshot's manifest.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zerowake.runtime.errors import DeclarationError

if TYPE_CHECKING:
    from zerowake.runtime.policy.batching import BatchRule

MAX_WINDOW_MS = 10_000  # who waits longer than that for company has mixed up the units
DEFAULT_WINDOW_MS = 5.0
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Batch:
    """``predict`` takes a list of up to ``max_size`` items and returns one result for each.

    window_ms: how long the first waiting item waits for company, 0 to 10,000. Once made it is a
    number: 5 by default, 0 where there is nothing to wait for.
    """

    max_size: int
    window_ms: float | None = None

    def __post_init__(self) -> None:
        _check_whole("Batch: max_size", self.max_size, least=1)
        window_ms = 0.0 if self.max_size == 1 else DEFAULT_WINDOW_MS
        if self.window_ms is not None:
            window_ms = _number("Batch: window_ms", self.window_ms)
        if not 0 <= window_ms <= MAX_WINDOW_MS:
            raise DeclarationError(
                f"Batch: window_ms is {window_ms:g}; wanted 0 to {MAX_WINDOW_MS:,} milliseconds"
            )
        if self.max_size == 1 and window_ms:
            raise DeclarationError(
                f"Batch: a batch of max_size=1 has nothing to wait for, but window_ms is "
                f"{window_ms:g}; raise max_size or leave window_ms out"
            )
        object.__setattr__(self, "window_ms", window_ms)


@dataclass(frozen=True, slots=True)
class Settings:
    """One function's settings.

    batch: None where ``predict`` takes one item. timeout_s: the longest that one ``predict`` may
    take. instances: fewest and most processes. threads: of the numeric libraries in an instance;
    None: one for each core that it may keep busy, shared with those that compute beside it. retry: whether an item may run again when its process died or its batch failed.
    """

    name: str
    batch: Batch | None = None
    timeout_s: float = 30.0
    instances: tuple[int, int] = (0, 1)
    threads: int | None = None
    retry: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise DeclarationError(
                f"name is {self.name!r}; wanted a lower-case letter and then up to 62 of a-z, 0-9, "
                "'_' and '-'; give one as name="
            )
        if self.batch is not None and not isinstance(self.batch, Batch):
            raise DeclarationError(
                f"batch is {self.batch!r}; wanted zerowake.Batch(max_size=..., window_ms=...)"
            )
        timeout_s = _number("timeout_s", self.timeout_s)
        if timeout_s <= 0:
            raise DeclarationError(f"timeout_s is {timeout_s:g}; wanted more than 0 seconds")
        object.__setattr__(self, "timeout_s", timeout_s)
        object.__setattr__(self, "instances", _range(self.instances))
        if self.threads is not None:
            _check_whole("threads", self.threads, least=1)
        if not isinstance(self.retry, bool):
            raise DeclarationError(f"retry is {self.retry!r}; wanted True or False")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "instances": list(self.instances)}

    def batch_rule(self, max_queued: int = sys.maxsize) -> "BatchRule":
        """What decides which calls run together. max_queued: calls that may wait."""
        from zerowake.runtime.policy.batching import BatchRule  # those that declare do without it

        if self.batch is None:
            return BatchRule(max_queued=max_queued)
        return BatchRule(self.batch.max_size, (self.batch.window_ms or 0.0) / 1e3, max_queued)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Settings":
        """Checked like a declaration. Raises DeclarationError."""
        check_names("settings", fields, (field.name for field in dataclasses.fields(cls)))
        batch = fields.get("batch")
        if isinstance(batch, dict):
            check_names("batch", batch, (field.name for field in dataclasses.fields(Batch)))
            batch = Batch(**batch)
        return cls(**{**fields, "batch": batch})


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises DeclarationError for the first of ``given`` that is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            from zerowake.runtime.nodes import nearest  # only a mistake needs it: 1.5 ms of a start

            raise DeclarationError(
                f"{what}: unknown name {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )


def _check_whole(what: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DeclarationError(f"{what} is {value!r}; wanted a whole number of at least {least}")


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DeclarationError(f"{what} is {value!r}; wanted a finite number")
    return float(value)


def _range(value: object) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DeclarationError(f"instances is {value!r}; wanted (fewest, most), such as (0, 1)")
    fewest, most = value
    _check_whole("instances: the fewest", fewest, least=0)
    _check_whole("instances: the most", most, least=1)
    if fewest > most:
        raise DeclarationError(
            f"instances is ({fewest}, {most}): the fewest are more than the most; swap them"
        )
    return fewest, most
