"""Random changes to a sound snapshot: it is refused with an error of ours, or it is restored.

The changed file is signed again, as an attacker would, so that the checks behind the digests are
reached. Seeded; ``ZEROWAKE_FUZZ=100000 pytest tests/hostile/test_fuzz.py`` looks longer.
"""

import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile import make

from zerowake.snapshot import manifest, proof, skeleton_parser
from zerowake.snapshot.code import load_code
from zerowake.snapshot.errors import ZerowakeError
from zerowake.snapshot.restore import restore
from zerowake.snapshot.skeleton import KINDS
from zerowake.snapshot.store import open_snapshot, read_file

ROUNDS = int(os.environ.get("ZEROWAKE_FUZZ", "400"))
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1 << 31, 1 << 53, 1 << 63, 10**30, 0.5, -0.0, 1e300, "", "x",
    "\ud800", "\0", "../x", "float32", "<f4", "nan", "os:system", "app:App", "assets/1-plain.json",
    [], [0], [1], [2], [5], [6], [7], [99], [-1], [[0]], {}, {"a": 1}, {"__class__": [2]}, {"t": "list"},
]  # fmt: skip


def mutate(plain: Any, rng: random.Random) -> None:
    """Change, add, remove or swap something somewhere in ``plain``."""
    while True:
        items = list(plain.items() if isinstance(plain, dict) else enumerate(plain))
        if not items:
            break
        key, value = rng.choice(items)
        if isinstance(value, dict | list) and value and rng.random() < 0.75:
            plain = value
            continue
        match rng.randrange(5):
            case 0 if isinstance(plain, dict):
                del plain[key]
            case 1 if isinstance(plain, dict):
                plain[rng.choice(["v", "s", "k", "c", "i", "o", "p", "early", "x"])] = rng.choice(
                    ODD
                )
            case 2 if isinstance(plain, list):
                plain.append(copy.deepcopy(rng.choice(ODD)))
            case 3 if isinstance(plain, dict) and "t" in plain:
                plain["t"] = rng.choice(sorted(KINDS))
            case _:
                plain[key] = copy.deepcopy(rng.choice(ODD))
        break


@pytest.mark.parametrize("part", ["skeleton.json", "manifest.json", "proof.json"])
def test_random_changes(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROWAKE_CANARY", str(tmp_path / "canary"))
    sound = make.good()
    folder = tmp_path / "snapshot"
    outcomes = {"refused": 0, "restored": 0}
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        files = dict(sound)
        plain = json.loads(files[part])
        for _ in range(rng.randrange(1, 4)):
            mutate(plain, rng)
        data = make.canonical(plain) if part != "skeleton.json" else json.dumps(plain).encode()
        if part == "manifest.json":
            files[part] = data
        else:
            make.put(part, data)(files)
        shutil.rmtree(folder, ignore_errors=True)
        make.write(folder, files)
        try:
            snapshot = open_snapshot(folder)
            code = load_code(snapshot, trusted=frozenset({snapshot.digest}), code_dir=None)
            restore(snapshot, code)
            proof.parse(read_file(snapshot, "proof.json"))
            outcomes["restored"] += 1
        except ZerowakeError:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data[:3000]!r}") from error
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_odd_values_in_every_field(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of the kind with any of ``ODD`` in any of its fields."""
    monkeypatch.setenv("ZEROWAKE_CANARY", os.devnull)
    sound = make.good()
    found = manifest.parse(sound["manifest.json"])
    rng = random.Random(kind)
    must, may = map(sorted, KINDS[kind])
    for _ in range(ROUNDS):
        node = {field: rng.choice(ODD) for field in must}
        node |= {field: rng.choice(ODD) for field in may if rng.random() < 0.5}
        plain = json.loads(sound["skeleton.json"])
        plain["nodes"].append({"t": kind, **node})
        try:
            skeleton_parser.parse(json.dumps(plain).encode(), found)
        except ZerowakeError:
            continue
        except Exception as error:
            raise AssertionError(f"{kind}: {node!r}") from error
