"""``zerowake.runtime.hooks``: order, random numbers, and authors who have registered nothing."""

import random
import sys
from types import SimpleNamespace

import pytest

from zerowake.runtime import hooks
from zerowake.runtime.hooks import Moment


def test_the_last_runs_first_before_a_snapshot_and_the_first_first_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[int, str]] = []

    def note(number: int, *, word: str) -> None:
        ran.append((number, word))

    registry = SimpleNamespace(
        get_before_snapshot=lambda: [(note, (n,), {"word": "before"}) for n in (1, 2)],
        get_after_restore=lambda: [(note, (n,), {"word": "after"}) for n in (1, 2)],
    )
    monkeypatch.setitem(sys.modules, hooks.REGISTRY, registry)
    for moment in Moment:
        hooks.run(moment)
    assert ran == [(2, "before"), (1, "before"), (1, "after"), (2, "after")]


def test_a_restored_process_draws_its_own_numbers() -> None:
    random.seed(7)
    hooks.run(Moment.BEFORE_SNAPSHOT)
    assert random.random() == random.Random(7).random()
    random.seed(7)
    hooks.run(Moment.AFTER_RESTORE)
    assert random.random() != random.Random(7).random()


def test_what_a_hook_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = SimpleNamespace(get_before_snapshot=lambda: [(int, ("x",), {})])
    monkeypatch.setitem(sys.modules, hooks.REGISTRY, registry)
    with pytest.raises(ValueError, match="invalid literal"):
        hooks.run(Moment.BEFORE_SNAPSHOT)
