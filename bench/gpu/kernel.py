"""A Triton kernel as an author writes one: what it is compiled to lies in TRITON_CACHE_DIR."""

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit
def _add(left, right, out, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    tl.store(out + at, tl.load(left + at, mask=inside) + tl.load(right + at, mask=inside), inside)


def check(device: str) -> None:
    """Adds two vectors with it. Raises AssertionError where the sum is not torch's."""
    left, right = (torch.rand(1000, device=device) for _ in range(2))
    out = torch.empty_like(left)
    _add[(triton.cdiv(1000, BLOCK),)](left, right, out, 1000, block=BLOCK)
    torch.testing.assert_close(out, left + right)
