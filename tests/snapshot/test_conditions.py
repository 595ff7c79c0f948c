"""``zerowake.snapshot.conditions``."""

import pytest

from zerowake.snapshot import conditions


@pytest.mark.parametrize(
    "text",
    [
        "a.b == 1",
        "__import__('os') == 1",
        "a[0] == 1",
        "c == 1",
        "a == 'x'",
        "a ==",
        "max == 1",
        "max(a) == 1",
        "abs(a, b) == 1",
        "math.exp(a) == 1",
        "max(*a) == 1",
        "max(a, b, key=abs) == 1",
        "a ** b == 1",
        "a ** 99 == 1",
        "a in b",
        "a == True",
        "a == 1j",
        "(lambda: a)() == 1",
        "[a for a in b]",
        "a if b else a",
        "a == 1; b",
        "a\0",
        "",
        "(" * 900 + "a" + ")" * 900,
        "-" * 1900 + "a",
        "a + " * 1000 + "a",
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="a condition"):
        conditions.parse(text, ["a", "b"])


@pytest.mark.parametrize(
    "text, a, b, met",
    [
        ("max(a, 2) // b >= 1 and not a % 2", 4, 2, True),
        ("a // (b - 1) == 3", 4, 1, False),  # of no value
        ("a / b == 0.5 or a < 0", 1, 2, True),
        ("a != b", 3, 3, False),
        ("1 < a <= b", 2, 2, True),
        ("1 < a <= b", 1, 2, False),
        ("a**2 + -b == abs(-7)", 3, 2, True),
        ("math.trunc(1.7*float(a)) == math.ceil(5.5) and int(a) > math.floor(b)", 4, 3, True),
        ("a - min(a, b) > 0", 4, 3, True),
        ("2", 1, 1, True),
    ],
)
def test_conditions(text: str, a: int, b: int, met: bool) -> None:
    assert conditions.parse(text, "ab")({"a": a, "b": b}) is met


def test_a_condition_is_text() -> None:
    with pytest.raises(ValueError, match="a condition"):
        conditions.parse(5, "ab")  # type: ignore[arg-type]
