"""A compiled library beside the module that it was made of: whether they answer alike, and for which sizes.

Knows nothing of how it was compiled.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch

from zerowake.snapshot import conditions
from zerowake.snapshot.arrays import Kind, give
from zerowake.snapshot.flat import Flat, answers
from zerowake.snapshot.libtorch import Library, libtorch
from zerowake.snapshot.strided import Array

MANY = 100_000  # entries, more than which an example to try out would be too large


class Trial:
    """Compares a compiled library with the module. right: sizes with which they have agreed."""

    def __init__(
        self,
        file: Path,
        weights: Mapping[str, torch.Tensor],
        flat: Flat,
        inputs: Sequence[Mapping[str, Any]],
        limit: float,
    ) -> None:
        self.file, self.weights = file, weights
        self._library, self._flat, self._limit = Library(file, libtorch()), flat, limit
        self._library.bind([_array(weights[constant.fqn]) for constant in self._library.constants])
        self._tree, self._inputs = flat.tree, inputs
        self.right: list[dict[str, int]] = []

    def agrees(self, tensors: Sequence[torch.Tensor], ones: Collection[str] = ()) -> bool:
        """``ones``: sizes that are cut to 1."""
        cut = [
            tensor[tuple(slice(1) if size in ones else slice(None) for size in each["shape"])]
            for tensor, each in zip(tensors, self._inputs, strict=True)
        ]
        try:
            wanted = self._flat(*cut)
            found = self._library.run([_array(tensor.contiguous()) for tensor in cut])
            alike = self._flat.tree == self._tree and all(
                map(self._is_close, wanted, (give(each, Kind.TORCH) for each in found))
            )
        except (IndexError, RuntimeError, ValueError):
            return False
        finally:
            self._flat.tree = self._tree
        if alike:
            self.right.append(sizes_in(self._inputs, cut))
        return alike

    def _is_close(self, wanted: torch.Tensor, found: torch.Tensor) -> bool:
        if wanted.shape != found.shape:
            return False
        wanted, found, limit = wanted.double(), found.double(), self._limit
        largest = max((abs(x) for x in wanted.flatten().tolist() if math.isfinite(x)), default=0.0)
        return torch.allclose(wanted, found, limit, limit * largest, equal_nan=True)


def try_ones(
    trial: Trial, example: Sequence[torch.Tensor], ranges: dict[str, tuple[int, int | None]]
) -> None:
    """Let sizes be 1 as well where the library then answers as the module does.

    Export takes a size of 1 for special, because of broadcasting, and starts most ranges at 2.
    """
    known = [name for name, (least, _) in ranges.items() if least == 1]  # the probe shows it
    for name, (least, most) in ranges.items():
        if least == 2 and all(trial.agrees(example, {name, *some}) for some in _subsets(known)):
            ranges[name] = (1, most)
            known.append(name)


def sizes_in(
    inputs: Sequence[Mapping[str, Any]], tensors: Sequence[torch.Tensor]
) -> dict[str, int]:
    """The named sizes in an example."""
    return {
        name: size
        for each, tensor in zip(inputs, tensors, strict=True)
        for name, size in zip(each["shape"], tensor.shape, strict=True)
        if isinstance(name, str)
    }


def limits(
    path: str,
    flat: Flat,
    example: Sequence[torch.Tensor],
    inputs: Sequence[Mapping[str, Any]],
    ranges: Mapping[str, tuple[int, int | None]],
    guards: Sequence[str],
) -> str | None:
    """Which shapes the library takes, in a few words; None if the module takes no others.

    Whether it does is tried, with one more or less of each size that cannot be so.
    """
    tree = flat.tree

    def takes(chosen: Callable[[int, int | str], bool], count: int) -> bool:
        def resized(tensor: torch.Tensor, each: Mapping[str, Any]) -> torch.Tensor:
            for dim, size in enumerate(each["shape"]):
                if chosen(dim, size):
                    places = torch.arange(count) % tensor.shape[dim]
                    tensor = tensor.index_select(dim, places)
            return tensor

        taken = answers(flat, list(map(resized, example, inputs)))
        flat.tree = tree
        return taken

    def named(name: str) -> Callable[[int, int | str], bool]:
        return lambda dim, size: size == name

    def fixed(at: int, count: int) -> Callable[[int, int | str], bool]:
        return lambda dim, size: (dim, size) == (at, count)

    counts = {
        (dim, size)
        for each in inputs
        for dim, size in enumerate(each["shape"])
        if isinstance(size, int)
    }
    # Least sizes that are computed are mostly those of a kernel, below which the module raises.
    branches = [
        conditions.in_words(text, [(each["name"], each["shape"]) for each in inputs])
        for text in guards
        if not text.endswith("!= 1") and ">" not in text
    ]
    if not (
        branches
        or any(least > 1 and takes(named(n), least - 1) for n, (least, _) in ranges.items())
        or any(
            most and most < MANY and takes(named(n), most + 1) for n, (_, most) in ranges.items()
        )
        or any(takes(fixed(at, n), n - 1 if n > 1 else 2) for at, n in counts)
    ):
        return None

    def told(size: int | str) -> str:
        if isinstance(size, int):
            return str(size)
        least, most = ranges[size]
        if most is None:
            return "any" if least <= 1 else f"{least} or more"
        return f"{least} to {most}"

    taken = ", ".join(
        f"{each['name']}: {' x '.join(map(told, each['shape'])) or 'a number'}" for each in inputs
    )
    more = f" with {' and '.join(branches[:2])}" if branches else ""
    return f"{path}({taken}){more}"


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)))


def _array(tensor: torch.Tensor) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(tensor.data_ptr(), dtype, tuple(tensor.shape), tensor.stride(), tensor)
