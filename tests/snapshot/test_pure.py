"""Layout, names, proof comparison, state directory and mapping: small parts by themselves."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zerowake.snapshot import layout, names, proof, state
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    ForbiddenClass,
    ProofFailed,
    SnapshotError,
    SnapshotNotFound,
    WakeFailed,
)
from zerowake.snapshot.layout import Piece, Place, place
from zerowake.snapshot.mapping import map_file, populate, resident_fraction
from zerowake.snapshot.store import open_snapshot


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


@pytest.mark.parametrize(
    "name", sorted(n for m, ns in names.FUNCTIONS.items() for n in [f"{m}:{x}" for x in ns])
)
def test_every_listed_function_exists(name: str) -> None:
    import importlib

    module = importlib.import_module(name.partition(":")[0])
    names.check(name, names.FUNCTION, frozenset())
    assert callable(names.look_up(name, names.FUNCTION, frozenset(), module))


def test_own_names_are_free_and_no_others() -> None:
    own = names.own_modules({"app.py": 1, "pack/__init__.py": 1, "pack/part.py": 1})
    assert own == {"app", "pack", "pack.part"}
    names.check("pack.part:Outer.Inner", names.OBJECT, own)
    with pytest.raises(ForbiddenClass, match="nothing was imported"):
        names.check("pack.other:Thing", names.OBJECT, own)
    with pytest.raises(ForbiddenClass):
        names.check("os:system", names.FUNCTION, frozenset({"os"}))


def test_differences_name_fields() -> None:
    def fields(a: str, b: str) -> list[str]:
        return [f for f, _, _ in proof.differences([[a.encode()]], [[b.encode()]])]

    assert fields('{"a": [1, {"b": 2}], "c": 3}', '{"a": [1, {"b": 5}], "c": 4}') == [
        "items[0].a[*].b",
        "items[0].c",
    ]
    assert fields('{"a": 1}', '{"b": 1}') == ["items[0]"]
    assert fields("[1, 2]", "[1]") == ["items[0]"]
    assert fields("1.0", "1") == ["items[0]"] and fields("-0.0", "0.0") == ["items[0]"]
    assert fields('{"a": 1, "b": 2}', '{"b": 2, "a": 1}') == ["items[0]"]
    assert fields('{"a":1}', '{"a": 1}') == [] and fields("1e-05", "1e-5") == []
    assert fields("x", "y") == ["items[0]"] and fields("1", "1") == []
    assert next(proof.differences([[b"1"]], [[b"1", b"2"]]))[1:] == ("1 chunks", "2 chunks")


def test_answers_nested_too_deep_to_look_into_are_compared_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nested(leaf: int) -> Any:
        value: Any = leaf
        for _ in range(2 * sys.getrecursionlimit()):
            value = [value]
        return value

    # Some releases of Python parse what no function can walk through.
    monkeypatch.setattr(proof.json, "loads", lambda text: nested(int(text)))
    wanted = proof.Proof([[b"1"]], [[[b"1"]]], [[]])
    with pytest.raises(ProofFailed, match=r"items\[0\]: the original answered b'1' \(1 bytes\)"):
        proof.compare(wanted, [[[b"2"]]])
    with pytest.raises(ProofFailed, match=r"items\[0\]"):
        proof.distance(wanted, [[[b"2"]]])


def test_the_summary_counts_what_was_compared() -> None:
    def said(answer: bytes, *unsteady: str) -> str:
        return proof.summary(proof.Proof([[b"1"]], [[[answer]]], [list(unsteady)]))

    answer = b'{"id": 1, "parts": [{"at": 1, "x": {}}, {"at": 2, "x": {}}]}'
    counts = "the proof is right (fields compared: {}, left out as not deterministic: {})"
    assert said(answer) == counts.format(3, 0)
    assert said(answer, "items[0].id", "items[0].parts[*].at") == counts.format(1, 2)
    assert said(b'{"id": 1, "idea": 2}', "items[0].id") == counts.format(1, 1)
    nothing = "the proof says nothing: no field is deterministic ({} left out)"
    assert said(answer, "items[0]") == nothing.format(3)
    assert said(b"\xff", "items[0]") == nothing.format(1)


def test_proof_survives_encoding() -> None:
    kept = proof.Proof([[b"\xff", "\u00e9".encode()]], [[[b"1"], [b"\x80", b""]]], [["items[0]"]])
    assert proof.parse(proof.encode(kept)) == kept
    plain = json.loads(proof.encode(kept))
    case, text = plain["cases"][0], {"text": "1"}
    for odd in (
        {**plain, "hook": 1},
        {**plain, "seed": 1},
        {**plain, "cases": [{**case, "hook": 1}]},
        {**plain, "cases": [{**case, "items": [{**text, "base64": ""}, text]}]},
        {**plain, "cases": [{**case, "items": [{"text": 1}, text]}]},
        {**plain, "cases": [{**case, "items": {}, "answers": {}}]},
        {**plain, "cases": [{**case, "answers": ["", ""]}]},
        {**plain, "cases": [{**case, "unsteady": "items[0]"}]},
        {**plain, "cases": [{**case, "unsteady": [1]}]},
    ):
        with pytest.raises(DamagedSnapshot, match="does not hold cases"):
            proof.parse(json.dumps(odd).encode())
    with pytest.raises(DamagedSnapshot):
        proof.parse(b'{"cases": [{}]}')


def test_state_directory(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    path = state.state_dir(env)
    assert path == tmp_path / "zerowake" and path.stat().st_mode & 0o777 == 0o700
    assert state.state_dir({**env, "ZEROWAKE_STATE": str(tmp_path / "s")}) == tmp_path / "s"
    path.chmod(0o720)
    with pytest.raises(SnapshotError, match="chmod go-w"):
        state.state_dir(env)
    with pytest.raises(SnapshotError, match="is no digest"):
        state.record_trust("../../x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_state_directory_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(SnapshotError, match="belongs to uid 12345"):
        state.state_dir({"ZEROWAKE_STATE": str(tmp_path)})


def test_the_format_page_has_the_allow_list() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    section = page[page.index("## 5. Names") : page.index("## 6.")]
    rules = [pattern.replace("|", r"\|") for pattern, _ in names._LIBRARIES]
    functions = [function for listed in names.FUNCTIONS.values() for function in listed]
    for name in (*rules, *functions, *names._OBJECT_BASES, *names.BUILTIN_TYPES):
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", section), name
    for library in names.LIBRARIES:
        assert library in section


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="set ZEROWAKE_STATE"):
        state.state_dir({"ZEROWAKE_STATE": str(tmp_path / "file" / "state")})


def test_records_from_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "state"))
    digest = f"sha256:{0:064}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: state.record_verified(digest, [[n]]), range(400)))
    assert len(list((tmp_path / "state" / "verified").iterdir())) == 1


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


def test_mapping_is_private_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    before = set(os.listdir("/proc/self/fd"))
    mapped = map_file(path, 10_000)
    assert set(os.listdir("/proc/self/fd")) <= before  # no descriptor is kept
    populate(mapped)
    mapped[5] = 7
    assert path.read_bytes() == bytes(10_000) and mapped[5] == 7
    with pytest.raises(DamagedSnapshot, match="has 10000 bytes, its manifest says 9999"):
        map_file(path, 9_999)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DamagedSnapshot, match="symbolic link"):
        map_file(tmp_path / "link", 10_000)
    with pytest.raises(DamagedSnapshot, match="is missing"):
        map_file(tmp_path / "none", 1)


def test_resident_fraction(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    fraction = resident_fraction(path)
    assert fraction is None or fraction > 0.9
    assert resident_fraction(tmp_path / "none") is None


def test_not_a_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound, match="zerowake freeze"):
        open_snapshot(tmp_path)
    with pytest.raises(SnapshotNotFound):
        open_snapshot(tmp_path / "none")


def test_wake_errors_say_so(tmp_path: Path) -> None:
    from workshop import freeze_source

    from zerowake.snapshot import code
    from zerowake.snapshot.restore import restore, wake_up

    made = freeze_source(
        tmp_path,
        """
        import os
        class App:
            def load(self): self.x = 1
            def wake(self):
                self.y = 2
                if "FAIL_WAKE" in os.environ: raise OSError("no database")
            def predict(self, item): return [self.x, self.y]
        """,
    )
    assert made.restored.y == 2
    files = code.load_code(made.snapshot, trusted=frozenset(), code_dir=None)
    restored = restore(made.snapshot, files).object
    assert not hasattr(restored, "y")
    os.environ["FAIL_WAKE"] = "1"
    try:
        with pytest.raises(WakeFailed, match=r"wake\(\) of 'app' failed: OSError: no database"):
            wake_up(restored, "app")
    finally:
        del os.environ["FAIL_WAKE"]


def test_where_nothing_can_be_remembered_snapshots_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZEROWAKE_STATE", str(tmp_path / "file" / "state"))
    digest = "sha256:" + 64 * "a"
    state.record_verified(digest, [])
    assert not state.is_verified(digest, [])
    assert not state.is_trusted(digest, frozenset())
    assert state.is_trusted(digest, frozenset((digest,)))
    with pytest.raises(state.NoState):
        state.record_trust(digest)
