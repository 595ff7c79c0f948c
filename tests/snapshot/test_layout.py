"""``zerowake.snapshot.layout``: where tensors lie in weights files."""

import json

from zerowake.snapshot import layout
from zerowake.snapshot.layout import Piece, Place, place


def piece(nbytes: int, dtype: str = "F32") -> Piece:
    return Piece("x", nbytes, dtype, (nbytes // layout.ITEM_NBYTES[dtype],))


def test_place_keeps_first_use_and_alignment() -> None:
    pieces = [piece(3, "U8"), piece(128), piece(24, "F64"), piece(64), piece(12)]
    assert place(pieces) == [
        Place(1, 0, 0),
        Place(3, 0, 128),
        Place(2, 0, 192),
        Place(4, 0, 216),
        Place(0, 0, 228),
    ]
    assert place(pieces, 150) == [
        Place(1, 0, 0),
        Place(3, 1, 0),
        Place(2, 1, 64),
        Place(4, 1, 88),
        Place(0, 1, 100),
    ]
    assert place([]) == []


def test_header_ends_on_a_page() -> None:
    for count in (0, 1, 50, 400):
        head = layout.header([(Piece(f"t{i}", 4, "F32", (1,)), 4 * i) for i in range(count)])
        assert len(head) % 4096 == 0 and int.from_bytes(head[:8], "little") == len(head) - 8
        assert len(json.loads(head[8:])) == count + 1


def test_torch_and_safetensors_dtypes_agree() -> None:
    for item, stored in layout.TORCH_DTYPES.values():
        assert stored == "" or layout.ITEM_NBYTES[stored] == item


def test_array_dtypes() -> None:
    for dtype, nbytes in (
        ("<f4", 4),
        ("|b1", 1),
        ("<c16", 16),
        ("<U3", 12),
        ("|S0", 0),
        ("<M8[25s]", 8),
    ):
        assert layout.array_item_nbytes(dtype) == nbytes
    for dtype in (">f4", "=f4", "f4", "|b2", "<f1", "<c32", "|O8", "<M4", "|V4", "<i4,<i4"):
        assert layout.array_item_nbytes(dtype) is None
