"""A batching function with one example, which shows little of what its modules take."""

from typing import Any

from zerowake import Batch, function


@function(batch=Batch(max_size=8), examples=[[1.0, -2.0, 0.5]])
class Shapes:
    def load(self) -> None:
        import shape_modules
        import torch

        torch.manual_seed(4)
        self.couples = shape_modules.Couples().eval()
        self.branches = shape_modules.Branches().eval()

    def predict(self, items: list[list[float]]) -> list[dict[str, Any]]:
        coupled = self.couples(items)
        return [
            {"coupled": row, "branches": self.branches(x=[item])[0]}
            for row, item in zip(coupled, items, strict=True)
        ]
