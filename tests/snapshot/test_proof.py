"""``zerowake.snapshot.proof``: what proof.json holds."""

import json

import pytest

from zerowake.snapshot import proof
from zerowake.snapshot.errors import DamagedSnapshot


def test_proof_survives_encoding() -> None:
    kept = proof.Proof([[b"\xff", "\u00e9".encode()]], [[[b"1"], [b"\x80", b""]]], [["items[0]"]])
    assert proof.parse(proof.encode(kept)) == kept
    plain = json.loads(proof.encode(kept))
    case, text = plain["cases"][0], {"text": "1"}
    for odd in (
        {**plain, "hook": 1},
        {**plain, "seed": 1},
        {**plain, "cases": {}},
        {**plain, "cases": [{**case, "hook": 1}]},
        {**plain, "cases": [{**case, "items": [{**text, "base64": ""}, text]}]},
        {**plain, "cases": [{**case, "items": [{"text": 1}, text]}]},
        {**plain, "cases": [{**case, "items": {}, "answers": {}}]},
        {**plain, "cases": [{**case, "answers": ["", ""]}]},
        {**plain, "cases": [{**case, "unsteady": "items[0]"}]},
        {**plain, "cases": [{**case, "unsteady": [1]}]},
    ):
        with pytest.raises(DamagedSnapshot, match="does not hold cases"):
            proof.parse(json.dumps(odd).encode())
    assert proof.parse(proof.encode(proof.Proof([], [], []))).cases == []
    with pytest.raises(DamagedSnapshot):
        proof.parse(b'{"cases": [{}]}')
