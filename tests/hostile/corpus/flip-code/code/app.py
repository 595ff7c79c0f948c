import os
import pathlib

pathlib.Path(os.environ["ZEROWAKE_BANARY"]).touch()


class App:
    def predict(self, item):
        return item
