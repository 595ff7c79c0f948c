"""A module as a function of arrays alone, which is what is exported and compiled.

Knows nothing of compiling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zerowake.snapshot.output import take_apart


class Flat(torch.nn.Module):
    """A module as a function of its array arguments, its results a flat tuple.

    cast: whether arguments become of the dtype of its parameters, where it has any.
    """

    def __init__(
        self, module: torch.nn.Module, names: list[str], fixed: Mapping[str, Any], cast: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.tree: Any = None
        self._names, self._fixed = names, dict(fixed)
        floats = (p.dtype for p in module.parameters() if p.is_floating_point())
        self._cast = next(floats, None) if cast else None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        to = self._cast
        given = [t.to(to) if to is not None and t.is_floating_point() else t for t in tensors]
        result = self.module(**dict(zip(self._names, given, strict=True)), **self._fixed)
        results: list[torch.Tensor] = []
        self.tree = take_apart(result, torch.Tensor, results)
        return tuple(map(_dense, results))


def _dense(result: torch.Tensor) -> torch.Tensor:
    """Contiguous, and of at least float32: nested lists have nothing smaller."""
    half = result.dtype in (torch.float16, torch.bfloat16)
    return (result.float() if half else result).contiguous()


def answers(flat: Flat, example: Sequence[torch.Tensor]) -> bool:
    try:
        flat(*example)
    except Exception:
        return False
    return True
