"""The proof: probe cases with the answers of the original, and comparing answers field by field.

Knows no torch (it seeds it when somebody has imported it) and no object; how a case is run is
given from above.
"""

import base64
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from zerowake.snapshot.errors import DamagedSnapshot, ProofFailed
from zerowake.snapshot.manifest import canonical, parse_json

SEED = 0x5EED

# one answer is the chunks of one item (one chunk unless it streams); a case has one per item
Answers = list[list[bytes]]
Probe = Callable[[object, list[bytes]], Answers]


@dataclass(frozen=True, slots=True)
class Proof:
    """``cases``: item bodies; ``answers``: what the original gave; ``unsteady``: per case, the
    fields that differed between two runs of the original, left out of comparisons."""

    cases: list[list[bytes]]
    answers: list[Answers]
    unsteady: list[list[str]]


def encode(proof: Proof) -> bytes:
    cases = [
        {
            "items": [_text(body) for body in items],
            "answers": [[_text(chunk) for chunk in answer] for answer in answers],
            "unsteady": unsteady,
        }
        for items, answers, unsteady in zip(proof.cases, proof.answers, proof.unsteady, strict=True)
    ]
    return canonical({"seed": SEED, "cases": cases})


def parse(data: bytes) -> Proof:
    """The proof in ``data``. Raises DamagedSnapshot, also for fields that the format does not have."""
    plain = parse_json(data, "proof.json")
    try:
        seed, cases = _fields(plain, "seed", "cases")
        if seed != SEED or not cases:
            raise ValueError(f"seed {seed!r:.40}, {len(cases)} cases")
        proof = Proof([], [], [])
        for case in cases:
            items, answers, unsteady = _fields(case, "items", "answers", "unsteady")
            if not all(type(part) is list for part in (cases, items, answers, unsteady, *answers)):
                raise ValueError("cases, items, answers, an answer and unsteady must be lists")
            if len(items) != len(answers):
                raise ValueError("a case has not as many answers as items")
            if not all(isinstance(field, str) for field in unsteady):
                raise ValueError("a field of unsteady is no string")
            proof.cases.append([_bytes(body) for body in items])
            proof.answers.append([[_bytes(chunk) for chunk in answer] for answer in answers])
            proof.unsteady.append(unsteady)
        return proof
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedSnapshot(f"proof.json does not hold cases as it should: {error}") from None


def seed_all(seed: int = SEED) -> None:
    """Seed Python's, numpy's and torch's random state, of those that are imported."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def answer_all(target: object, cases: list[list[bytes]], probe: Probe) -> list[Answers]:
    """Answer the cases one after the other, each from the same seeds: freeze does, replay must."""
    answers = []
    for items in cases:
        seed_all()
        answers.append([list(chunks) for chunks in probe(target, items)])
    return answers


def compare(proof: Proof, found: list[Answers]) -> None:
    """ProofFailed names the case, the field and both values of the first difference."""
    if len(found) != len(proof.answers):
        raise ProofFailed(f"{len(proof.answers)} cases were asked and {len(found)} answered")
    for case, (wanted, got) in enumerate(zip(proof.answers, found, strict=True)):
        for field, old, new in differences(wanted, got):
            if field not in proof.unsteady[case]:
                raise ProofFailed(
                    f"case {case}, {field}: the original answered {old}, the restored object "
                    f"{new}. State that load() keeps outside self does not come back; make it in "
                    "wake(self) or keep it on self."
                )


def distance(proof: Proof, found: list[Answers]) -> float:
    """How far ``found`` is from the proof's answers: the largest error of a field.

    The error of a list of numbers is its cosine distance or the relative error of its length,
    whichever is larger, of a number the relative one. Raises ProofFailed where answers differ in
    anything but numbers.
    """
    if len(found) != len(proof.answers):
        raise ProofFailed(f"{len(proof.answers)} cases were asked and {len(found)} answered")
    largest = 0.0
    for case, (wanted, got) in enumerate(zip(proof.answers, found, strict=True)):
        for field, old, new in differences(wanted, got, apart=True):
            if field in proof.unsteady[case]:
                continue
            error = _error(old, new)
            if error is None:
                raise ProofFailed(f"case {case}, {field}: {old!r:.80} and {new!r:.80}")
            largest = max(largest, error)
    return largest


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
    compared = left_out = 0
    for answers, unsteady in zip(proof.answers, proof.unsteady, strict=True):
        for field in {field for i, answer in enumerate(answers) for field in _named(i, answer)}:
            if any(f"{field}.".startswith((f"{one}.", f"{one}[")) for one in unsteady):
                left_out += 1
            else:
                compared += 1
    if left_out and not compared:
        return f"the proof says nothing: no field is deterministic ({left_out} left out)"
    return (
        f"the proof is right (fields compared: {compared}, left out as not deterministic: "
        f"{left_out})"
    )


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
    elif apart and isinstance(old, list) and old and all(map(_is_number, old)):
        if old != new:
            yield where, old, new
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for a, b in zip(old, new, strict=True):
            yield from _differences(where if where.endswith("[*]") else f"{where}[*]", a, b, apart)
    elif json.dumps(old) != json.dumps(new):
        yield (where, old, new) if apart else (where, f"{old!r:.80}", f"{new!r:.80}")


def _text(data: bytes) -> Any:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _bytes(plain: Any) -> bytes:
    if plain.keys() == {"text"}:
        return bytes(plain["text"].encode("utf-8"))
    (text,) = _fields(plain, "base64")
    return base64.b64decode(text, validate=True)


def _fields(plain: Any, *names: str) -> list[Any]:
    """The fields of an object that must have exactly these."""
    if plain.keys() != set(names):
        raise ValueError(f"an object has the fields {sorted(plain)}; wanted {sorted(names)}")
    return [plain[name] for name in names]
