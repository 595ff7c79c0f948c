"""What ``load`` may leave on the object, and how it comes back."""

import datetime
import math
import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch
from workshop import freeze_source

from zerowake.snapshot.errors import FreezeError


def test_plain_data(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import collections, datetime, pathlib, functools
        self.none, self.yes, self.big, self.text = None, True, 2**200, "\\u00e9\\ud800 \\n"
        self.floats = [0.1, -0.0, float("inf"), float("-inf"), 1e-310]
        self.nan = float("nan")
        self.complex, self.bytes = 1 - 2j, b"\\x00\\xff"
        self.list, self.tuple, self.empty = [1, [2, "x"]], (1, (2,)), ()
        self.set, self.frozen = {1, "a"}, frozenset({(1, 2)})
        self.dict = {1: "a", (1, 2): [3], None: 4, "s": {"t": 5}, 1.5: 6, b"k": 7}
        self.ordered = collections.OrderedDict(b=1, a=[2])
        self.default = collections.defaultdict(list, {"x": [1]})
        self.range, self.slice = range(1, 9, 2), slice(1, None, 2)
        self.path = pathlib.Path("/tmp/x")
        self.date = datetime.date(2026, 1, 2)
        self.time = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.timezone.utc)
        self.delta = datetime.timedelta(days=-1, microseconds=5)
        self.type = int
        """,
    )
    old, new = vars(made.original), vars(made.restored)
    assert old.keys() == new.keys()
    assert math.isnan(new.pop("nan")) and math.isnan(old.pop("nan"))
    assert old == new
    assert {k: type(v) for k, v in old.items()} == {k: type(v) for k, v in new.items()}
    assert list(new["ordered"]) == ["b", "a"] and new["default"]["y"] == []
    assert math.copysign(1, new["floats"][1]) == -1
    assert new["path"] == pathlib.Path("/tmp/x") and isinstance(new["time"], datetime.datetime)


def test_shared_references_and_cycles(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        self.a = [1]
        self.b = {"a": self.a, 1: self}
        self.b["self"] = self.b
        self.pair = (self.a, self.b)
        self.me = self
        self.set = {self.pair[0].__len__() and "x"}
        """,
    ).restored
    assert made.b["a"] is made.a is made.pair[0]
    assert made.b["self"] is made.b is made.pair[1]
    assert made.me is made and made.b[1] is made


def test_classes_of_the_author(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import dataclasses, enum, functools, typing

        @dataclasses.dataclass(frozen=True, slots=True)
        class Point:
            x: int
            y: list

        class Color(enum.Enum):
            RED = 1
            GREEN = "g"

        class Level(enum.IntEnum):
            LOW = 1

        class Pair(typing.NamedTuple):
            a: object
            b: object

        class Slotted:
            __slots__ = ("__hidden", "open", "__dict__")
            def __init__(self):
                self.__hidden, self.open, self.more = 1, 2, 3
            def hidden(self):
                return self.__hidden

        class Loud:
            def __init__(self): raise AssertionError("__init__ ran")
            def __reduce__(self): raise AssertionError("__reduce__ ran")
            def __setstate__(self, state): raise AssertionError("__setstate__ ran")
            @property
            def value(self): return self.__dict__["value"]
            @value.setter
            def value(self, v): raise AssertionError("a setter ran")

        class Outer:
            class Inner:
                pass

        def double(x): return 2 * x

        class App:
            def load(self):
                self.point = Point(1, [2])
                self.points = {Point(1, ()): "a"}
                self.colors = {Color.RED: Color.GREEN}
                self.level = Level.LOW
                self.pair = Pair(1, [self])
                self.slotted = Slotted()
                self.loud = Loud.__new__(Loud)
                self.loud.__dict__["value"] = 5
                self.inner = Outer.Inner()
                self.cls, self.fn = Point, double
                self.half = functools.partial(double, x=4)
                self.bound = self.helper
            def helper(self): return self
        """,
    )
    app = made.restored
    assert app.point == made.original.point and app.points == made.original.points
    assert app.colors == made.original.colors and app.level is made.original.level
    assert app.pair == (1, [app]) and type(app.pair).__name__ == "Pair"
    assert (app.slotted.hidden(), app.slotted.open, app.slotted.more) == (1, 2, 3)
    assert app.loud.value == 5 and type(app.inner).__qualname__ == "Outer.Inner"
    assert app.cls is made.original.cls and app.fn(4) == app.half() == 8
    assert app.bound() is app


def test_members_that_are_numpy_numbers_stay_members(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import enum, numpy as np

        class Level(np.float64, enum.Enum):
            LOW = 1.0

        class App:
            def load(self):
                self.level = Level.LOW
        """,
    )
    assert made.restored.level is made.original.level


def test_torch_and_numpy_values(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import numpy as np, torch
        self.dtype, self.device, self.size = torch.bfloat16, torch.device("cpu"), torch.Size([2, 3])
        self.act, self.tanh = torch.nn.functional.gelu, torch.tanh
        self.array = np.arange(12, dtype=np.float32).reshape(3, 4)
        self.fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
        self.view = self.array[1:, ::2]
        self.row = self.array[1]
        self.texts = np.array(["a", "bcd"])
        self.when = np.array(["2026-01-01"], dtype="datetime64[D]")
        self.complex = np.array([1 + 2j])
        self.empty, self.zero_d = np.zeros((0, 3), np.int16), np.array(7)
        self.fixed = np.arange(3)
        self.fixed.flags.writeable = False
        self.scalar, self.flag = np.float32(1.5), np.bool_(True)
        """,
    ).restored
    assert (made.dtype, made.device) == (torch.bfloat16, torch.device("cpu"))
    assert made.size == torch.Size([2, 3]) and type(made.size) is torch.Size
    assert made.act is torch.nn.functional.gelu and made.tanh is torch.tanh
    assert made.array.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert made.fortran.flags.f_contiguous and made.fortran[2, 3] == 11
    assert made.texts.tolist() == ["a", "bcd"] and made.when[0] == np.datetime64("2026-01-01")
    assert made.complex[0] == 1 + 2j and made.empty.shape == (0, 3) and made.zero_d == 7
    assert type(made.scalar) is np.float32 and made.scalar == 1.5 and made.flag is np.bool_(True)
    with pytest.raises(ValueError):
        made.fixed[0] = 1
    made.array[1, 2] = -1  # private pages; and the views are views of it
    assert made.view[0, 1] == made.row[2] == -1


def test_large_plain_data_becomes_an_asset(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path, "self.words = {f'w{i}': i for i in range(9000)}\nself.blob = bytes(100_000)"
    )
    assert made.restored.words == made.original.words and made.restored.blob == bytes(100_000)
    assert [p.name for p in sorted((made.path / "assets").iterdir())] == [
        "1-plain.json",
        "2-bytes.bin",
    ]


def test_what_the_probe_does_to_plain_state_is_not_frozen(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        class App:
            def load(self):
                self.seen, self.counts = [], {"calls": 0}
            def predict(self, item):
                self.seen.append(item)
                self.counts["calls"] += 1
                return "same"
        """,
    )
    assert made.original.seen and made.restored.seen == [] and made.restored.counts == {"calls": 0}


REFUSED = {
    "open file": (
        "self.a = {'log': open(__file__)}",
        r"self\.a\['log'\] .*open file.*wake\(self\)",
    ),
    "lock": ("import threading; self.lock = threading.Lock()", r"self\.lock .*lock.*wake\(self\)"),
    "socket": ("import socket; self.s = [socket.socket()]", r"self\.s\[0\] .*socket"),
    "thread": ("import threading; self.t = threading.Thread()", r"self\.t .*thread"),
    "lambda": ("self.f = lambda x: x", r"self\.f .*lambda or closure.*top of a file"),
    "local class": ("class A: pass\nself.a = A()", r"self\.a: the class app:App\.load"),
    "other library": ("import fractions; self.a = fractions.Fraction(1)", r"self\.a .*Fraction"),
    "library function": ("import os; self.f = os.getcwd", r"self\.f: the function posix:getcwd"),
    "module": ("import os; self.os = os", r"self\.os .*is a module"),
    "generator": ("self.g = (i for i in [])", r"self\.g .*generator"),
    "dict subclass": (
        "import collections; self.c = collections.Counter('a')",
        r"self\.c .*Counter",
    ),
    "default": ("import collections; self.d = collections.defaultdict(lambda: 1)", r"self\.d"),
    "tuple in itself": ("l = []; l.append((l, 1)); t = (l, 2); l.append(t); self.t = t", r"itself"),
    "huge integer": (
        "self.n = {'deep': [1 << 20_000]}",
        r"self\.n\['deep'\]\[0\] .*bits.*as bytes",
    ),
    "false factory": (
        "import collections\ndef list(): return 1\nself.d = collections.defaultdict(list)",
        r"self\.d .*use a builtin type",
    ),
    "long double": (
        "import numpy as np; self.a = np.zeros(2, np.clongdouble)",
        r"self\.a .*array of complex256",
    ),
    "object array": (
        "import numpy as np; self.a = np.array([object()])",
        r"self\.a .*array of object",
    ),
    "backwards": ("import numpy as np; self.a = np.arange(3)[::-1]", r"self\.a .*backwards"),
    "script module": (
        "import torch; self.m = torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1))",
        r"self\.m .*ScriptModule",
    ),
    "sparse": ("import torch; self.t = torch.eye(2).to_sparse()", r"self\.t .*sparse.*to_dense"),
    "meta": ("import torch; self.t = torch.empty(2, device='meta')", r"self\.t .*meta device"),
    "nested": (
        "import torch; self.t = torch.nested.nested_tensor([torch.ones(1)])",
        r"self\.t .*nested",
    ),
    "quantised": (
        "import torch; self.t = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)",
        r"self\.t .*quantised",
    ),
    "subclass": (
        "import torch\nclass T(torch.Tensor): pass\nself.t = torch.ones(1).as_subclass(T)",
        r"self\.t .*tensor subclass",
    ),
    "graph": ("import torch; self.t = torch.ones(1, requires_grad=True) * 2", r"self\.t .*detach"),
    "parametrised": (
        "import torch; self.m = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))",
        r"self\.m .*parametrised weights; call .*remove_parametrizations",
    ),
    "compiled": (
        "import torch; self.m = torch.compile(torch.nn.Linear(1, 1))",
        r"self\.m .*is compiled; call torch\.compile in wake\(self\)",
    ),
    "hooks": (
        "import torch; self.m = torch.nn.Linear(1, 1)\nself.m.register_forward_hook(print)",
        r"self\.m\._forward_hooks .*wake\(self\)",
    ),
    "generator of torch": (
        "import torch; self.g = torch.Generator()",
        r"self\.g .*random generator",
    ),
    "dead weak reference": (
        "import weakref, torch; self.w = weakref.ref(torch.ones(1))",
        r"self\.w .*dead",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_path_and_name(tmp_path: Path, case: str) -> None:
    source, message = REFUSED[case]
    with pytest.raises(FreezeError, match=message):
        freeze_source(tmp_path, source)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
