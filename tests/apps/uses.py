"""Modules that are used otherwise than by calls, beside one that is only called: one compile serves all."""

from zerowake import function


@function(examples=[[[1.0, -2.0, 3.0]], [[0.5, 0.0, 1.0], [2.0, 1.0, -1.0]]])
class Uses:
    def load(self) -> None:
        import torch
        from uses_modules import Grows

        torch.manual_seed(4)
        self.called = torch.nn.Linear(3, 5).eval()
        self.looked_at = torch.nn.Linear(3, 5).eval()
        self.read = torch.nn.Linear(3, 5).eval()
        self.hooked = torch.nn.Linear(3, 5).eval()
        self.generates = Grows().eval()
        self.woken = torch.nn.Linear(3, 5).eval()
        self.copied = torch.nn.Linear(3, 5).eval()

    def wake(self) -> None:
        self.woken.register_forward_hook(lambda module, given, found: found + 1)

    def predict(self, rows: list[list[float]]) -> dict[str, object]:
        import copy

        import torch

        def twice(module: object, given: object, found: torch.Tensor) -> torch.Tensor:
            return 2 * found

        with torch.inference_mode():
            x = torch.tensor(rows)
            handle = self.hooked.register_forward_hook(twice)
            doubled = self.hooked(x)
            handle.remove()
            return {
                "called": self.called(x).tolist(),
                "looked_at": [
                    isinstance(self.looked_at, torch.nn.Module),
                    self.looked_at(x).tolist(),
                ],
                "read": self.read(x[:, : self.read.in_features]).tolist(),
                "hooked": doubled.tolist(),
                "generates": self.generates.generate(x, 3).tolist(),
                "woken": self.woken(x).tolist(),
                "copied": copy.deepcopy(self.copied)(x).tolist(),  # a stand-in would fail here
            }
