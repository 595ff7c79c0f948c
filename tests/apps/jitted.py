"""A function that compiles its module itself, in each process: the form keeps what comes of it."""

from zerowake import function


@function(
    examples=[[[1.0, 2.0, 3.0]], [[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]]],
    timeout_s=300,  # a compiler may have to share its core
)
class Jitted:
    def load(self) -> None:
        import torch
        from jitted_modules import Net

        torch.manual_seed(1)
        self.model = Net().eval()

    def wake(self) -> None:
        import torch

        self.run = torch.compile(self.model)

    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        import torch

        return self.run(torch.tensor(rows)).tolist()
