"""Modules that stand on an object, called with whatever their compiled form takes as well.

So one ``predict`` serves every form: ``self.model([[1, 2]])`` gives nested lists, eager or compiled.
"""

import inspect
import threading
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from zerowake.snapshot.arrays import Kind, as_tensor, give, is_array, kind_of
from zerowake.snapshot.strided import Array, contiguous_strides


def accept_arrays(target: Any) -> None:
    """Let each module that is an attribute of ``target`` take all kinds of arrays (``Kind``).

    It then answers in the same kind. A call with a tensor among its arguments is left alone, and
    so are parameters that are annotated as something else than a tensor.
    """
    for module in list(getattr(target, "__dict__", {}).values()):
        accept_arrays_at(module)


def accept_arrays_at(module: Any) -> None:
    """The same for one module; nothing for anything else."""
    if isinstance(module, torch.nn.Module) and not isinstance(module, torch.jit.ScriptModule):
        _Hooks(module).install()


class _Running(threading.local):
    """The kinds of the calls that run now, of each thread its own; a module may call itself."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []

    def __reduce__(self) -> Any:  # a copy of the module has its own
        return _Running, ()


class _Hooks:
    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._signature = inspect.signature(module.forward)
        self._running = _Running()

    def install(self) -> None:
        self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        self._module.register_forward_hook(self._after, always_call=True)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        kind = kind_of(value for value in (*args, *kwargs.values()) if is_array(value))
        if kind is Kind.TORCH:
            self._running.kinds.append(kind)
            return None
        bound = self._signature.bind(*args, **kwargs)
        place = next((p.device for p in module.parameters()), torch.device("cpu"))
        # lists know no dtype: a module of another precision is given its own
        floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        changed = False
        for name, value in bound.arguments.items():
            annotation = self._signature.parameters[name].annotation
            if is_array(value) and _may_be_tensor(annotation):
                try:
                    tensor = as_tensor(value).to(place)
                except (TypeError, ValueError):  # a list of something else
                    continue
                is_float = tensor.is_floating_point()
                bound.arguments[name] = tensor.to(floats) if is_float else tensor
                changed = True
        self._running.kinds.append(kind if changed else Kind.TORCH)
        return (bound.args, bound.kwargs)

    def _after(self, module: torch.nn.Module, args: Any, result: Any) -> Any:
        kinds = self._running.kinds
        kind = kinds.pop() if kinds else Kind.TORCH
        if kind is Kind.TORCH or result is None:
            return None
        return pytree.tree_map_only(torch.Tensor, partial(_as, kind), result)


def _may_be_tensor(annotation: Any) -> bool:
    return annotation is inspect.Parameter.empty or "Tensor" in str(annotation)


def _as(kind: Kind, tensor: torch.Tensor) -> Any:
    if kind is Kind.LIST:
        return tensor.tolist()
    tensor = tensor.detach().cpu()
    if kind is Kind.NUMPY:
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # it has none
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    tensor = (tensor.float() if half else tensor).resolve_conj().resolve_neg().contiguous()
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    return give(Array(tensor.data_ptr(), dtype, shape, contiguous_strides(shape), tensor), kind)
