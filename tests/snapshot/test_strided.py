"""``zerowake.snapshot.strided``: arithmetic on strides."""

from zerowake.snapshot.strided import contiguous_strides, reach, same_layout


def test_layouts() -> None:
    assert contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert contiguous_strides(()) == () and contiguous_strides((2, 0)) == (1, 1)
    assert reach((2, 3), (3, 1)) == 6 and reach((2, 3), (1, 2)) == 6
    assert reach((2, 3), (0, 1)) == 3 and reach((), ()) == 1 and reach((4, 0), (1, 1)) == 0
    assert same_layout((1, 3), (77, 1), (3, 1)) and not same_layout((2, 3), (1, 2), (3, 1))
    assert not same_layout((2, 3), (3, 1), (1,))
