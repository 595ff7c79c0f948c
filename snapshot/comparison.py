"""Answers to the probe compared field by field: whether, where and how far they differ.

Knows no torch and no object: answers are bytes, JSON where they can be read as such.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from zerowake.snapshot.errors import ProofFailed
from zerowake.snapshot.proof import Answers, Proof


def compare(proof: Proof, found: list[Answers]) -> None:
    """ProofFailed names the case, the field and both values of the first difference."""
    for case, field, old, new in _steady(proof, found):
        raise ProofFailed(
            f"case {case}, {field}: the original answered {old}, the restored object {new}. State "
            "that load() keeps outside self does not come back; make it in wake(self) or keep it "
            "on self."
        )


def distance(proof: Proof, found: list[Answers]) -> float:
    """How far ``found`` is from the proof's answers: the largest error of a field.

    The error of a list of numbers is its cosine distance or the relative error of its length,
    whichever is larger, of a number the relative one. Raises ProofFailed where answers differ in
    anything but numbers.
    """
    largest = 0.0
    for case, field, old, new in _steady(proof, found, apart=True):
        error = _error(old, new)
        if error is None:
            raise ProofFailed(f"case {case}, {field}: {old!r:.80} and {new!r:.80}")
        largest = max(largest, error)
    return largest


def _steady(
    proof: Proof, found: list[Answers], *, apart: bool = False
) -> Iterator[tuple[int, str, Any, Any]]:
    """The ``differences`` of each case in fields that count. Raises ProofFailed if a case lacks."""
    if len(found) != len(proof.answers):
        raise ProofFailed(f"{len(proof.answers)} cases were asked and {len(found)} answered")
    for case, (wanted, got) in enumerate(zip(proof.answers, found, strict=True)):
        for field, old, new in differences(wanted, got, apart):
            if not _left_out(field, proof.unsteady[case]):
                yield case, field, old, new


def _left_out(field: str, unsteady: list[str]) -> bool:
    """Whether a field is one of those, or inside of one."""
    return any(f"{field}.".startswith((f"{one}.", f"{one}[")) for one in unsteady)


def _error(old: Any, new: Any) -> float | None:
    """None: these cannot be compared as numbers."""
    if isinstance(old, list) or isinstance(new, list):
        same = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
        if not same or not all(map(_is_number, (*old, *new))):
            return None
        scale = math.hypot(*old) * math.hypot(*new)
        if scale == 0.0:
            return math.dist(old, new)
        cosine = math.fsum(a * b for a, b in zip(old, new, strict=True)) / scale
        # The cosine alone knows no length: [0.1] and [0.9] point the same way.
        return max(abs(1.0 - cosine), _relative(math.hypot(*old), math.hypot(*new)))
    if _is_number(old) and _is_number(new):
        return _relative(old, new)
    return None


def _relative(old: float, new: float) -> float:
    return float(abs(old - new) / max(abs(old), abs(new), 1e-6))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def summary(proof: Proof) -> str:
    """How much ``compare`` looks at, in words: what is not deterministic proves nothing."""
    if (nothing := says_nothing(proof)) is not None:
        return nothing
    compared, left_out = _counts(proof)
    return (
        f"the proof is right (fields compared: {compared}, left out as not deterministic: "
        f"{left_out})"
    )


def says_nothing(proof: Proof) -> str | None:
    """Why no answer, right or wrong, would be found to differ; None where one would."""
    if not proof.cases:
        return "the proof holds no calls, as its function may not be called to be tried"
    compared, left_out = _counts(proof)
    if left_out and not compared:
        return f"the proof says nothing: no field is deterministic ({left_out} left out)"
    return None


def _counts(proof: Proof) -> tuple[int, int]:
    """How many fields are compared, and how many left out."""
    compared = left_out = 0
    for answers, unsteady in zip(proof.answers, proof.unsteady, strict=True):
        for field in {field for i, answer in enumerate(answers) for field in _named(i, answer)}:
            if _left_out(field, unsteady):
                left_out += 1
            else:
                compared += 1
    return compared, left_out


def unsteady(first: list[Answers], second: list[Answers]) -> list[list[str]]:
    """The fields of each case in which two runs of the same object differ."""
    return [
        sorted({field for field, _, _ in differences(one, two)})
        for one, two in zip(first, second, strict=True)
    ]


def differences(
    wanted: Answers, got: Answers, apart: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """(field, wanted, got) where answers differ: ``items[0].score``; inside lists ``[*]``.

    apart: lists of numbers are one field, and values are given as they are, not as text.
    """
    if len(wanted) != len(got):
        yield "items", f"{len(wanted)} items", f"{len(got)} items"
        return
    for i, (old, new) in enumerate(zip(wanted, got, strict=True)):
        if old == new:
            continue
        where = f"items[{i}]"
        if len(old) != len(new):
            yield where, f"{len(old)} chunks", f"{len(new)} chunks"
            continue
        for a, b in zip(old, new, strict=True):
            if a == b:
                continue
            try:
                plain = json.loads(a), json.loads(b)
                inside = list(_differences(where, *plain, apart))
                if not inside and json.dumps(plain[0]) != json.dumps(plain[1]):  # the order of keys
                    inside = [(where, f"{a[:40]!r}", f"{b[:40]!r}")]
            except (ValueError, RecursionError):  # no JSON, or too deep to be looked into
                inside = [(where, f"{a[:40]!r} ({len(a)} bytes)", f"{b[:40]!r} ({len(b)} bytes)")]
            yield from inside  # spacing and the spelling of numbers (1e5, 100000.0) are no difference


def _named(item: int, answer: list[bytes]) -> Iterator[str]:
    """The fields of one answer, named as in ``differences``."""
    for chunk in answer:
        try:
            yield from _leaves(f"items[{item}]", json.loads(chunk))
        except (ValueError, RecursionError):
            yield f"items[{item}]"


def _leaves(where: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key in value:
            yield from _leaves(f"{where}.{key}", value[key])
    elif isinstance(value, list) and value:
        for one in value:
            yield from _leaves(where if where.endswith("[*]") else f"{where}[*]", one)
    else:
        yield where


def _differences(
    where: str, old: Any, new: Any, apart: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _differences(f"{where}.{key}", old[key], new[key], apart)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inside = where if where.endswith("[*]") else f"{where}[*]"
        if apart and old and all(map(_is_number, old)):
            if old != new:
                yield inside, old, new
            return
        for a, b in zip(old, new, strict=True):
            yield from _differences(inside, a, b, apart)
    elif json.dumps(old) != json.dumps(new):
        yield (where, old, new) if apart else (where, f"{old!r:.80}", f"{new!r:.80}")
