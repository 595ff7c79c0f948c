"""A function whose module leaves a thread behind when it is imported: no zygote may hold it."""

import threading
import time

from zerowake import function

threading.Thread(target=lambda: time.sleep(3600), daemon=True).start()


@function(examples=[1])
class Threaded:
    def predict(self, x: int) -> int:
        return x + 1
