"""The weights of a compiled library: where the snapshot's files are mapped, or in the form's own file.

The library believes whatever it is given, and a wrong address or stride ends the process: shape,
dtype and strides of each are checked.
"""

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.form import CONSTANTS, ModuleForm, Weight, module_node
from zerowake.snapshot.layout import ALIGN_NBYTES, TORCH_NAMES
from zerowake.snapshot.libtorch import Library
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.strided import ELEMENTS, Array, contiguous_strides, same_layout


def weights(
    module: ModuleForm,
    snapshot: Snapshot,
    mapped: Sequence[mmap.mmap],
    stored: mmap.mmap | None,
    library: Library,
) -> list[Array]:
    """An array for each of the library's constants, in its order, of the layout that it wants.

    mapped: the snapshot's weights files. stored: the form's CONSTANTS. Raises UnusableForm for a constant that nothing holds, or
    that has another dtype, shape or strides.
    """
    nodes = _tensors(snapshot, module.path)
    arrays = []
    for constant in library.constants:
        fqn = constant.fqn.removeprefix("module.")  # the wrapper's name for what was compiled
        wanted = module.constants.get(fqn)
        if wanted is not None and wanted.offset is not None:
            array = _in_file(stored, wanted, wanted.offset)
        elif wanted is not None and fqn in nodes:
            array = _in_snapshot(snapshot, mapped, nodes[fqn])
        else:
            raise UnusableForm(f"{module.library} wants {constant.fqn!r:.80}, which nothing holds")
        if (
            (array.dtype, array.dtype, array.shape) != (constant.dtype, wanted.dtype, wanted.shape)
            or not same_layout(array.shape, array.strides, wanted.strides)
        ):  # fmt: skip
            raise UnusableForm(
                f"{constant.fqn} is {array.dtype} {array.shape} with strides {array.strides}; the "
                f"library wants {constant.dtype} {wanted.shape} with strides {wanted.strides}"
            )
        arrays.append(array)
    return arrays


def _tensors(snapshot: Snapshot, path: str) -> dict[str, dict[str, Any]]:
    """Parameters and buffers of a module by FQN (``layer.0.weight``), as nodes of the skeleton."""
    nodes = snapshot.skeleton.nodes
    found: dict[str, dict[str, Any]] = {}

    def walk(index: int, prefix: str) -> None:
        node = nodes[index]
        for table in ("p", "b"):
            for name, value in node.get(table, {}).items():
                if isinstance(value, list):
                    found[prefix + name] = nodes[value[0]]
        for name, value in node.get("m", {}).items():
            if isinstance(value, list):
                walk(value[0], f"{prefix}{name}.")

    walk(module_node(snapshot, path), "")
    return found


def _in_snapshot(snapshot: Snapshot, mapped: Sequence[mmap.mmap], node: dict[str, Any]) -> Array:
    if node["i"] is None:
        raise UnusableForm("a weight without elements cannot be bound")
    entry = snapshot.manifest.tensors[node["i"]]
    segment = snapshot.manifest.segments[entry.segment]
    dtype, shape, offset = TORCH_NAMES[entry.dtype], tuple(entry.shape), 0
    strides = contiguous_strides(shape)
    if "v" in node:
        dtype, shape, strides, offset = node["v"]
    start = segment.data_offset + entry.offset
    owner, address = _mapped(mapped[entry.segment], start, entry.nbytes)
    return Array(address + offset * ELEMENTS[dtype][0], dtype, tuple(shape), tuple(strides), owner)


def _in_file(mapping: mmap.mmap | None, weight: Weight, offset: int) -> Array:
    nbytes = weight.nbytes
    if offset < 0 or offset + nbytes > (len(mapping) if mapping is not None else 0):
        raise UnusableForm(f"{CONSTANTS} ends before a constant of {nbytes} bytes at {offset}")
    owner, address = _aligned(b"") if mapping is None else _mapped(mapping, offset, nbytes)
    return Array(address, weight.dtype, weight.shape, weight.strides, owner)


def _mapped(mapping: mmap.mmap, start: int, nbytes: int) -> tuple[Any, int]:
    """An owner and the address of bytes where they are mapped; copied only if they must be."""
    owner = ctypes.c_char.from_buffer(mapping)  # holds on to the mapping
    address = ctypes.addressof(owner) + start
    if address % ALIGN_NBYTES:  # as torch's own memory is: kernels take wider loads for granted
        return _aligned(memoryview(mapping)[start : start + nbytes])
    return owner, address


def _aligned(data: Any) -> tuple[Any, int]:
    memory = (ctypes.c_char * (len(data) + ALIGN_NBYTES))()
    address = -(-ctypes.addressof(memory) // ALIGN_NBYTES) * ALIGN_NBYTES
    at = address - ctypes.addressof(memory)
    memoryview(memory).cast("B")[at : at + len(data)] = data
    return memory, address
