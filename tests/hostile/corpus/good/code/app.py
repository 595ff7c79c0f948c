import os
import pathlib

pathlib.Path(os.environ["ZEROWAKE_CANARY"]).touch()


class App:
    def predict(self, item):
        return item
