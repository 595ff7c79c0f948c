"""How products of matrices are compiled: with weights packed once, by code that Inductor generates.

MKL packs the weights anew in every call, which is half of a call's time on few rows: a sentence
through MiniLM takes 7.0 ms of two threads with MKL, 3.2 ms with the generated code (and 6.0 where
GCC is left alone). The packed weights are constants of the form, beside the snapshot's own. The code
divides its work by the threads there are when it runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any
from unittest.mock import patch

import torch
from sympy import sympify
from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.select_algorithm import (
    ExternKernelCaller,
    add_preprocessing_fn,
    clear_preprocessing_fns,
)
from torch._inductor.virtualized import V
from torch.fx import GraphModule
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

# The sums of such a product are an array of 24 vectors, set to zero in a loop. GCC makes a call of
# memset of that loop, and then the array stays in memory, where each step stores all of it.
_IN_REGISTERS = (
    "fno-tree-loop-distribute-patterns",
    "-param=max-completely-peel-times=64",
    "-param=max-completely-peeled-insns=2000",
)

# Inductor writes the number of threads of the compiling process into a product, which then uses no
# more on a larger machine. What of it can be known only at run time it has for rows that vary.
_AT_RUN_TIME = {
    "constexpr int64_t num_threads = {{num_threads}};": "const int64_t num_threads = "
    '{{ "omp_get_max_threads()" if num_threads > 1 else 1 }};',
    "* {{num_threads}} >=": "* num_threads >=",
    "tid < {{num_threads}}": "tid < num_threads",
}
_LEAST_THREADS = 2  # with 1 the code would be made for a single thread


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
        with patch.object(cpp_builder, "_get_optimization_cflags", more), _divided_at_run_time():
            yield {
                "max_autotune_gemm": True,
                "max_autotune_gemm_backends": "CPP,ATEN",
                "cpp.threads": max(_LEAST_THREADS, torch.get_num_threads()),
            }
    finally:
        clear_preprocessing_fns()


@contextmanager
def _divided_at_run_time() -> Iterator[None]:
    # Imported first of all, it runs into a cycle of imports.
    from torch._inductor.codegen.cpp_gemm_template import CppGemmTemplate

    render = CppGemmTemplate._template_from_string

    def changed(source: str) -> Any:
        for written, wanted in _AT_RUN_TIME.items():
            source = source.replace(written, wanted)
        return render(source)

    with (
        patch.object(CppGemmTemplate, "_template_from_string", staticmethod(changed)),
        patch.object(CppGemmTemplate, "is_dynamic_M", _Always(), create=True),
    ):
        yield


class _Always:
    """An attribute that is true, whatever is assigned."""

    def __get__(self, of: object, kind: type | None = None) -> bool:
        return True

    def __set__(self, of: object, value: bool) -> None:
        pass


def _own_memory(graph: GraphModule) -> bool:
    """Give each constant memory of its own, of the same strides; whether that could be done.

    Inductor packs a part of another tensor's memory wrongly (seen with torch 2.13).
    """
    nodes = graph.graph.find_nodes(op="get_attr")
    found = [each for node in nodes if isinstance(each := attrgetter(node.target)(graph), Tensor)]
    parts = [t for t in found if t.untyped_storage().nbytes() != t.nbytes]
    copies = [part.detach().clone() for part in parts]
    if [part.stride() for part in parts] != [copy.stride() for copy in copies]:
        return False
    for part, copy in zip(parts, copies, strict=True):
        part.data = copy
    return True


def _generated(choices: list[Any]) -> list[Any]:
    """The generated code where it is right and quicker, else the library: one, so none is timed."""
    own = [each for each in choices if not isinstance(each, ExternKernelCaller)]
    if own and _is_for(own[0].layout):
        return own[:1]
    return [each for each in choices if each not in own][:1] or choices


def _is_for(result: Any) -> bool:
    """Whether products with this result are generated: of float32, and never without rows.

    Generated code divides by the number of rows. Shorter numbers are left to oneDNN, which knows the
    processor's instructions for them.
    """
    # A size from 2 may turn out to be 1 as well: compile tries that afterwards.
    sizes = {
        size: ValueRanges(1, known.upper) if known.lower == 2 else known
        for size, known in V.graph.sizevars.shape_env.var_to_range.items()
    }
    least = [bound_sympy(sympify(size), sizes).lower for size in result.size]
    return bool(result.dtype == torch.float32 and all(size >= 1 for size in least))
