"""Which sizes of its inputs an exported program is right for: ranges, and conditions on them.

Reads what torch.export and Inductor tell; tries nothing (``trial``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from sympy import Eq
from torch.fx import GraphModule
from torch.utils._sympy.printers import PythonPrinter

from zerowake.snapshot import conditions
from zerowake.snapshot.calls import Calls
from zerowake.snapshot.errors import CannotCompile
from zerowake.snapshot.lookups import bounds


def generality(tensors: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Greater for a better example: export takes a size of 1 for one that never varies."""
    return -sum(t.shape.count(1) for t in tensors), sum(t.numel() for t in tensors)


def dynamic(examples: Sequence[list[torch.Tensor]]) -> tuple[dict[int, Any], ...]:
    """Sizes that differ between calls may vary; so may all others but those of 1, if they can."""
    largest = [
        [max(sizes) for sizes in zip(*(t.shape for t in ts), strict=True)]
        for ts in zip(*examples, strict=True)
    ]
    auto = torch.export.Dim.AUTO
    return tuple({place: auto for place, size in enumerate(sizes) if size > 1} for sizes in largest)


def inputs_of(
    calls: Calls,
    names: list[str],
    program: Any,
    graph: GraphModule,
    examples: Sequence[list[torch.Tensor]],
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int | None]]]:
    """The inputs with their sizes, and the range of each size that varies."""
    nodes = graph.graph.find_nodes(op="placeholder")
    inputs, ranges = [], {}
    tables = bounds(graph)
    counts = {
        str(node.meta["val"].node.expr): rows
        for node, rows in tables.items()
        if isinstance(node.meta.get("val"), torch.SymInt)
    }
    for place, (name, node) in enumerate(zip(names, nodes, strict=True)):
        tensor = node.meta["val"]
        shape: list[int | str] = []
        for dim, size in enumerate(tensor.shape):
            if not isinstance(size, torch.SymInt):
                shape.append(int(size))
                continue
            expression = size.node.expr
            if expression.is_Integer:  # varied in theory, and the module wants this one
                shape.append(int(expression))
                continue
            if not expression.is_Symbol:
                raise CannotCompile(
                    f"self.{calls.path}: {name} must have {expression} entries in dimension {dim}"
                )
            limits = program.range_constraints[expression]
            least, most = int(limits.lower), limits.upper
            most = min(most, counts.get(str(expression), most))
            # 1 is special to export (broadcasting); the probe shows whether it is right.
            proved = min(int(tensors[place].shape[dim]) for tensors in examples)
            ranges[str(expression)] = (
                1 if least == 2 and proved <= 1 else least,
                int(most) if str(most).isdigit() else None,
            )
            shape.append(str(expression))
        dtype = str(tensor.dtype).removeprefix("torch.")
        inputs.append({"name": name, "dtype": dtype, "shape": shape, "below": tables.get(node, 0)})
    return inputs, ranges


def guards_of(
    calls: Calls,
    program: Any,
    inputs: Sequence[Mapping[str, Any]],
    ranges: Mapping[str, tuple[int, int | None]],
) -> list[str]:
    """What holds for all sizes that the program is right for, beside their ranges."""

    def size(found: re.Match[str]) -> str:
        return str(inputs[int(found[1])]["shape"][int(found[2])])

    guards = []
    for code in program._guards_code:
        text = re.sub(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]", size, code)
        text = _plain(text)
        left, _, right = text.partition(" == ")
        if left == right or re.fullmatch(r"\w+ [<>]=? \d+", text):  # one size, or its range
            continue
        try:
            is_met = conditions.parse(text, ranges)
        except ValueError:
            raise CannotCompile(f"self.{calls.path} is right only for sizes with {code}") from None
        if any(name in text for name in ranges):
            guards.append(text)
        elif not is_met({}):
            raise CannotCompile(f"self.{calls.path} wants {code}")
    return guards


def _plain(text: str) -> str:
    """torch's own names for functions of sizes, as Python's."""
    return re.sub(r"\btorch\.sym_(\w+)", r"\1", text)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a graph's sizes before it is lowered. env: None where no size varies."""

    env: Any
    guards: int
    replacements: Mapping[Any, Any]

    @classmethod
    def of(cls, graph: GraphModule) -> "Known":
        sizes = chain.from_iterable(
            node.meta["val"].shape for node in graph.graph.find_nodes(op="placeholder")
        )
        env = next((s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)), None)
        return cls(env, *((len(env.guards), dict(env.replacements)) if env else (0, {})))

    def since(self, path: str, ranges: Mapping[str, Any]) -> list[str]:
        """Conditions that Inductor has added: sizes, and sums of them, that it took for constants.

        Its inequalities choose between kernels that are all right for all sizes.
        """
        if self.env is None:
            return []
        new = {a: b for a, b in self.env.replacements.items() if self.replacements.get(a) != b}
        found = [g.expr for g in self.env.guards[self.guards :] if isinstance(g.expr, Eq)]
        inner = {a: b for a, b in self.env.replacements.items() if str(a) not in ranges}
        found = [each.xreplace(inner) for each in found]
        found += [Eq(a, b, evaluate=False) for a, b in new.items() if str(a) in ranges]
        texts = {
            _plain(PythonPrinter().doprint(each))
            for each in found
            if each.free_symbols and {*map(str, each.free_symbols)} <= ranges.keys()
        }
        for text in texts:
            try:
                conditions.parse(text, ranges)
            except ValueError:
                raise CannotCompile(f"self.{path} is right only for sizes with {text}") from None
        return sorted(texts)
