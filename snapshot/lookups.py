"""Row numbers that a module looks up: bounded before the call, or checked by the module itself.

Compiled code trusts them: one that is out of range reads foreign memory, or fails a check in a
parallel loop, which ends the process. What is an argument is looked at before the call (``bounds``).
Row numbers that the module computes are clamped, and one more result tells whether that has changed
any (``guard``): MiniLM has five such places, most of them in its masks.

Knows the operators of torch's export, nothing of snapshots.
"""

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from zerowake.snapshot.errors import CannotCompile

aten = torch.ops.aten
_CONVERSIONS = frozenset((aten.to.dtype, aten._to_copy.default))
_SAME_VALUES = frozenset(
    (
        aten.view.default,
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.contiguous.default,
        aten.clone.default,
    )
)
_LISTS = frozenset(("index", "index_put"))
_FLAT = frozenset(("take", "put"))
_ALONG_DIM = frozenset(
    (
        *("gather", "scatter", "scatter_add", "scatter_reduce"),
        *("index_select", "index_add", "index_copy", "index_fill", "index_reduce"),
    )
)
_FROM_THE_END = _LISTS | _FLAT | {"index_fill"}  # these take negative ones too
_ROW_NUMBERS = frozenset(("index", "indices", "target"))  # as schemas name such arguments
_BY_THEMSELVES = frozenset(("embedding_bag", "take_along_dim"))  # raises; takes the remainder


@dataclass(frozen=True, slots=True)
class _Lookup:
    """place: of the row numbers among the operator's arguments, and in that one if it is a list.

    dim: of ``table``; None where its elements are counted.
    """

    node: Node
    place: tuple[int, ...]
    index: Node
    table: Node
    dim: int | None
    from_the_end: bool


def bounds(graph: GraphModule) -> dict[Node, int]:
    """Nodes whose values are row numbers of a table (or a count of them), with its number of rows."""
    found: dict[Node, int] = {}
    for lookup in _lookups(graph):
        source, rows = _source(lookup.index), _rows(lookup)
        if source is not None and rows is not None:
            found[source] = min(rows, found.get(source, rows))
    return found


def guard(graph: GraphModule) -> list[str]:
    """Clamp row numbers that ``bounds`` does not see to; one result more tells which were wrong.

    That is the last one, a bool for each place where rows are looked up; returns words for those.
    Raises CannotCompile for what cannot be clamped.
    """
    for part in graph.modules():
        if part is not graph and isinstance(part, GraphModule):
            for lookup in _lookups(part):
                raise CannotCompile(f"{_where(lookup.node)} looks up rows in a branch or a loop")
    output = graph.graph.output_node()
    wrong, lines = [], []
    for lookup in list(_lookups(graph)):
        if _source(lookup.index) is None or _rows(lookup) is None:
            wrong.append(_clamp(graph.graph, lookup))
            lines.append(_where(lookup.node))
    if wrong:
        with graph.graph.inserting_before(output):
            told = graph.graph.call_function(aten.stack.default, (wrong,))
        output.args = ((*output.args[0], told),)  # type: ignore[misc]
        graph.recompile()
    return lines


def _lookups(graph: GraphModule) -> Iterator[_Lookup]:
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        name = schema.name.removeprefix("aten::").rstrip("_")
        for place, (argument, value) in enumerate(zip(schema.arguments, node.args, strict=False)):
            if argument.name not in _ROW_NUMBERS or name in _BY_THEMSELVES:
                continue
            if name in _LISTS:
                yield from _in_list(node, place, value)
            elif isinstance(value, Node | list) and not _is_safe(node, value):
                known = name in _FLAT | _ALONG_DIM | {"embedding"}
                if not known or isinstance(value, list):
                    raise CannotCompile(
                        f"{_where(node)}: {node.target} does not check its {argument.name}"
                    )
                dim = 0 if name == "embedding" else node.args[1] if name in _ALONG_DIM else None
                from_the_end = name in _FROM_THE_END
                yield _Lookup(node, (place,), value, node.args[0], dim, from_the_end)


def _is_safe(node: Node, value: Any) -> bool:
    """Whether an operator's ``index`` or ``target`` is a size, or holds no row numbers."""
    found = value.meta["val"] if isinstance(value, Node) else None
    if isinstance(found, torch.SymInt):
        if free_unbacked_symbols(found):
            raise CannotCompile(f"{_where(node)} takes its place from a tensor's values")
        return True
    return isinstance(found, torch.Tensor) and found.is_floating_point()


def _in_list(node: Node, place: int, indices: Any) -> Iterator[_Lookup]:
    dim = 0
    for at, index in enumerate(indices):
        if index is None:
            dim += 1
        elif index.meta["val"].dtype in (torch.bool, torch.uint8):  # a mask
            dim += index.meta["val"].ndim
        else:
            yield _Lookup(node, (place, at), index, node.args[0], dim, True)  # type: ignore[arg-type]
            dim += 1


def _source(index: Node) -> Node | None:
    """The argument whose values ``index`` has, or the varying size that it counts up to."""
    while index.op == "call_function" and (
        index.target in _SAME_VALUES or (index.target in _CONVERSIONS and _keeps(index))
    ):
        index = index.args[0]  # type: ignore[assignment]
    if index.op == "placeholder":
        # a NaN is neither too small nor too large
        return None if index.meta["val"].is_floating_point() else index
    if index.target is aten.arange.default or (
        index.target is aten.arange.start and index.args[0] == 0
    ):
        count = index.args[-1]
        if isinstance(count, Node) and isinstance(count.meta["val"], torch.SymInt):
            size = count.meta["val"].node.expr
            return count if size.is_Symbol and not free_unbacked_symbols(size) else None
    return None


def _keeps(conversion: Node) -> bool:
    """Whether it changes no value: from integers to a type that has all of them."""
    before, after = conversion.args[0].meta["val"].dtype, conversion.meta["val"].dtype  # type: ignore[union-attr]
    if any(t.is_floating_point or t.is_complex or t is torch.bool for t in (before, after)):
        return False
    old, new = torch.iinfo(before), torch.iinfo(after)
    return bool(new.min <= old.min and old.max <= new.max)


def _rows(lookup: _Lookup) -> int | None:
    """How many rows there are, from 0, where that is one number for all calls."""
    if lookup.dim is None or lookup.from_the_end:
        return None
    rows = lookup.table.meta["val"].shape[lookup.dim]
    return rows if isinstance(rows, int) else None


def _clamp(graph: torch.fx.Graph, lookup: _Lookup) -> Node:
    """Have ``lookup`` take row numbers that exist; whether any did not."""
    node, table, index = lookup.node, lookup.table, lookup.index
    with graph.inserting_before(node):
        if lookup.dim is None:
            rows = graph.call_function(aten.sym_numel.default, (table,))
        else:
            rows = graph.call_function(aten.sym_size.int, (table, lookup.dim))
        first = graph.call_function(operator.neg, (rows,)) if lookup.from_the_end else 0
        last = graph.call_function(operator.sub, (rows, 1))
        clamped = graph.call_function(aten.clamp.default, (index, first, last))
        differs = graph.call_function(aten.ne.Tensor, (index, clamped))
        wrong = graph.call_function(aten.any.default, (differs,))
    place, *inside = lookup.place
    new: Any = clamped
    if inside:
        new = list(node.args[place])  # type: ignore[arg-type]
        new[inside[0]] = clamped
    node.update_arg(place, new)
    return wrong


def _where(node: Node) -> str:
    """The innermost line outside of torch that ``node`` comes from, or else the operator."""
    frames = re.findall(
        r'File "(.+)", line \d+, in .+\n\s*(.+)', node.meta.get("stack_trace") or ""
    )
    own = [line for file, line in frames if not file.startswith(torch.__path__[0])]
    return f"`{own[-1]:.120}`" if own else str(node.target)
