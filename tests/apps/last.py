"""A function that takes one call at a time, and whose process may end at the worst moment."""

import os
import signal
import time
from typing import Any

from zerowake import function


@function(examples=[{"do": "ok"}])
class Alone:
    def predict(self, do: str, gate: str = "", times: int = 1, polled: int = 0) -> str:
        if gate:
            print("waits for", gate)
            while not os.path.exists(gate):
                time.sleep(0.005)
        if do == "die told":
            _die_once_told()
        if do == "die":
            _die_in_the_poll(polled)
        return do * times


def _die_once_told() -> None:
    """As soon as the gateway has been told that the call was answered."""
    from zerowake.runtime.feed import Feed

    def die(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Feed.answered = die  # type: ignore[method-assign]


def _die_in_the_poll(polled: int) -> None:
    """Once the answer and so many bytes of the poll behind it have gone out."""
    from zerowake.adapters.aws.slot import Slot

    send = Slot._send

    def send_and_die(slot: Slot, data: bytes) -> None:
        send(slot, data[: len(data) - len(slot._poll) + polled])
        os.kill(os.getpid(), signal.SIGKILL)

    Slot._send = send_and_die  # type: ignore[method-assign]
