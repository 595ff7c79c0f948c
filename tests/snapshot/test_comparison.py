"""``zerowake.snapshot.comparison``: which fields differ, how far, and what counts."""

import json
import math
import sys
from typing import Any

import pytest

from zerowake.snapshot import comparison
from zerowake.snapshot.errors import ProofFailed
from zerowake.snapshot.proof import Answers, Proof


def test_differences_name_fields() -> None:
    def fields(a: str, b: str) -> list[str]:
        return [f for f, _, _ in comparison.differences([[a.encode()]], [[b.encode()]])]

    assert fields('{"a": [1, {"b": 2}], "c": 3}', '{"a": [1, {"b": 5}], "c": 4}') == [
        "items[0].a[*].b",
        "items[0].c",
    ]
    assert fields('{"a": 1}', '{"b": 1}') == ["items[0]"]
    assert fields("[1, 2]", "[1]") == ["items[0]"]
    assert fields("1.0", "1") == ["items[0]"] and fields("-0.0", "0.0") == ["items[0]"]
    assert fields('{"a": 1, "b": 2}', '{"b": 2, "a": 1}') == ["items[0]"]
    assert fields('{"a":1}', '{"a": 1}') == [] and fields("1e-05", "1e-5") == []
    assert fields("x", "y") == ["items[0]"] and fields("1", "1") == []
    assert next(comparison.differences([[b"1"]], [[b"1", b"2"]]))[1:] == ("1 chunks", "2 chunks")


def test_answers_nested_too_deep_to_look_into_are_compared_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nested(leaf: int) -> Any:
        value: Any = leaf
        for _ in range(2 * sys.getrecursionlimit()):
            value = [value]
        return value

    # Some releases of Python parse what no function can walk through.
    monkeypatch.setattr(comparison.json, "loads", lambda text: nested(int(text)))
    wanted = Proof([[b"1"]], [[[b"1"]]], [[]])
    with pytest.raises(ProofFailed, match=r"items\[0\]: the original answered b'1' \(1 bytes\)"):
        comparison.compare(wanted, [[[b"2"]]])
    with pytest.raises(ProofFailed, match=r"items\[0\]"):
        comparison.distance(wanted, [[[b"2"]]])


def test_the_summary_counts_what_was_compared() -> None:
    assert comparison.summary(Proof([], [], [])).startswith("the proof holds no calls")

    def said(answer: bytes, *unsteady: str) -> str:
        return comparison.summary(Proof([[b"1"]], [[[answer]]], [list(unsteady)]))

    answer = b'{"id": 1, "parts": [{"at": 1, "x": {}}, {"at": 2, "x": {}}]}'
    counts = "the proof is right (fields compared: {}, left out as not deterministic: {})"
    assert said(answer) == counts.format(3, 0)
    assert said(answer, "items[0].id", "items[0].parts[*].at") == counts.format(1, 2)
    assert said(b'{"id": 1, "idea": 2}', "items[0].id") == counts.format(1, 1)
    nothing = "the proof says nothing: no field is deterministic ({} left out)"
    assert said(answer, "items[0]") == nothing.format(3)
    assert said(b"\xff", "items[0]") == nothing.format(1)


def evidence(answer: Any) -> Proof:
    return Proof([[b"1"]], [[[json.dumps(answer).encode()]]], [[]])


def found(answer: Any) -> list[Answers]:
    return [[[json.dumps(answer).encode()]]]


@pytest.mark.parametrize(
    "old, new, error",
    [
        (1.0, 1.0, 0.0),
        (1.0, 1.1, 0.1 / 1.1),
        ([1.0, 0.0], [0.0, 1.0], 1.0),
        ([3.0, 4.0], [4.0, 3.0], 1 - 24 / 25),
        ([1.0, 2.0], [2.0, 4.0], 0.5),  # the same direction, and not the same
        ([0.1], [0.9], 8 / 9),
        ([1.0], [-1.0], 2.0),
        ([0.0, 0.0], [3.0, 4.0], 5.0),
        ({"a": [[1.0, 1.0], [1.0, 1.0]]}, {"a": [[1.0, 1.0], [1.0, 0.0]]}, 1 - 1 / math.sqrt(2)),
        ("same", "same", 0.0),
    ],
)
def test_distance(old: Any, new: Any, error: float) -> None:
    assert comparison.distance(evidence(old), found(new)) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    "old, new",
    [
        ("cat", "dog"),
        (True, False),
        (1.0, None),
        ([1.0, 2.0], [1.0]),
        ([1.0], 1.0),
        ({"a": 1}, {"b": 1}),
        (["a"], ["b"]),
        ([1.0], ["x"]),
    ],
)
def test_what_is_no_number_must_be_the_same(old: Any, new: Any) -> None:
    with pytest.raises(ProofFailed):
        comparison.distance(evidence(old), found(new))
    with pytest.raises(ProofFailed, match="asked"):
        comparison.distance(evidence(old), [])


def test_unsteady_fields_count_for_nothing() -> None:
    unsteady = Proof([[b"1"]], [[[b'{"a": 1, "b": 2}']]], [["items[0].a"]])
    assert comparison.distance(unsteady, found({"a": 5, "b": 2})) == 0.0
    with pytest.raises(ProofFailed, match=r"items\[0\].b: 2 and '2'"):
        comparison.distance(unsteady, found({"a": 5, "b": "2"}))


@pytest.mark.parametrize(
    "field, changed",
    [
        ("items[0].a[*]", {"a": [3.0, 4.0], "b": 1}),  # numbers, which are judged as one
        ("items[0].a", {"a": [3.0], "b": 1}),
        ("items[0]", {"a": [9.0, 2.0], "b": 2}),  # all that is inside
        ("items", {"a": [9.0, 2.0], "b": 2}),
    ],
)
def test_a_field_that_is_inside_of_an_unsteady_one_counts_for_nothing(
    field: str, changed: Any
) -> None:
    told = Proof([[b"1"]], [[[b'{"a": [1.0, 2.0], "b": 1}']]], [[field]])
    assert comparison.distance(told, found(changed)) == 0.0
    comparison.compare(told, found(changed))
    with pytest.raises(ProofFailed):
        comparison.compare(evidence({"a": [1.0, 2.0], "b": 1}), found(changed))


def test_a_list_whose_numbers_are_unsteady_keeps_its_length() -> None:
    told = Proof([[b"1"]], [[[b"[1.0, 2.0]"]]], [["items[0][*]"]])
    with pytest.raises(ProofFailed, match=r"items\[0\]: "):
        comparison.distance(told, found([1.0]))


def test_where_all_is_unsteady_the_proof_says_nothing() -> None:
    def said(*unsteady: str) -> str | None:
        return comparison.says_nothing(Proof([[b"1"]], [[[b'[0.1, {"a": 2}]']]], [list(unsteady)]))

    assert said() is None and said("items[0][*].a") is None
    assert said("items[0][*]") == "the proof says nothing: no field is deterministic (2 left out)"
    assert (comparison.says_nothing(Proof([], [], [])) or "").startswith("the proof holds no calls")
