"""Imports a slow library at the top of its file, which freeze should point out."""

import torch

from zerowake import function


@function(examples=[1.0])
class Heavy:
    def predict(self, x: float) -> float:
        return float(torch.tensor(x).exp())
