"""``zerowake.snapshot.conditions``."""

import pytest

from zerowake.snapshot import conditions


@pytest.mark.parametrize(
    "text",
    ["a.b == 1", "__import__('os') == 1", "a[0] == 1", "c == 1", "a == 'x'", "a ==", "max == 1"],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="a condition"):
        conditions.parse(text, ["a", "b"])


def test_conditions() -> None:
    assert conditions.parse("max(a, 2) // b >= 1 and not a % 2", "ab")({"a": 4, "b": 2})
    assert not conditions.parse("a // (b - 1) == 3", "ab")({"a": 4, "b": 1})
