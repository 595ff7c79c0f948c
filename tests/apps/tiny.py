"""The quickest to compile. Its ``predict`` imports torch, which keeps torch in the process."""

from zerowake import function


@function(examples=[[[0.5, 1.0, 2.0]], [[1.0, -1.0, 0.25], [3.0, 0.0, 1.0]]])
class Tiny:
    def load(self) -> None:
        import torch

        torch.manual_seed(5)
        self.model = torch.nn.Linear(3, 40).eval()
        with torch.no_grad():  # a transposed weight keeps its strides in another dtype too
            self.model.weight = torch.nn.Parameter(torch.randn(3, 40).t())

    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        import torch

        found: list[list[float]] = self.model(torch.tensor(rows)).tolist()
        return found
