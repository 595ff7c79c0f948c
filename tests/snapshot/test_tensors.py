"""How tensors are stored and come back: sharing, views, order, what the probe writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from workshop import Made, freeze_source

from zerowake.snapshot.code import load_code
from zerowake.snapshot.errors import DamagedSnapshot, FreezeError
from zerowake.snapshot.layout import TORCH_DTYPES
from zerowake.snapshot.restore import restore
from zerowake.snapshot.staging import CopyReport
from zerowake.snapshot.store import check_digests


def in_file(made: Made) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as the safetensors package reads them, without any part of Zerowake."""
    with safetensors.safe_open(made.path / "weights-00001.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_views_of_one_storage(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch
        class App(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.base = torch.arange(40, dtype=torch.float32)
                self.middle = self.base[4:20]
                self.columns = self.base.view(4, 10)[:, 1::3]
                self.bits = self.base[8:12].view(torch.int16)
                self.half = self.base.view(torch.float16)[3:9]
                self.head = torch.nn.Parameter(self.base[:4])
                self.wide = self.base[2:3].expand(5)
            def load(self): pass
            def predict(self, item): return item
        """,
        make=lambda module: module.App(),
    )
    old, new = made.original, made.restored
    for name in ("base", "middle", "columns", "bits", "half", "head", "wide"):
        a, b = getattr(old, name), getattr(new, name)
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride(), name
        assert type(a) is type(b) and a.requires_grad == b.requires_grad
    assert len(in_file(made)) == 1  # stored once
    new.base[10] = -1.0
    assert (
        new.middle[6] == -1
        and new.columns[1, 0] == 11
        and new.bits[5] == torch.tensor([-1.0]).view(torch.int16)[1]
    )
    assert new.base.untyped_storage().data_ptr() == new.half.untyped_storage().data_ptr()


def test_tied_and_apart(tmp_path: Path) -> None:
    """Tied weights are stored once; neighbours in one storage that do not overlap are apart."""
    made = freeze_source(
        tmp_path,
        """
        import torch
        flat = torch.arange(64.0)
        self.a, self.b = flat[:32], flat[32:]
        self.tied = self.a
        self.same_memory = flat[:32]
        self.transposed = torch.arange(6.0).view(2, 3).t()
        self.channels_last = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
        """,
    )
    new = made.restored
    assert sorted(made.tensors()) == ["a", "b", "channels_last", "transposed"]
    assert new.tied is new.a and new.same_memory is not new.a
    new.a[0] = 5
    assert new.same_memory[0] == 5
    assert (
        new.transposed.tolist() == [[0, 3], [1, 4], [2, 5]] and not new.transposed.is_contiguous()
    )
    assert new.channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(new.channels_last, made.original.channels_last)
    assert in_file(made)["b"].tolist() == list(range(32, 64))


def test_numpy_and_torch_share(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import numpy as np, torch
        self.array = np.arange(8.0)
        self.tensor = torch.from_numpy(self.array)[2:]
        """,
    ).restored
    made.array[2] = -3
    assert made.tensor[0] == -3


@pytest.mark.parametrize(
    "dtype",
    sorted(TORCH_DTYPES),
)
def test_every_dtype_is_bit_exact(tmp_path: Path, dtype: str) -> None:
    made = freeze_source(
        tmp_path,
        f"""
        import torch
        item = torch.empty(0, dtype=torch.{dtype}).element_size()
        data = (torch.arange(7 * item) % 2 if "{dtype}" == "bool" else torch.arange(7 * item))
        self.tensor = data.to(torch.uint8).view(torch.{dtype})
        self.none = torch.empty((0, 3), dtype=torch.{dtype})
        self.one = self.tensor[:1].clone().reshape(())
        """,
    )
    for name in ("tensor", "none", "one"):
        a, b = getattr(made.original, name), getattr(made.restored, name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        assert a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()


def test_order_alignment_and_names(tmp_path: Path) -> None:
    """First used first; odd sizes last, by element size; data starts on a page; no holes."""
    made = freeze_source(
        tmp_path,
        """
        import torch
        class App:
            def load(self):
                self.late = torch.ones(16)
                self.odd = {"bytes": torch.ones(3, dtype=torch.uint8)}
                self.never = torch.ones(32)
                self.odd_double = torch.ones(3, dtype=torch.float64)
                self.list = [torch.ones(5, dtype=torch.float16)]
                self.first = torch.nn.Linear(16, 4)
            def predict(self, item):
                return [float((self.first(torch.ones(16)).sum() * 0 + self.late.sum()).detach())]
        """,
    )
    assert list(made.tensors()) == [
        "first.weight",
        "late",
        "never",
        "odd_double",
        "first.bias",
        "list.0",
        "odd.bytes",
    ]
    data_offset = made.snapshot.manifest.segments[0].data_offset
    assert data_offset % 4096 == 0
    end = 0
    for tensor in made.snapshot.manifest.tensors:
        assert tensor.offset == end
        end += tensor.nbytes
    for name, tensor in made.tensors().items():
        if tensor.nbytes % 64 == 0:
            assert tensor.offset % 64 == 0, name
    assert made.restored.first.weight.data_ptr() % 64 == 0


def test_what_the_probe_writes_is_marked_and_undone(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch, numpy as np
        class App:
            def load(self):
                self.counter, self.array = torch.zeros(4), np.zeros(4)
                self.weight = torch.ones(4)
            def predict(self, item):
                self.counter += 1
                self.array[0] += 1
                torch._foreach_mul_([self.weight[:0]], 1.0)
                return [self.counter.tolist(), self.array.tolist()]
        """,
        cases=[[b"1", b"2"], [b"3"]],
    )
    assert {n: t.mutated for n, t in made.tensors().items()} == {
        "counter": True,
        "array": True,
        "weight": False,
    }
    assert made.restored.counter.tolist() == [0] * 4 and made.restored.array.tolist() == [0] * 4
    assert made.notes == []  # the second run began from the same state
    assert in_file(made)["counter"].tolist() == [0] * 4


def test_a_write_that_torch_does_not_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match=r"self\.hidden was changed by wake or predict"):
        freeze_source(
            tmp_path,
            """
            import torch
            class App:
                def load(self):
                    self.hidden = torch.zeros(4)
                def predict(self, item):
                    self.hidden.numpy()[0] += 1
            """,
        )


def test_a_resized_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match=r"self\.t: predict resized"):
        freeze_source(
            tmp_path,
            """
            import torch
            class App:
                def load(self):
                    self.t = torch.zeros(4)
                def predict(self, item):
                    self.t.resize_(100_000)
            """,
        )


def test_restored_tensors_are_private(tmp_path: Path) -> None:
    made = freeze_source(tmp_path, "import torch\nself.t = torch.ones(5000)")
    before = (made.path / "weights-00001.safetensors").read_bytes()
    made.restored.t.zero_()
    assert (made.path / "weights-00001.safetensors").read_bytes() == before
    check_digests(made.snapshot, force=True)


def test_attributes_of_tensors(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch
        self.p = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.p.note = ["kept", torch.zeros(1)]
        self.t = torch.ones(2, requires_grad=True)
        """,
    ).restored
    assert type(made.p) is torch.nn.Parameter and not made.p.requires_grad
    assert made.p.note[0] == "kept" and made.p.note[1].tolist() == [0]
    assert made.t.requires_grad and type(made.t) is torch.Tensor


def test_same_content_same_snapshot(tmp_path: Path) -> None:
    source = "import torch\nself.t = torch.arange(100.0)\nself.s = {'b', 'a', 'c'}"
    first = freeze_source(tmp_path, source)
    again = freeze_source(tmp_path, source)
    assert first.path == again.path
    manifest = json.loads((first.path / "manifest.json").read_bytes())
    assert first.path.name.startswith("app-") and "created" not in manifest


def test_what_wake_writes_is_not_frozen(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch, numpy as np
        class App:
            def load(self):
                self.count, self.array, self.kept = torch.zeros(3), np.zeros(3), torch.ones(3)
            def wake(self):
                self.count += 1
                self.array += 2
            def predict(self, item):
                self.count *= 2
                return [self.count.tolist(), self.array.tolist()]
        """,
        cases=[[b"1"], [b"2"]],
    )
    assert in_file(made)["count"].tolist() == [0] * 3 and in_file(made)["array"].tolist() == [0] * 3
    assert made.restored.count.tolist() == [1] * 3 and made.notes == []
    assert not made.tensors()["kept"].mutated


def test_on_another_device_tensors_are_views_of_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pretended device, since the copying itself is tested in test_staging.py."""
    made = freeze_source(
        tmp_path,
        """
        import torch, numpy as np
        self.linear = torch.nn.Linear(16, 3)
        self.base = torch.arange(32.0)
        self.view = self.base.view(torch.int32)[3:5]
        self.array = np.arange(4)
        self.device = torch.device("cuda:1")
        """,
    )

    class Arena:
        def __init__(self, segments: list[memoryview]) -> None:
            self.segments = [torch.frombuffer(bytearray(s), dtype=torch.uint8) for s in segments]
            self.waited = False
            self.report = CopyReport(0, 1.0, 2.0, 0.0, 3.0)

        def view(self, segment: int, offset: int, nbytes: int) -> torch.Tensor:
            return self.segments[segment][offset : offset + nbytes]

        def wait(self) -> None:
            self.waited = True

    arenas: list[Arena] = []

    def copy_to_device(segments: list[memoryview], device: str) -> Arena:
        assert device == "cpu:0"
        arenas.append(Arena(segments))
        return arenas[0]

    monkeypatch.setattr("zerowake.snapshot.staging.copy_to_device", copy_to_device)
    files = load_code(made.snapshot, trusted=frozenset(), code_dir=None)
    restored = restore(made.snapshot, files, device="cpu:0")
    there = restored.object
    assert restored.report["context"] == 1.0 and restored.report["copy"] == 3.0
    assert arenas[0].waited and there.device == torch.device("cpu:0")
    copy = arenas[0].segments[0].untyped_storage().data_ptr()
    for tensor in (there.linear.weight, there.linear.bias, there.base, there.view):
        assert tensor.untyped_storage().data_ptr() == copy
    assert torch.equal(there.linear.weight, made.original.linear.weight)
    assert torch.equal(there.view, made.original.view) and there.array.tolist() == [0, 1, 2, 3]


def test_bits_do_not_depend_on_where_a_loader_put_the_weights(tmp_path: Path) -> None:
    """MKL rounds a matrix-vector product otherwise when the matrix is not aligned to 64 bytes."""
    made = freeze_source(
        tmp_path,
        """
        import torch

        class App:
            def load(self):
                buffer = bytearray(4 * (300 * 300 + 7) + 24)
                torch.manual_seed(0)
                flat = torch.frombuffer(buffer, dtype=torch.float32, offset=24)
                flat.copy_(torch.randn(flat.shape))
                self.matrix, self.odd = flat[:-7].view(300, 300), flat[-7:]
                self.row = self.matrix[5]

            def predict(self, item):
                return [(self.matrix @ torch.ones(300)).tolist(), self.odd.tolist()]
        """,
        cases=[[b"1"]],
    )
    assert made.restored.predict(1) == made.original.predict(1)
    for tensor in (made.restored.matrix, made.restored.odd):
        assert tensor.data_ptr() % 64 == 0
    assert made.restored.row.data_ptr() == made.restored.matrix[5].data_ptr()
    assert made.original.row.data_ptr() == made.original.matrix[5].data_ptr()


def test_a_tensor_and_an_array_of_the_same_memory(tmp_path: Path) -> None:
    """Also where the size is odd, so that the tensor is a copy of the mapped bytes."""
    made = freeze_source(
        tmp_path,
        """
        import numpy, torch
        class App:
            def load(self):
                self.before = numpy.ones(3, numpy.float32)
                self.tensor, self.other = torch.from_numpy(self.before), torch.ones(5)
                self.array = self.other.numpy()
                self.empty = numpy.str_("")
            def predict(self, item):
                return 1
        """,
    )
    app = made.restored
    app.before[0], app.other[1] = 7, 8
    assert app.tensor.tolist() == [7, 1, 1] and app.array.tolist() == [1, 8, 1, 1, 1]
    assert type(app.empty) is type(made.original.empty) and app.empty == ""


def test_files_that_vanish(tmp_path: Path) -> None:
    snapshot = freeze_source(tmp_path, "self.x = 1").snapshot
    (snapshot.path / "proof.json").unlink()
    with pytest.raises(DamagedSnapshot, match=r"proof\.json is missing"):
        check_digests(snapshot, force=True)
