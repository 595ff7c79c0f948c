"""A small model with weights of a few MiB, made at random."""

import sys

from zerowake import Batch, function


@function(batch=Batch(max_size=4), examples=[[1.0, 2.0], [3.0, 4.0]])
class Linear:
    def load(self) -> None:
        import torch

        torch.manual_seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(2, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024)
        ).eval()

    def predict(self, points: list[list[float]]) -> list[float]:
        import torch

        return [float(row.sum()) for row in self.model(torch.tensor(points))]


@function(examples=[0])
class Imports:
    def predict(self, x: int) -> bool:
        return bool(x) and "torch" in sys.modules
