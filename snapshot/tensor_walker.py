"""The kinds of torch and numpy among what ``load`` has left: tensors, arrays, modules and what describes them.

Not where the bytes of a tensor or array will lie: they are handed on as ``leaves``.
"""

import base64
import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zerowake.snapshot import names, refusals
from zerowake.snapshot.errors import FreezeError
from zerowake.snapshot.layout import TORCH_DTYPES, array_item_nbytes
from zerowake.snapshot.walker import Leaf, Node, Walker


class TensorWalker(Walker):
    """A ``Walker`` that knows the kinds of torch and numpy as well."""

    def kind(self, obj: Any, path: str) -> tuple[str, Callable[[Any, Any, str], Node]]:
        if found := _EXACT.get(type(obj)):
            return found
        if isinstance(obj, torch.Tensor):
            return "tensor", TensorWalker.tensor
        if isinstance(obj, torch.nn.Module):
            return "module", TensorWalker.module
        if isinstance(obj, np.generic) and not isinstance(obj, enum.Enum):  # a member is by name
            return "scalar", TensorWalker.scalar
        return super().kind(obj, path)

    def dtype(self, obj: torch.dtype, path: str) -> Node:
        name = str(obj).removeprefix("torch.")
        if name not in TORCH_DTYPES:
            self.refuse(obj, path, f"is the dtype {name}, which the format does not have")
        return {"v": name}

    def device(self, obj: torch.device, path: str) -> Node:
        return {"v": str(obj)}

    def size(self, obj: torch.Size, path: str) -> Node:
        return {"v": list(obj)}

    def tensor(self, obj: torch.Tensor, path: str) -> Node:
        if problem := refusals.odd_tensor(obj):
            self.refuse(obj, path, problem[0], problem[1])
        node: Node = {}
        if type(obj) is torch.nn.Parameter:
            node["p"] = True
        if obj.requires_grad:
            node["g"] = True
        if state := vars(obj):
            node["s"] = self.state(state, path)
        self.leaves.append(Leaf(obj, path, node))
        return node

    def array(self, obj: np.ndarray[Any, Any], path: str) -> Node:
        if array_item_nbytes(obj.dtype.str) is None:
            self.refuse(obj, path, f"is an array of {obj.dtype}", "use numbers or fixed strings")
        if any(stride < 0 for stride in obj.strides):
            self.refuse(obj, path, "runs backwards in memory", "use numpy.ascontiguousarray")
        node: Node = {"dtype": obj.dtype.str, "shape": list(obj.shape)}
        if not obj.flags.writeable:
            node["ro"] = True
        self.leaves.append(Leaf(obj, path, node))
        return node

    def scalar(self, obj: Any, path: str) -> Node:
        if array_item_nbytes(obj.dtype.str) is None:
            self.refuse(obj, path, f"is a numpy scalar of {obj.dtype}", "use a Python number")
        data = obj.tobytes()[: obj.dtype.itemsize]  # of an empty string numpy gives one character
        return {"dtype": obj.dtype.str, "v": base64.b64encode(data).decode("ascii")}

    def module(self, obj: torch.nn.Module, path: str) -> Node:
        cls = type(obj)
        if problem := refusals.odd_module(obj):
            self.refuse(obj, path, problem[0], problem[1])
        c = self.class_name(cls, names.MODULE, path)
        state = dict(vars(obj))
        node: Node = {"c": c}
        for attribute, field in (("_parameters", "p"), ("_buffers", "b"), ("_modules", "m")):
            if table := state.pop(attribute, None):
                node[field] = {k: self.value(v, f"{path}.{k}") for k, v in table.items()}
        if buffers := state.pop("_non_persistent_buffers_set", None):
            node["n"] = sorted(buffers)
        for name, default in vars(torch.nn.Module()).items():
            if name == "training" or name not in state:
                continue
            if "hook" in name and state[name] != default:
                raise FreezeError(
                    f"{path}.{name} holds hooks, which cannot be frozen; register them in wake(self)"
                )
            if state[name] == default:
                del state[name]
        node["s"] = self.state(state, path)
        return node

    def is_forward(self, owner: object, name: str) -> bool:
        return isinstance(owner, torch.nn.Module) and name == "forward"


_EXACT: dict[type, tuple[str, Callable[[Any, Any, str], Node]]] = {
    torch.dtype: ("dtype", TensorWalker.dtype),
    torch.device: ("device", TensorWalker.device),
    torch.Size: ("size", TensorWalker.size),
    np.ndarray: ("array", TensorWalker.array),
}
