"""The modules of ``shapes.py``: only its ``load`` needs them."""

import torch
from torch import nn


class Couples(nn.Module):
    """Each row's answer depends on the other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight - x.mean(0)


class Branches(nn.Module):
    """Other rules for long rows and for those of even length."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor, scale=1.0, **options):  # type: ignore[no-untyped-def]
        x = x * scale + sum(options.values())
        if x.shape[-1] > 16:
            return x * 3
        return x + self.weight if x.shape[-1] % 2 == 0 else x * self.weight
