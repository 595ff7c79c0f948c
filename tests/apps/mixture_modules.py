"""The modules of ``mixture.py``: only its ``load`` needs them."""

import torch
from torch import nn


class Sizes(nn.Module):
    """Branches on a size, and what Inductor takes for constants of two others."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = nn.functional.adaptive_avg_pool2d(x, (2, 3))
        return {"pooled": pooled, "scaled": x * 2 if x.shape[0] % 2 == 0 else x * 3}


class Since(nn.Module):
    """Computes in float64, and has no parameter that would say so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor(1.7e9, dtype=torch.float64))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return t - self.start


class Resized(nn.Module):
    """Only torch itself can call this operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, size=(6, 7), mode="bicubic", antialias=True)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.factor = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Outer(nn.Module):
    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1
