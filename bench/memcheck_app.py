"""What ``memcheck.py`` compiles: products with packed weights, a convolution, rows of a table."""

from typing import Any

from zerowake import function

IMAGE = [[[[0.5, 1.0, -1.0, 0.0, 2.0]] * 5] * 3] * 2


@function(
    examples=[
        {"net": "rows", "x": [[1, 2, 3], [4, 5, 6]]},
        {"net": "products", "x": [[0.25] * 37] * 5},
        {"net": "image", "x": IMAGE},
    ]
)
class Nets:
    def load(self) -> None:
        import torch
        from torch import nn

        torch.manual_seed(1)
        self.rows = nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4)).eval()
        self.products = nn.Sequential(nn.Linear(37, 53), nn.GELU(), nn.Linear(53, 19)).eval()
        self.image = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)).eval()

    def predict(self, ask: dict[str, Any]) -> Any:
        return getattr(self, ask["net"])(ask["x"])
