"""Modules of which some compile, some do not."""

from typing import Any

from zerowake import function


@function(examples=[2])
class Mixture:
    def load(self) -> None:
        import mixture_modules

        self.sizes = mixture_modules.Sizes().eval()
        self.since = mixture_modules.Since().eval()
        self.resized = mixture_modules.Resized().eval()
        self.read = mixture_modules.Inner().eval()
        self.unused = mixture_modules.Outer(self.read).eval()

    def predict(self, rows: int) -> dict[str, Any]:
        import torch

        x = torch.arange(rows * 3 * 72.0).reshape(rows, 3, 8, 9) / 100
        time = torch.tensor([1.7e9 + 5.25, 1.7e9 - 3.5], dtype=torch.float64)
        found = {name: each.tolist() for name, each in self.sizes(x).items()}
        return {
            **found,
            "since": self.since(time).tolist(),
            "resized": self.resized(x).sum().item(),
            "read": (self.read(x) * self.read.factor).sum().item(),
        }
