"""The proof: probe cases with the answers of the original, and answering them anew.

Knows no torch (it seeds it when somebody has imported it) and no object; how a case is run is
given from above. ``comparison`` judges answers.
"""

import base64
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zerowake.snapshot.errors import DamagedSnapshot
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
        if seed != SEED:
            raise ValueError(f"seed {seed!r:.40}")
        if type(cases) is not list:
            raise ValueError("cases must be a list")
        proof = Proof([], [], [])
        for case in cases:
            items, answers, unsteady = _fields(case, "items", "answers", "unsteady")
            if not all(type(part) is list for part in (items, answers, unsteady, *answers)):
                raise ValueError("items, answers, an answer and unsteady must be lists")
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
