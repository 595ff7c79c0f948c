"""A function that takes one call at a time, and whose process may end at the worst moment."""

import os
import signal
import time
from typing import Any

from zerowake import function


@function(examples=[{"do": "ok"}])
class Alone:
    def predict(self, do: str, gate: str = "", times: int = 1) -> str:
        if gate:
            print("waits for", gate)
            while not os.path.exists(gate):
                time.sleep(0.005)
        if do == "die told":
            _die_once_told()
        return do * times


def _die_once_told() -> None:
    """As soon as the gateway has been told that the call was answered."""
    from zerowake.runtime.feed import Feed

    def die(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Feed.answered = die  # type: ignore[method-assign]
