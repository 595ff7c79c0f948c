"""Three modules with what makes compiling hard: one compile serves many tests."""

import os
import sys
from typing import Any, TypedDict

from zerowake import function


class Ask(TypedDict):
    net: str
    x: Any


@function(
    examples=[
        {"net": "text", "x": [[1, 2, 3], [4, 5, 6]]},
        {"net": "text", "x": [[7, 8, 9, 1]]},
        {"net": "picks", "x": [[1, -9, 6], [4, -3, 0]]},
        {"net": "image", "x": [[[[0.5, 1.0, -1.0, 0.0]] * 4] * 3] * 2},
    ]
)
class Nets:
    def load(self) -> None:
        import modules
        import torch

        torch.manual_seed(3)
        self.text = modules.Text().eval()
        self.image = modules.Image().eval()
        self.picks = modules.Picks().eval()

    def predict(self, ask: Ask) -> dict[str, Any]:
        if ask["net"] == "process":
            return {"torch": "torch" in sys.modules, "pid": os.getpid()}
        if ask["net"] == "text":
            found = self.text(ask["x"])
            return {"logits": found.logits, "first": found[0], "rows": found["rows"]}
        if ask["net"] == "picks":
            found = self.picks(ask["x"])
            rows = found[0] if isinstance(found[0][0], list) else found
            return {"mean": sum(map(sum, rows)) / len(rows), "last": found[-1][-1]}
        found = self.image(x=ask["x"])
        again, total = found["more"]
        return {"all": found["all"], "again": again, "total": total, "none": found["none"]}
