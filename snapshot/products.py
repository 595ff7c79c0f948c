"""How products of matrices are compiled: with weights packed once, by code that Inductor generates.

MKL packs the weights anew in every call, which is half of a call's time on few rows: a sentence
through MiniLM takes 7.0 ms of two threads with MKL, 3.2 ms with the generated code (and 6.0 where
GCC is left alone). The packed weights are constants of the form, beside the snapshot's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.select_algorithm import (
    ExternKernelCaller,
    add_preprocessing_fn,
    clear_preprocessing_fns,
)
from torch.fx import GraphModule

# The sums of such a product are an array of 24 vectors, set to zero in a loop. GCC makes a call of
# memset of that loop, and then the array stays in memory, where each step stores all of it.
_IN_REGISTERS = (
    "fno-tree-loop-distribute-patterns",
    "-param=max-completely-peel-times=64",
    "-param=max-completely-peeled-insns=2000",
)


@contextmanager
def generated_products(graph: GraphModule, wanted: bool = True) -> Iterator[dict[str, Any]]:
    """Options for Inductor, for as long as they hold."""
    if not wanted or not _own_memory(graph):
        yield {}
        return
    flags = cpp_builder._get_optimization_cflags  # there is no option for more flags

    def more(compiler: str, *args: Any, **kwargs: Any) -> tuple[list[str], list[str]]:
        found, linking = flags(compiler, *args, **kwargs)
        return [*found, *(_IN_REGISTERS if cpp_builder._is_gcc(compiler) else ())], linking

    add_preprocessing_fn(_generated)
    try:
        with patch.object(cpp_builder, "_get_optimization_cflags", more):
            yield {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP,ATEN"}
    finally:
        clear_preprocessing_fns()


def _own_memory(graph: GraphModule) -> bool:
    """Give each constant memory of its own, of the same strides; whether that could be done.

    Inductor packs a part of another tensor's memory wrongly (seen with torch 2.13).
    """
    nodes = graph.graph.find_nodes(op="get_attr")
    found = [attrgetter(node.target)(graph) for node in nodes]
    parts = [t for t in found if isinstance(t, Tensor) and t.untyped_storage().nbytes() > t.nbytes]
    copies = [part.detach().clone() for part in parts]
    for part, copy in zip(parts, copies, strict=True):
        if part.stride() != copy.stride():
            return False
        part.data = copy
    return True


def _generated(choices: list[Any]) -> list[Any]:
    """The generated code where there is some: one choice, so that none has to be timed."""
    own = [choice for choice in choices if not isinstance(choice, ExternKernelCaller)]
    return own[:1] or choices
