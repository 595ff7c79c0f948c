"""``zerowake.snapshot.plan``: every byte once, in order, within a slot, segments aligned."""

import random

import pytest

from zerowake.snapshot.plan import ALIGNMENT_NBYTES, Copy, plan_copies


def test_pieces_of_a_slot_take_turns() -> None:
    plan = plan_copies([10, 3], ring_slot_nbytes=4, ring_slots=3)
    assert plan.arena_offsets == (0, 256)
    assert plan.arena_nbytes == 259
    assert plan.copies == (
        Copy(segment=0, source_offset=0, arena_offset=0, nbytes=4, slot=0),
        Copy(segment=0, source_offset=4, arena_offset=4, nbytes=4, slot=1),
        Copy(segment=0, source_offset=8, arena_offset=8, nbytes=2, slot=2),
        Copy(segment=1, source_offset=0, arena_offset=256, nbytes=3, slot=0),
    )
    assert plan.through(0) == (plan.copies[0], plan.copies[3])


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_goes_once_to_its_own_place(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([0, 1, 255, 256, 257, rng.randrange(5000)]) for _ in range(6)]
    slot_nbytes, slots = rng.randrange(1, 600), rng.randrange(1, 5)
    plan = plan_copies(sizes, slot_nbytes, slots)

    taken: set[int] = set()
    for segment, nbytes in enumerate(sizes):
        assert plan.arena_offsets[segment] % ALIGNMENT_NBYTES == 0
        mine = [copy for copy in plan.copies if copy.segment == segment]
        assert sum(copy.nbytes for copy in mine) == nbytes
        place = 0
        for copy in mine:
            assert copy.source_offset == place
            assert copy.arena_offset == plan.arena_offsets[segment] + place
            assert 0 < copy.nbytes <= slot_nbytes
            place += copy.nbytes
        span = range(plan.arena_offsets[segment], plan.arena_offsets[segment] + nbytes)
        assert taken.isdisjoint(span)
        taken.update(span)
    assert all(byte < plan.arena_nbytes for byte in taken)
    assert [copy.slot for copy in plan.copies] == [n % slots for n in range(len(plan.copies))]


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_nothing_to_copy(sizes: list[int]) -> None:
    plan = plan_copies(sizes, ring_slot_nbytes=4, ring_slots=2)
    assert plan.copies == ()
    assert plan.arena_nbytes == 0


def test_locate() -> None:
    plan = plan_copies([10, 300], ring_slot_nbytes=64, ring_slots=2)
    assert plan.locate(1, 7, 293) == 256 + 7
    assert plan.locate(0, 10, 0) == 10


@pytest.mark.parametrize(
    ("segment", "offset", "nbytes"), [(2, 0, 1), (-1, 0, 1), (0, 8, 3), (0, -1, 2), (0, 0, -1)]
)
def test_locate_refuses_what_is_outside(segment: int, offset: int, nbytes: int) -> None:
    plan = plan_copies([10, 300], ring_slot_nbytes=64, ring_slots=2)
    with pytest.raises(ValueError, match="asked for"):
        plan.locate(segment, offset, nbytes)


@pytest.mark.parametrize(
    ("sizes", "slot_nbytes", "slots", "message"),
    [
        ([1], 0, 2, "2 slots of 0 bytes"),
        ([1], 4, 0, "0 slots of 4 bytes"),
        ([1, -5], 4, 2, "segment 1 has -5 bytes"),
    ],
)
def test_refuses(sizes: list[int], slot_nbytes: int, slots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_copies(sizes, slot_nbytes, slots)
