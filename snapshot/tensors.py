"""Which bytes of memory the leaves of an object cover, and so what is stored once.

Knows no file. Views that overlap are stored together, as the run of bytes that they cover, under the
path of the first; a contiguous tensor that covers its whole run keeps its dtype and shape.
Tensors that share a storage without overlapping (weights read from one mapped file) are apart.
"""

import ctypes
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from zerowake.snapshot.errors import FreezeError
from zerowake.snapshot.layout import ALIGN_NBYTES, TORCH_DTYPES, Piece
from zerowake.snapshot.strided import reach
from zerowake.snapshot.walker import Leaf

_ITEM_MAX = 16  # the widest element, complex128
# numpy's kind and size of an element to safetensors' dtype; others are stored as plain bytes
_ARRAY_DTYPES = {
    "b1": "BOOL",
    "u1": "U8",
    "i1": "I8",
    "i2": "I16",
    "u2": "U16",
    "f2": "F16",
    "i4": "I32",
    "u4": "U32",
    "f4": "F32",
    "i8": "I64",
    "u8": "U64",
    "f8": "F64",
    "c8": "C64",
}


@dataclass(slots=True, eq=False)
class Member:
    """A leaf and the bytes that it covers. ``base``: where its storage starts."""

    leaf: Leaf
    device: str
    base: int
    start: int
    end: int
    item: int
    dtype: str
    whole: bool
    keep: object  # the storage, so that its memory outlives what the probe does to the tensor

    def moved(self) -> bool:
        return isinstance(self.keep, torch.UntypedStorage) and self.keep.data_ptr() != self.base


@dataclass(slots=True, eq=False)
class Run:
    """Bytes ``start`` to ``end`` of a device's memory, to be stored once under ``piece``."""

    device: str
    start: int
    end: int
    members: list[Member]
    piece: Piece
    saved: bytes | None = None  # what ``load`` left, when wake or the probe wrote there
    awake: bytes | None = None  # what ``wake`` made of that
    first_use: int = field(default=1 << 62)

    @property
    def mutated(self) -> bool:
        return self.saved is not None

    def read(self) -> memoryview:
        """The bytes as ``load`` left them, padded to the piece's length."""
        if self.saved is not None:
            return memoryview(self.saved)
        return self.current()

    def current(self) -> memoryview:
        self.check_still_there()
        nbytes = self.end - self.start
        if self.device == "cpu":
            data = memoryview((ctypes.c_ubyte * nbytes).from_address(self.start)).cast("B")
        else:
            data = memoryview(self.flat().cpu().numpy().data).cast("B")
        if nbytes < self.piece.nbytes:
            data = memoryview(bytes(data).ljust(self.piece.nbytes, b"\0"))
        return data

    @property
    def is_array(self) -> bool:
        return isinstance(self.members[0].leaf.value, np.ndarray)

    def put_back(self) -> None:
        """Undo what the probe wrote."""
        data = self.awake if self.awake is not None else self.saved
        if data is None:
            return
        self.check_still_there()
        nbytes = self.end - self.start
        if self.device == "cpu":
            ctypes.memmove(self.start, data, nbytes)
        else:
            self.flat().copy_(torch.frombuffer(bytearray(data[:nbytes]), dtype=torch.uint8))

    def check_still_there(self) -> None:
        for member in self.members:
            if member.moved():
                raise FreezeError(
                    f"{member.leaf.path}: predict resized its storage; make such a tensor in "
                    "wake(self), or do not resize it"
                )

    def flat(self) -> torch.Tensor:
        """The run as bytes on its device. Off the CPU, all members share one storage."""
        tensor = self.members[0].leaf.value
        assert isinstance(tensor, torch.Tensor)
        storage = tensor.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return flat.set_(storage, self.start - storage.data_ptr(), (self.end - self.start,), (1,))


def gather(leaves: list[Leaf]) -> list[Run]:
    """The runs that the leaves cover, in the order of the leaves; empty leaves have none."""
    order = {id(leaf): i for i, leaf in enumerate(leaves)}
    members = [m for m in map(_member, leaves) if m.end > m.start]
    members.sort(key=lambda m: (m.device, m.start, -m.end))
    groups: list[list[Member]] = []
    end, device = 0, ""
    for member in members:
        if groups and member.device == device and member.start < end:
            groups[-1].append(member)
            end = max(end, member.end)
        else:
            groups.append([member])
            end, device = member.end, member.device
    for group in groups:
        group.sort(key=lambda m: order[id(m.leaf)])
    groups.sort(key=lambda group: order[id(group[0].leaf)])
    taken: set[str] = set()
    return [_run(group, taken) for group in groups]


def align(runs: list[Run]) -> bool:
    """Move runs to memory that starts on a multiple of 64 bytes, as it will after a restore.

    Kernels choose their way by alignment and then round differently (a matrix-vector product of
    MKL does): weights that a loader mapped at odd addresses would not come back with the same bits.
    Returns whether anything has moved; ``gather`` must then be asked again.
    """
    moved = False
    for run in runs:
        has_array = any(isinstance(member.leaf.value, np.ndarray) for member in run.members)
        if run.device != "cpu" or has_array or run.start % ALIGN_NBYTES == 0:
            continue
        data = run.current()
        storage = torch.empty(len(data), dtype=torch.uint8)
        storage.numpy()[:] = np.frombuffer(data, np.uint8)
        for member in run.members:
            tensor = member.leaf.value
            assert isinstance(tensor, torch.Tensor)
            offset = (member.start - run.start) // tensor.element_size()
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.set_(storage.untyped_storage(), offset, tensor.shape, tensor.stride())
        moved = True
    return moved


def fill_nodes(leaves: list[Leaf], runs: list[Run], place_of: dict[int, int]) -> None:
    """Write into each leaf's node which stored tensor it is, and its view when it is not whole.

    ``place_of``: index in the tensor table by id of the run.
    """
    for leaf in leaves:
        leaf.node["i"] = None
        if isinstance(leaf.value, torch.Tensor) and leaf.value.numel() == 0:
            leaf.node["v"] = _view(leaf.value, 0)
    for run in runs:
        for member in run.members:
            value, node = member.leaf.value, member.leaf.node
            node["i"] = place_of[id(run)]
            offset = member.start - run.start
            if isinstance(value, torch.Tensor):
                stored = (run.piece.dtype, run.piece.shape)
                if not member.whole or (member.dtype, tuple(value.shape)) != stored:
                    node["v"] = _view(value, offset // value.element_size())
            else:
                if offset:
                    node["o"] = offset
                if not value.flags.c_contiguous:
                    node["strides"] = list(value.strides)


def _member(leaf: Leaf) -> Member:
    value = leaf.value
    if isinstance(value, torch.Tensor):
        keep = value.untyped_storage()
        item, dtype = TORCH_DTYPES[_dtype(value)]
        extent = reach(value.shape, value.stride()) * item
        start = value.data_ptr()
        base = keep.data_ptr()
        device = str(value.device)
        whole = value.is_contiguous()
        return Member(leaf, device, base, start, start + extent, item, dtype, whole, keep)
    root: Any = value
    while isinstance(root.base, np.ndarray):
        root = root.base
    start = value.__array_interface__["data"][0]
    extent = 0
    if value.size:
        pairs = zip(value.shape, value.strides, strict=True)
        extent = value.itemsize + sum((n - 1) * stride for n, stride in pairs)
    base = min(start, root.__array_interface__["data"][0])
    dtype = _ARRAY_DTYPES.get(value.dtype.str[1:], "")
    item = min(value.itemsize, _ITEM_MAX) if value.dtype.kind not in "SU" else 4
    whole = value.flags.c_contiguous
    return Member(leaf, "cpu", base, start, start + extent, item, dtype, whole, root)


def _run(group: list[Member], taken: set[str]) -> Run:
    start, end = min(m.start for m in group), max(m.end for m in group)
    name = _name(group[0].leaf.path, taken)
    alike = len({(m.item, m.dtype) for m in group}) == 1 and group[0].dtype
    aligned = all((m.start - start) % m.item == 0 for m in group)
    for member in group:
        covers = member.whole and (member.start, member.end) == (start, end)
        if covers and alike and aligned:
            piece = Piece(name, end - start, member.dtype, tuple(member.leaf.value.shape))
            return Run(member.device, start, end, group, piece)
    if alike and aligned:
        item, dtype = group[0].item, group[0].dtype
        piece = Piece(name, end - start, dtype, ((end - start) // item,))
        return Run(group[0].device, start, end, group, piece)
    # plain bytes: start on a multiple of the widest element from the storage's start, pad the end
    base = min(m.base for m in group)
    start = base + (start - base) // _ITEM_MAX * _ITEM_MAX
    nbytes = -(-(end - start) // ALIGN_NBYTES) * ALIGN_NBYTES
    return Run(group[0].device, start, end, group, Piece(name, nbytes, "U8", (nbytes,)))


def _name(path: str, taken: set[str]) -> str:
    """The attribute path as a tensor name: ``self.a['b'][0].w`` is a.b.0.w."""
    name = re.sub(r"\[['\"]?(.*?)['\"]?\]", r".\1", path).removeprefix("self").strip(".")
    name = re.sub(r"[^\x21-\x7e]", "_", name)[:200] or "value"
    unique, count = name, 1
    while unique in taken or unique == "__metadata__":
        count += 1
        unique = f"{name}~{count}"
    taken.add(unique)
    return unique


def _view(tensor: torch.Tensor, offset: int) -> list[Any]:
    return [_dtype(tensor), list(tensor.shape), list(tensor.stride()), offset]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
