"""Calls of compiled modules in a process without torch: every kind of array, and errors.

Run by ``memcheck.py``, with a snapshot of ``memcheck_app.py`` and how many rounds; a round is 17 calls.
Prints how much memory (bytes) this process has gained since the first rounds.
"""

import array
import contextlib
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from zerowake.snapshot import compiled, form
from zerowake.snapshot.libtorch import libtorch
from zerowake.snapshot.mapping import map_file
from zerowake.snapshot.store import open_snapshot
from zerowake.snapshot.strided import Array

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from lenders import Only

PAGE_NBYTES = 4096
IDS = [[1, 2, 3], [4, 5, 6]]


def one_round(nets: dict[str, Any], turn: int) -> None:
    rows, products, image = nets["rows"], nets["products"], nets["image"]
    count = 2 + turn % 40
    x = numpy.linspace(-1.0, 1.0, count * 37, dtype="f4").reshape(count, 37)
    wanted = products(x)
    flat = array.array("f", x.tobytes())
    lent = products(Only(x))
    for found in (
        products(x.tolist()),
        products(memoryview(flat).cast("B").cast("f", x.shape)),
        products(memoryview(x.tobytes()).cast("f", x.shape)),  # read-only
        products(memoryview(x.astype(">f8"))),
        products(memoryview(numpy.asfortranarray(x))),
        products(Only(x[::-1], old=True))[::-1],
        products(Only(x.T.copy().T)),
        numpy.from_dlpack(lent),
        lent,
    ):
        assert numpy.allclose(numpy.asarray(found), wanted, atol=1e-5)
    lent.__dlpack__()  # which nobody uses
    lent.__dlpack__(max_version=(1, 0), copy=True)
    kept = numpy.from_dlpack(lent)
    del lent, found, x
    assert numpy.allclose(kept, wanted)
    assert len(rows(IDS)) == len(rows(memoryview(numpy.array(IDS, "i4")))) == 2
    small = Array(flat.buffer_info()[0], "float32", (2, 3, 1, 1), (3, 1, 1, 1), flat)
    assert fails(RuntimeError, lambda: image._library.run([small]))  # smaller than its kernel
    assert fails(IndexError, lambda: rows(array_of([[1, 99]])))
    assert fails(TypeError, lambda: products([["a"] * 37] * 2))
    assert fails(BufferError, lambda: products(Only(numpy.ones((2, 37), complex))))
    assert fails(ValueError, lambda: products([[1.0] * 36] * 2))
    image(numpy.ones((2, 3, 5, 5), "f8"))


def array_of(ids: list[list[int]]) -> memoryview:
    return memoryview(numpy.array(ids))


def fails(error: type[Exception], call: Callable[[], Any]) -> bool:
    with contextlib.suppress(error):
        call()
        return False
    return True


def resident_nbytes() -> int:
    with open("/proc/self/statm") as file:
        return PAGE_NBYTES * int(file.read().split()[1])


def main() -> None:
    snapshot, rounds = open_snapshot(Path(sys.argv[1])), int(sys.argv[2])
    mapped = [map_file(snapshot.path / s.file, s.nbytes) for s in snapshot.manifest.segments]
    nets: dict[str, Any] = dict(compiled.load(form.find_form(snapshot), snapshot, mapped))
    libtorch().set_threads(1)
    first = min(rounds // 5, 400)  # in which allocators find their sizes
    for turn in range(first):
        one_round(nets, turn)
    gc.collect()
    before = resident_nbytes()
    for turn in range(first, rounds):
        one_round(nets, turn)
    gc.collect()
    print(resident_nbytes() - before)
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main()
