"""The module of ``jitted.py``: only its ``load`` needs it."""

import torch


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 20)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear(rows).relu().softmax(-1)
