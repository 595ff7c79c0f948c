"""Calls of a module, recorded as on the probe."""

from typing import Any

import torch
from torch import nn

from zerowake.snapshot.calls import Calls, recorded


class Target:
    def __init__(self, module: Any) -> None:
        self.net = module


def record(module: nn.Module, *calls: tuple[Any, ...] | dict[str, Any]) -> Calls:
    target = Target(module.eval())
    (found,) = recorded(target)
    with torch.inference_mode():  # as predict runs
        for call in calls:
            target.net(**call) if isinstance(call, dict) else target.net(*call)
    return found
