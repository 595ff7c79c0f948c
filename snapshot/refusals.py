"""What cannot be frozen, by name: the words for objects that people leave behind most often.

Knows no path and no skeleton; the walkers ask and say where it was. Imports torch only once it is
given something of it.
"""

import io
import socket
import threading
import types
from typing import TYPE_CHECKING

from zerowake.snapshot.layout import TORCH_DTYPES

if TYPE_CHECKING:
    import torch

REMEDY = "make it in wake(self), or keep only plain data"


def odd_module(module: "torch.nn.Module") -> tuple[str, str] | None:
    """What keeps a module from being frozen, and the remedy."""
    import torch

    where = type(module).__module__
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule, which has no Python structure to freeze", "freeze its source"
    if "quantized" in where or where.startswith("torch.ao."):
        return "is a quantised module", "freeze the float model for now"
    if where == "torch.nn.utils.parametrize":
        remedy = "call torch.nn.utils.parametrize.remove_parametrizations at the end of load"
        return "has parametrised weights", remedy
    if where.startswith("torch._dynamo"):
        return "is compiled", "call torch.compile in wake(self)"
    return None


def odd_tensor(tensor: "torch.Tensor") -> tuple[str, str] | None:
    """What keeps a tensor from being frozen, and the remedy."""
    import torch

    plain = "keep a plain tensor"
    if tensor.is_quantized:
        return "is a quantised tensor", "freeze the float model for now"
    if tensor.is_nested:
        return "is a nested tensor", plain
    if tensor.layout != torch.strided:
        return f"is a sparse tensor ({tensor.layout})", "call to_dense()"
    if tensor.device.type == "meta":
        return "is on the meta device and has no bytes", "load its weights"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return "is a tensor subclass", plain
    if tensor.is_conj() or tensor.is_neg():
        return "is a lazy conjugate or negation", "call resolve_conj().resolve_neg()"
    if tensor.grad_fn is not None:
        return "is part of a gradient graph", "call detach()"
    if tensor.grad is not None:
        return "has a gradient", "call zero_grad(set_to_none=True)"
    if str(tensor.dtype).removeprefix("torch.") not in TORCH_DTYPES:
        return f"has the dtype {tensor.dtype}, which the format does not have", plain
    return None


def odd_object(obj: object) -> str | None:
    """A word on objects that people leave behind most often."""
    if isinstance(obj, io.IOBase):
        return "is an open file"
    if isinstance(obj, socket.socket):
        return "is a socket"
    if isinstance(obj, threading.Thread):
        return "is a thread"
    if isinstance(obj, types.ModuleType):
        return "is a module"
    if isinstance(obj, types.GeneratorType):
        return "is a running generator"
    if type(obj).__module__ == "_thread" or type(obj).__module__ == "threading":
        return "is a lock"
    if (type(obj).__module__, type(obj).__name__) == ("torch._C", "Generator"):
        return "is a random generator"
    return None
