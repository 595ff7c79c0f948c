"""A function whose first call starts a thread: its zygote must not make one."""

import threading
import time

from zerowake import function


@function(examples=[1])
class StartsLate:
    """Its module can be forked from, its ``predict`` starts a thread."""

    def predict(self, x: int) -> int:
        threading.Thread(target=lambda: time.sleep(3600), daemon=True).start()
        return x + 1
