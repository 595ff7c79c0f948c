"""Which bytes go from mapped segments to a device arena, in which pieces, through which ring slot.

Pure arithmetic: knows no torch, no file, no clock. ``staging`` carries the plan out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT_NBYTES = 256  # what device allocators give; a segment that starts lower slows its kernels


@dataclass(frozen=True, slots=True)
class Copy:
    """``nbytes`` of ``segment`` from ``source_offset``, by way of ring slot ``slot``."""

    segment: int
    source_offset: int
    arena_offset: int
    nbytes: int
    slot: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """The whole transfer. ``copies`` are in the order of the segments' bytes: first use first."""

    segment_nbytes: tuple[int, ...]
    arena_offsets: tuple[int, ...]
    arena_nbytes: int
    copies: tuple[Copy, ...]

    def through(self, slot: int) -> tuple[Copy, ...]:
        """The copies that use ring slot ``slot``, in order."""
        return tuple(copy for copy in self.copies if copy.slot == slot)

    def locate(self, segment: int, offset: int, nbytes: int) -> int:
        """Where bytes ``offset .. offset + nbytes`` of ``segment`` lie in the arena.

        Raises ValueError when there is no such segment or the range leaves it.
        """
        if not 0 <= segment < len(self.segment_nbytes):
            raise ValueError(
                f"segment {segment} was asked for; the plan has {len(self.segment_nbytes)} segments"
            )
        size = self.segment_nbytes[segment]
        if offset < 0 or nbytes < 0 or offset + nbytes > size:
            raise ValueError(
                f"bytes {offset}..{offset + nbytes} of segment {segment} were asked for; "
                f"it has {size} bytes"
            )
        return self.arena_offsets[segment] + offset


def plan_copies(segment_nbytes: Sequence[int], ring_slot_nbytes: int, ring_slots: int) -> CopyPlan:
    """Cuts segments into pieces of at most a ring slot, slots taking turns.

    Segments lie one after the other in the arena, each from a multiple of 256 bytes; inside a
    segment nothing moves, so an offset in the file is an offset in the arena plus a constant.
    Raises ValueError for a negative size, or a ring without room.
    """
    if ring_slot_nbytes < 1 or ring_slots < 1:
        raise ValueError(
            f"a ring of {ring_slots} slots of {ring_slot_nbytes} bytes holds nothing; "
            "give at least one slot of one byte"
        )
    arena_offsets: list[int] = []
    copies: list[Copy] = []
    arena_nbytes = 0
    for segment, nbytes in enumerate(segment_nbytes):
        if nbytes < 0:
            raise ValueError(f"segment {segment} has {nbytes} bytes; a size is 0 or more")
        start = -(-arena_nbytes // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        arena_offsets.append(start)
        arena_nbytes = start + nbytes
        for offset in range(0, nbytes, ring_slot_nbytes):
            copies.append(
                Copy(
                    segment=segment,
                    source_offset=offset,
                    arena_offset=start + offset,
                    nbytes=min(ring_slot_nbytes, nbytes - offset),
                    slot=len(copies) % ring_slots,
                )
            )
    return CopyPlan(tuple(segment_nbytes), tuple(arena_offsets), arena_nbytes, tuple(copies))
