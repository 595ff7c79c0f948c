"""Tensors, arrays and modules for a restore: made around mapped weights, or around a device's copy.

Knows the tensor table and nothing of files. Everything in a restore that needs torch or numpy is
here or below, so that functions without tensors come back in processes that have never imported either.
"""

import base64
import mmap
from typing import Any

import numpy as np
import torch

from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.layout import ALIGN_NBYTES, TORCH_NAMES
from zerowake.snapshot.manifest import Manifest
from zerowake.snapshot.rebuild import Builder, Make

_TORCH = {stored: getattr(torch, name) for stored, name in TORCH_NAMES.items()}


class Weights:
    """Stored tensors by index in the table, each made once: tied ones share a storage.

    ``place``: the device of its tensors; ``phases_ms``: what the copy to one took, by phase.
    """

    def __init__(self, manifest: Manifest, mappings: list[mmap.mmap]) -> None:
        self.tensors = manifest.tensors
        self.mappings = mappings
        self.starts = [segment.data_offset for segment in manifest.segments]
        self.made: dict[int, torch.Tensor] = {}
        self.place = torch.device("cpu")
        self.phases_ms: dict[str, float] = {}
        template = vars(torch.nn.Module())
        self.constants = {k: v for k, v in template.items() if not isinstance(v, dict | set)}
        self.tables = [(k, type(v)) for k, v in template.items() if isinstance(v, dict | set)]

    def makers(self) -> dict[str, Make]:
        """How nodes of the kinds that need torch or numpy become objects."""
        return {
            "tensor": self.tensor,
            "array": self.array,
            "scalar": self.scalar,
            "module": self.module,
            "dtype": self.dtype,
            "device": self.device,
            "size": self.size,
        }

    def whole(self, index: int) -> torch.Tensor:
        """A stored tensor with the dtype and shape of its table entry."""
        entry = self.tensors[index]
        dtype = _TORCH[entry.dtype]
        if index not in self.made:
            self.made[index] = tensor = self.fresh(index, dtype)
            return tensor if len(entry.shape) == 1 else tensor.view(entry.shape)
        return self.flat(index).view(dtype).view(entry.shape)

    def flat(self, index: int) -> torch.Tensor:
        """The bytes of a stored tensor, uint8."""
        if index not in self.made:
            self.made[index] = self.fresh(index, torch.uint8)
        return self.made[index].view(torch.uint8)

    def fresh(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """All elements of a stored tensor in one dimension, in a storage of their own."""
        entry = self.tensors[index]
        mapped = torch.frombuffer(
            self.mappings[entry.segment],
            dtype=dtype,
            count=entry.nbytes // dtype.itemsize,
            offset=self.starts[entry.segment] + entry.offset,
        )
        # Only among the odd-sized tensors at the end of a file: kernels choose their way, and so
        # round, by alignment, and torch's own memory is aligned like this.
        return mapped if mapped.data_ptr() % ALIGN_NBYTES == 0 else mapped.clone()

    def dtype(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        return getattr(torch, node["v"])

    def device(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        """A device that the object remembers is where its weights were, so it follows them."""
        return torch.device("meta") if node["v"] == "meta" else self.place

    def size(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        return torch.Size(node["v"])

    def tensor(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        index = node["i"]
        if "v" not in node:
            tensor = self.whole(index)
        else:
            name, shape, strides, offset = node["v"]
            tensor = torch.empty(0, dtype=getattr(torch, name), device=self.place)
            if index is None:
                tensor = tensor.new_empty_strided(shape, strides)
            else:
                flat = self.flat(index)
                at = flat.storage_offset()
                if at % tensor.element_size():
                    raise DamagedSnapshot(f"tensor {index} is not aligned for views of {name}")
                offset += at // tensor.element_size()
                tensor.set_(flat.untyped_storage(), offset, shape, strides)
        if "p" in node:
            tensor = torch.nn.Parameter(tensor, "g" in node)
        elif "g" in node:
            tensor.requires_grad_(True)
        if "s" in node:
            vars(tensor).update(builder.state(node["s"]))
        return tensor

    def array(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        shape, dtype = node["shape"], np.dtype(node["dtype"])
        if node["i"] is None:
            array = np.empty(shape, dtype)
        else:
            array = np.ndarray(
                shape, dtype, self.bytes_of(node["i"]), node.get("o", 0), node.get("strides")
            )
        if "ro" in node:
            array.flags.writeable = False
        return array

    def scalar(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        dtype, data = np.dtype(node["dtype"]), base64.b64decode(node["v"])
        return np.frombuffer(data, dtype)[0] if data else dtype.type()  # numpy's empty string

    def module(self, builder: Builder, node: dict[str, Any], shell: Any) -> Any:
        obj = object.__new__(builder.classes[node["c"]]) if shell is None else shell
        state = vars(obj)
        state.update(self.constants)
        for key, table in self.tables:
            state[key] = table()
        state.update(builder.state(node["s"]))
        if "p" in node:
            state["_parameters"] = builder.state(node["p"])
        if "b" in node:
            state["_buffers"] = builder.state(node["b"])
        if "m" in node:
            state["_modules"] = builder.state(node["m"])
        if "n" in node:
            state["_non_persistent_buffers_set"] = set(node["n"])
        return obj

    def bytes_of(self, index: int) -> memoryview:
        """The bytes of a stored tensor on the host, shared by its tensors and arrays."""
        return self.flat(index).detach().numpy().data


class WeightsOnDevice(Weights):
    """The same around one copy on an accelerator, made at once."""

    def __init__(self, manifest: Manifest, mappings: list[mmap.mmap], device: str) -> None:
        super().__init__(manifest, mappings)
        from zerowake.snapshot.staging import copy_to_device

        self.place = torch.device(device)
        data = [memoryview(m)[s:] for m, s in zip(mappings, self.starts, strict=True)]
        self.arena = copy_to_device(data, device)
        self.arena.wait()
        copied = self.arena.report
        self.phases_ms = {
            "context": copied.context_ms,
            "ring": copied.ring_ms,
            "copy": copied.copy_ms,
        }

    def fresh(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        entry = self.tensors[index]
        return self.arena.view(entry.segment, entry.offset, entry.nbytes).view(dtype)

    def bytes_of(self, index: int) -> memoryview:
        """The mapped bytes: arrays stay on the host, whatever the device."""
        entry = self.tensors[index]
        start = self.starts[entry.segment] + entry.offset
        return memoryview(self.mappings[entry.segment])[start : start + entry.nbytes]
