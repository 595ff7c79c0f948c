"""Arrays as they lie in memory, and arithmetic on their strides.

Knows no torch, no numpy and no library; reads no memory.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

# dtype -> its size in bytes and the ctypes element that Python can read, if there is one
ELEMENTS: dict[str, tuple[int, Any]] = {
    "float64": (8, ctypes.c_double),
    "float32": (4, ctypes.c_float),
    "float16": (2, None),
    "bfloat16": (2, None),
    "int64": (8, ctypes.c_int64),
    "int32": (4, ctypes.c_int32),
    "int16": (2, ctypes.c_int16),
    "int8": (1, ctypes.c_int8),
    "uint8": (1, ctypes.c_uint8),
    "bool": (1, ctypes.c_bool),
}


@dataclass(frozen=True, slots=True)
class Array:
    """A dense array in memory that somebody else owns: ``owner`` is kept alive with it.

    address: of the first element, in bytes. shape and strides: in elements.
    """

    address: int
    dtype: str
    shape: Shape
    strides: Shape
    owner: Any

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def contiguous_strides(shape: Sequence[int]) -> Shape:
    """Strides, in elements, of a dense row-major array."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def same_layout(shape: Sequence[int], one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether strides mean the same: those of a size of 1 mean nothing."""
    return len(one) == len(two) and all(
        size == 1 or a == b for size, a, b in zip(shape, one, two, strict=True)
    )


def reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements there are from the first to the last, gaps included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
