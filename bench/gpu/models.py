"""The functions that ``first_result.py`` freezes: a small conv net and a stack of decoder blocks.

The author's side only: knows nothing of Zerowake. Weights are random (seeded), shapes are real.
``predict`` takes {"seed": int} and gives a list of floats, computed where the weights are.
"""

import math

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 32_000
TOKENS = 32
CLASSES = 100


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, as a small image classifier has them (float32)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for step in range(4):
            out = width << step
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[n, 3, 64, 64] to [n, CLASSES]."""
        logits: torch.Tensor = self.head(self.features(image).mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, tokens, width))
        x = x + self.down(functional.gelu(self.up(self.norm_2(x))))
        return x


class Decoder(nn.Module):
    """Embedding, blocks, head tied to the embedding (bfloat16)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        # not initialised: normal_ on meta imports torch's decompositions, a second that no peer owes
        self.embedding = nn.Embedding(VOCABULARY, width, _weight=torch.empty(VOCABULARY, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, t] token ids to [n, VOCABULARY] logits of the last position."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x)[:, -1], self.embedding.weight)


class Function:
    """What both have in common: a model and where it is."""

    model: nn.Module

    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def predict(self, item: dict[str, int]) -> list[float]:
        with torch.inference_mode():
            result: list[float] = self.run(item["seed"]).float().flatten().cpu().tolist()
        return result

    def run(self, seed: int) -> torch.Tensor:
        raise NotImplementedError


class Conv(Function):
    def run(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, 64, 64, generator=generator)
        logits: torch.Tensor = self.model(image.to(self.device()))
        return logits


class Stack(Function):
    def run(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (1, TOKENS), generator=generator)
        logits: torch.Tensor = self.model(tokens.to(self.device()))
        return logits[:, :256]


def build(kind: str, nbytes: int) -> Function:
    """A function whose model has about ``nbytes`` of weights, all of them still on meta."""
    function: Function
    with torch.device("meta"):
        if kind == "conv":
            # 3x3 convolutions between w, 2w, 4w and 8w channels: 9 x 42 w^2 weights of 4 bytes
            function = Conv()
            function.model = ConvNet(max(8, math.isqrt(nbytes // (4 * 9 * 42))))
        else:
            function = Stack()
            width = 2048 if nbytes >= 1 << 29 else 128
            blocks = (nbytes - 2 * VOCABULARY * width) // (2 * 12 * width * width)
            function.model = Decoder(width, max(1, blocks)).to(torch.bfloat16)
    function.model.eval()
    return function


def load(kind: str, nbytes: int) -> Function:
    """The same with random weights on the CPU, of a size that keeps the outputs finite."""
    function = build(kind, nbytes)
    function.model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in function.model.state_dict().values():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() < 2:
                tensor.uniform_(0.5, 1.5)
            else:
                bound = 1 / math.sqrt(tensor[0].numel())
                tensor.uniform_(-bound, bound)
    return function
