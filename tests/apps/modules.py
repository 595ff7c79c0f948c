"""The modules of ``nets.py``: only its ``load`` needs them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class TextOutput(ModelOutput):  # type: ignore[misc]
    logits: torch.Tensor | None = None
    rows: torch.Tensor | None = None


class Text(nn.Module):
    """Tied weights, positions from a table of 6, a buffer that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.positions = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.randn(16)[:12].view(3, 4), persistent=False)

    def forward(self, ids: torch.Tensor) -> TextOutput:
        states = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        return TextOutput(logits=self.head(states), rows=states.mean(1) @ self.scale.t())


class Image(nn.Module):
    """A convolution with BatchNorm, views of one storage, odd sizes, constants that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.norm.running_mean.fill_(0.25)
        both = torch.randn(10, 3)
        self.left, self.right = nn.Parameter(both[1:6]), nn.Parameter(both[5:].t())
        self.odd = nn.Parameter(torch.randn(3, 11))  # 132 bytes: copied where it is bound
        self.table = torch.randn(3, 5).t()  # neither parameter nor buffer, and not dense

    def forward(self, x: torch.Tensor, twice: bool = False) -> dict[str, Any]:
        seen = self.norm(self.conv(x)).relu().mean((2, 3))
        few = seen @ self.left + seen @ self.right.t() + seen @ self.table
        scores = few @ self.odd + torch.arange(11.0) * torch.tensor([1.0] * 10 + [2.0])
        return {"all": scores, "more": (scores, scores.sum()), "none": None}


class Picks(nn.Module):
    """Row numbers that are computed, some of them from the end; one row of them is special."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.table[ids + 2]
        return found[0] if ids.shape[0] == 1 else found
