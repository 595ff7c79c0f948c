"""A function whose author has registered hooks, as for SnapStart."""

import os
import random

from snapshot_restore_py import register_after_restore, register_before_snapshot

from zerowake import function


def note(word: str) -> None:
    if path := os.environ.get("ZEROWAKE_TEST_HOOKS"):
        with open(path, "a") as file:
            file.write(f"{word}\n")
    if os.environ.get("ZEROWAKE_TEST_FAILS") == word:
        raise RuntimeError(word)


for number in (1, 2):
    register_before_snapshot(note, f"before-{number}")
    register_after_restore(note, f"after-{number}")
register_before_snapshot(random.seed, 7)


@function(examples=[False])
class Hooked:
    def predict(self, draw: bool) -> float:
        return random.random() if draw else 0.0
