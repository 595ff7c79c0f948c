"""Where each tensor lies in which weights file: pure arithmetic on sizes.

Knows no torch, no files and no meaning of a tensor. Also the head of a safetensors file, since it
is nothing but this layout written down (format: https://github.com/huggingface/safetensors#format).
"""

import json
import re
from typing import Any, NamedTuple

ALIGN_NBYTES = 64  # a cache line, and the widest vector load
PAGE_NBYTES = 4096
SEGMENT_NBYTES = 4 << 30

# safetensors' dtype names that a tensor table may use, with the bytes of an element
ITEM_NBYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}

# torch's name of a dtype, bytes of an element, safetensors' name ("" when it has none: such a
# tensor is stored as plain bytes, U8, and the skeleton names its dtype)
TORCH_DTYPES = {
    "bool": (1, "BOOL"),
    "uint8": (1, "U8"),
    "int8": (1, "I8"),
    "int16": (2, "I16"),
    "uint16": (2, "U16"),
    "int32": (4, "I32"),
    "uint32": (4, "U32"),
    "int64": (8, "I64"),
    "uint64": (8, "U64"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float32": (4, "F32"),
    "float64": (8, "F64"),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e4m3fnuz": (1, ""),
    "float8_e5m2fnuz": (1, ""),
    "complex64": (8, "C64"),
    "complex128": (16, ""),
}
TORCH_NAMES = {stored: name for name, (_, stored) in TORCH_DTYPES.items() if stored}

# numpy's spelling of the array dtypes that a skeleton may name: little-endian or of single bytes
_ARRAY_DTYPE = re.compile(
    r"[<|](?:(?:b(1)|[iu]([1248])|f(2|4|8|16)|c(8|16)|S(\d{1,6}))|U(\d{1,6})|[mM](8)(?:\[\d{0,4}[A-Za-z]{1,2}\])?)",
    re.ASCII,
)


def array_item_nbytes(dtype: str) -> int | None:
    """Bytes of an element of a numpy dtype such as "<f4"; None when arrays of it are not stored."""
    match = _ARRAY_DTYPE.fullmatch(dtype)
    if match is None:
        return None
    nbytes = int(next(group for group in match.groups() if group))
    return nbytes * 4 if match[6] else nbytes


class Piece(NamedTuple):
    """A run of bytes to be stored under a name. ``nbytes`` is a multiple of the element's."""

    name: str
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


class Place(NamedTuple):
    """``piece``: index into the pieces given; ``offset``: bytes from the start of the data."""

    piece: int
    segment: int
    offset: int


def place(pieces: list[Piece], segment_nbytes: int = SEGMENT_NBYTES) -> list[Place]:
    """A place for each piece, in file order, without holes; ``pieces`` come in first-use order.

    Pieces of a multiple of 64 bytes go first and so all start on such a multiple. The others
    follow by element size, largest first: then each offset is a multiple of its own element.
    """
    even = [i for i, piece in enumerate(pieces) if piece.nbytes % ALIGN_NBYTES == 0]
    odd = [i for i, piece in enumerate(pieces) if piece.nbytes % ALIGN_NBYTES]
    odd.sort(key=lambda i: -ITEM_NBYTES[pieces[i].dtype])
    places: list[Place] = []
    segment = offset = 0
    for i in even + odd:
        if offset and offset + pieces[i].nbytes > segment_nbytes:
            segment, offset = segment + 1, 0
        places.append(Place(i, segment, offset))
        offset += pieces[i].nbytes
    return places


def segment_file(segment: int) -> str:
    return f"weights-{segment + 1:05}.safetensors"


def header(tensors: list[tuple[Piece, int]]) -> bytes:
    """The head of a safetensors file for pieces at offsets, padded so that data starts on a page.

    The metadata is what PyTorch-side readers (transformers) ask for before they load a file.
    """
    plain: dict[str, Any] = {"__metadata__": {"format": "pt", "written_by": "zerowake"}}
    for piece, offset in tensors:
        plain[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [offset, offset + piece.nbytes],
        }
    text = json.dumps(plain, separators=(",", ":")).encode("ascii")
    nbytes = -(-(8 + len(text)) // PAGE_NBYTES) * PAGE_NBYTES
    return (nbytes - 8).to_bytes(8, "little") + text.ljust(nbytes - 8)
