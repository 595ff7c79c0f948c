"""libtorch and compiled modules through ctypes, each time in a process of its own without torch."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import run_python

from zerowake.snapshot.libtorch import in_words

# text and image: the modules of nets.py, bound; library: text's own
LOAD = """
import gc, sys
from pathlib import Path
from zerowake.snapshot import compiled, form
from zerowake.snapshot.arrays import take
from zerowake.snapshot.mapping import map_file
from zerowake.snapshot.store import open_snapshot

snapshot = open_snapshot(Path(sys.argv[1]))
mapped = [map_file(snapshot.path / s.file, s.nbytes) for s in snapshot.manifest.segments]
modules = compiled.load(form.find_form(snapshot), snapshot, mapped)
text, image = modules["text"], modules["image"]
IDS = [[1, 2, 3], [4, 5, 6]]
IMAGE = [[[[0.5, 1.0, -1.0, 0.0]] * 4] * 3] * 2
"""


def run(compiled: Callable[[str], Path], script: str) -> str:
    return run_python(LOAD + script, compiled("nets.py:Nets")).stdout


def test_no_leak_over_100_000_calls(compiled: Callable[[str], Path]) -> None:
    # As many of the whole path, in every kind, with errors, take minutes: ``bench/memcheck.py`` makes
    # them (0.8 MB more after 93,500 calls, and after 100,300).
    said = run(
        compiled,
        """
def rss():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

def calls(count):
    for _ in range(count):
        library.run([taken])

from zerowake.runtime import process
process.set_threads(1)  # those of a parallel loop wait for each other, where cores are busy
library, taken = text._library, take(IDS, "int64", 2)
calls(2_000)
image(IMAGE)
before = rss()
calls(100_000)
for _ in range(2_000):
    text(IDS)
    image(IMAGE)  # a result that it returns twice
    try:
        text([[99, 1]])
    except IndexError:
        pass
print(rss() - before)
""",
    )
    assert int(said) < 3 << 20


@pytest.fixture
def freed_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is freed gets other contents at once (glibc): who still reads it is found out."""
    monkeypatch.setenv("MALLOC_PERTURB_", "165")
    monkeypatch.setenv("PYTHONMALLOC", "malloc")


@pytest.mark.usefixtures("freed_is_overwritten")
def test_results_outlive_the_module_and_its_inputs(compiled: Callable[[str], Path]) -> None:
    said = run(
        compiled,
        """
import numpy
wanted = image(IMAGE)["all"]
x = numpy.array(IMAGE, numpy.float32)
results = [image(x) for _ in range(50)]
kept = [r["all"] for r in results]
again = [r["more"][0] for r in results]
del x, results, modules, text, image, mapped
gc.collect()
trash = [numpy.full(22, 7.0, numpy.float32) for _ in range(10_000)]
assert all(numpy.array_equal(each, numpy.array(wanted, numpy.float32)) for each in kept)
kept.clear()
gc.collect()  # one handle, two results: the other one still has its memory
trash += [numpy.full(22, 7.0, numpy.float32) for _ in range(10_000)]
assert all(numpy.array_equal(each, numpy.array(wanted, numpy.float32)) for each in again)
again[0][:] = 1.0  # theirs to write to
print("torch" in sys.modules)
""",
    )
    assert said == "False\n"


@pytest.mark.usefixtures("freed_is_overwritten")
def test_many_calls_and_errors_touch_nothing_that_was_freed(
    compiled: Callable[[str], Path],
) -> None:
    run(
        compiled,
        """
first, of_text, of_picks = image(IMAGE), text(IDS), modules["picks"](IDS)
for place in range(200):
    assert image(IMAGE) == first and text(IDS) == of_text and modules["picks"](IDS) == of_picks
    for wrong in ([[0, 1], [70, 1]], [[0]], [[[0]]]):
        try:
            modules["picks"](wrong)
        except (IndexError, TypeError, ValueError):
            continue
        raise AssertionError(wrong)
""",
    )


def test_buffers_and_arrays_of_other_libraries(compiled: Callable[[str], Path]) -> None:
    said = run(
        compiled,
        """
import array
flat = array.array("i", [1, 2, 3, 4, 5, 6])  # of other whole numbers than the module's
found = text(memoryview(flat).cast("B").cast("i", (2, 3))).logits
assert type(found) is memoryview and found.tolist() == text(IDS).logits
try:
    text(memoryview(array.array("q", [99, 1])).cast("B").cast("q", (1, 2)))
except IndexError as error:
    assert "from 1 to 99" in str(error)
assert "numpy" not in sys.modules
import numpy
class Only:
    def __init__(self, value): self.value = value
    def __dlpack_device__(self): return self.value.__dlpack_device__()
    def __dlpack__(self, **options): return self.value.__dlpack__(**options)
x = numpy.array(IMAGE, numpy.float32)
lent = image(Only(x.transpose(3, 2, 1, 0).copy().transpose()))["all"]
kept = numpy.from_dlpack(lent)
assert numpy.allclose(kept, image(x)["all"]) and lent.shape == kept.shape
lent, wanted = None, kept.tolist()
trash = [numpy.full(22, 7.0, numpy.float32) for _ in range(10_000)]
assert kept.tolist() == wanted
try:
    image(Only(numpy.ones((1, 3, 4, 4), complex)))
except BufferError as error:
    print(error)
print("torch" in sys.modules)
""",
    )
    assert "image: x: a tensor of DLPack type 5" in said and said.endswith("\nFalse\n")


def test_inputs_are_not_kept(compiled: Callable[[str], Path]) -> None:
    run(
        compiled,
        """
import numpy, weakref
class Watched(numpy.ndarray): pass
x = numpy.array(IDS).view(Watched)
end = weakref.ref(x)
result = text(x)
del x, result
gc.collect()
assert end() is None
""",
    )


def test_errors_are_exceptions_with_the_librarys_own_words(
    compiled: Callable[[str], Path],
) -> None:
    said = run(
        compiled,
        """
nothing = take(IDS, "float32", 2)
# past the checks of sizes: an image smaller than the convolution's kernel
nothing = compiled.Array(nothing.address, "float32", (2, 3, 0, 0), (1, 1, 1, 1), nothing)
for _ in range(20):
    try:
        image._library.run([nothing])
    except RuntimeError as error:
        said = str(error)
print(said.splitlines()[0])
print(image(IMAGE)["none"])
""",
    )
    words, after = said.splitlines()
    assert "aoti_torch_cpu_convolution" in words and after == "None"  # and it goes on
    assert "/" not in words and "Kernel size can't be greater than actual input size" in words


@pytest.mark.parametrize(
    "message, torch_says, said",
    [
        (
            "aoti_torch_cpu_mm_out(buf0, wrap(arg0), &buf1) API call failed at /tmp/a b/c.cpp, line 8",
            "shapes cannot be multiplied",
            "shapes cannot be multiplied (aoti_torch_cpu_mm_out)",
        ),
        ("aoti_torch_x(\n1) API call failed at /c.cpp, line 8", "", "it failed (aoti_torch_x)"),
        ("Error: 5", "something before", "Error: 5"),
    ],
)
def test_a_librarys_message_in_words(message: str, torch_says: str, said: str) -> None:
    assert in_words(message, torch_says) == said


def test_threads_are_set(compiled: Callable[[str], Path]) -> None:
    said = run(
        compiled,
        """
from zerowake.runtime import process
from zerowake.snapshot.libtorch import libtorch
for count in (1, 3):
    process.set_threads(count)
    text(IDS)
    print(libtorch()._get_threads())
""",
    )
    assert said.split() == ["1", "3"]


def test_calls_by_keyword_and_what_else_python_does(compiled: Callable[[str], Path]) -> None:
    said = run(
        compiled,
        """
def fails(call, *words):
    try:
        call()
    except Exception as error:
        for word in words:
            assert word in str(error), (word, error)
        print(type(error).__name__)
    else:
        raise AssertionError(words)

found = text(ids=IDS)
assert found.rows == found["rows"] == found[1] and found.logits == found[0]
assert found[:1] == [found.logits] and list(found) == ["logits", "rows"]
fails(lambda: found.hidden, "hidden")
fails(lambda: found["hidden"], "hidden")
fails(lambda: text(), "ids")
fails(lambda: text(IDS, IDS), "too many")
fails(lambda: text(IDS, more=1), "more")
fails(lambda: image(IMAGE, twice=True), "image(twice=True", "compiled for twice=False")
fails(lambda: image(IMAGE, twice=IMAGE), "twice")
fails(lambda: text.embed, "can only be called", "text.embed", "--no-compile")
fails(lambda: text(7), "text: ids")
assert image(IMAGE, False)["all"] == image(x=IMAGE, twice=False)["all"]
""",
    )
    assert said.split() == [
        *("AttributeError", "KeyError", "TypeError", "TypeError", "TypeError"),
        *("NotTaken", "NotTaken", "AttributeError", "NotTaken"),
    ]


@pytest.mark.parametrize("source", ["", "int aoti_torch_dtype_float32() { return 6; }"])
def test_a_libtorch_without_the_symbols(tmp_path: Path, source: str) -> None:
    (tmp_path / "fake.c").write_text(source)
    fake = tmp_path / "libtorch_cpu.so"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "fake.c", "-o", fake], check=True)
    said = run_python(  # in a process of its own: the symbols of this one would be found too
        """
        import sys
        from pathlib import Path
        from zerowake.snapshot.errors import UnusableForm
        from zerowake.snapshot.libtorch import LibTorch
        for path in map(Path, sys.argv[1:]):
            try:
                LibTorch(path)
            except UnusableForm as error:
                print(error)
        """,
        fake,
        tmp_path / "missing.so",
        tmp_path / "fake.c",
    ).stdout
    assert said.count("cannot be used without torch") == 3
    assert "undefined symbol: aoti_torch_dtype_" in said


def test_a_compiled_library_without_the_symbols(tmp_path: Path) -> None:
    (tmp_path / "fake.c").write_text("")
    fake = tmp_path / "model.so"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "fake.c", "-o", fake], check=True)
    said = run_python(
        """
        import sys
        from pathlib import Path
        from zerowake.snapshot.errors import UnusableForm
        from zerowake.snapshot.libtorch import Library, libtorch
        for path in map(Path, sys.argv[1:]):
            try:
                Library(path, libtorch())
            except UnusableForm as error:
                print(error)
        """,
        fake,
        tmp_path / "missing.so",
    ).stdout
    assert said.count("cannot be loaded") == 2 and "AOTInductor" in said
