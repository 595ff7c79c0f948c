"""``zerowake.snapshot.remote`` and ``storage``: what is fetched and in which parts, and when it is given up."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zerowake.snapshot import form as forms
from zerowake.snapshot import manifest, remote, storage
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    NotInStore,
    SnapshotError,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.fingerprint import fingerprint_id
from zerowake.snapshot.remote import Remote, is_remote, parse_url
from zerowake.snapshot.storage import MAX_PART_NBYTES, PART_NBYTES, Found, Part, delay_s, plan

URL = Remote("test://snapshot")


class FolderStore:
    """Objects in a folder. broken: how many reads of a name still end early, or fail."""

    read_only = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: dict[str, list[int | Exception]] = {}
        self.asked: list[tuple[str, int, int]] = []
        self.written: list[str] = []

    def stat(self, name: str) -> Found:
        try:
            return Found((self.folder / name).stat().st_size, "v1")
        except OSError as error:
            raise NotInStore(f"{name} is not there") from error

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        self.asked.append((name, start, nbytes))
        data = (self.folder / name).read_bytes()[start : start + nbytes]
        broken = self.broken.get(name)
        if broken:
            match broken.pop(0):
                case int(most):
                    data = data[:most]
                case error:
                    raise error
        yield data

    def write(self, name: str, source: Path) -> None:
        self.written.append(name)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, self.folder / name)


@pytest.fixture
def store(frozen: Callable[[str], Path], tmp_path: Path) -> FolderStore:
    """A small snapshot in a store."""
    return FolderStore(shutil.copytree(frozen("zoo.py:Add"), tmp_path / "store"))


def put_form(store: FolderStore, name: str | None = None, **changes: object) -> Path:
    """A compiled form of the snapshot in the store, for this machine unless ``name`` is another's."""
    place = store.folder / "compiled" / (name or fingerprint_id())
    place.mkdir(parents=True)
    (place / "module.so").write_bytes(b"code")
    form = {
        "format": forms.FORMAT,
        "snapshot": manifest.digest_of((store.folder / "manifest.json").read_bytes()),
        "torch_free": True,
        "dtype": None,
        "error": 0.0,
        "modules": [],
        "files": {"module.so": hashlib.sha256(b"code").hexdigest()},
        **changes,
    }
    (place / "form.json").write_text(json.dumps(form))
    return place


def test_urls() -> None:
    digest = "sha256:" + "0a" * 32
    assert parse_url("s3://b/p/n-1/") == Remote("s3://b/p/n-1")
    assert parse_url(f"s3://b/n#{digest}") == Remote("s3://b/n", digest)
    for text in ("s3://b/n#sha256:12", "s3://b/n#", "s3://", f"s3://#{digest}"):
        with pytest.raises(SnapshotError, match="is no address of a snapshot"):
            parse_url(text)
    assert is_remote("gs://b/n") and is_remote("s3://")  # so that parse_url says what it lacks
    assert not is_remote("app.py:Embed") and not is_remote("/tmp/x")


def test_parts_cover_every_byte_once() -> None:
    mib = 1 << 20
    files = {"small": Found(3, ""), "none": Found(0, ""), "large": Found(100 * mib + 1, "")}
    parts = plan(files, threads=16)
    assert parts[0] == Part("small", 0, 3) and all(part.name != "none" for part in parts)
    at = 0
    for part in parts[1:]:
        assert part.start == at and 0 < part.nbytes <= PART_NBYTES
        at += part.nbytes
    assert at == files["large"].nbytes
    huge = plan({"w": Found(4 << 30, "")}, threads=16)
    assert {part.nbytes for part in huge} == {MAX_PART_NBYTES}
    middling = plan({"w": Found(16 * 12 * mib, "")}, threads=16)
    assert len(middling) == 16, "one for each thread"
    assert plan({"w": Found(4 << 30, "", ranged=False)}) == [Part("w", 0, 4 << 30)]


def test_delays_double_up_to_a_limit_and_are_spread() -> None:
    assert [delay_s(n, 1.0) for n in (1, 2, 3, 9)] == [0.2, 0.4, 0.8, 10.0]
    assert delay_s(3, 0.0) == 0.4


def test_a_short_read_is_continued(store: FolderStore, tmp_path: Path) -> None:
    store.broken["proof.json"] = [5, StoreInterrupted("reset"), 0]
    pauses: list[float] = []
    path = remote.fetch(URL, store, tmp_path, pause=pauses.append)
    assert (path / "proof.json").read_bytes() == (store.folder / "proof.json").read_bytes()
    starts = [start for name, start, _ in store.asked if name == "proof.json"]
    assert starts == [0, 5, 5, 5] and len(pauses) == 3
    assert pauses[0] < pauses[1] * 2 and pauses[2] > pauses[0], "longer each time"


def test_giving_up(store: FolderStore, tmp_path: Path) -> None:
    store.broken["skeleton.json"] = [StoreInterrupted("reset")] * 99
    pauses: list[float] = []
    with pytest.raises(StoreInterrupted, match="reset; tried 6 times"):
        remote.fetch(URL, store, tmp_path, pause=pauses.append)
    assert len(pauses) == storage.TRIES - 1


def test_progress_counts_anew() -> None:
    class Dripping:
        """Gives 300 kB at a time and then breaks off."""

        read_only = ""

        def stat(self, name: str) -> Found:
            return Found(9_000_000, "")

        def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
            yield b"x" * min(300_000, nbytes)

    pauses: list[float] = []
    data = storage.read_object(Dripping(), "w", 10_000_000, pauses.append)  # type: ignore[arg-type]
    assert len(data) == 9_000_000 and len(pauses) == 29 and max(pauses) <= 0.2


def test_the_manifest_is_not_fetched_when_it_is_too_large(
    store: FolderStore, tmp_path: Path
) -> None:
    with open(store.folder / "manifest.json", "r+b") as file:
        file.truncate(manifest.MAX_JSON_NBYTES + 1)
    with pytest.raises(StoreError, match="expected at most"):
        remote.fetch(URL, store, tmp_path)
    assert store.asked == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../../evil.py", "names the path"),
        ("/etc/evil", "names the path"),
        ("evil.pth", "has no place in a snapshot"),
        ("manifest.json", "lists a file twice"),
    ],
)
def test_a_manifest_that_names_other_places(
    store: FolderStore, tmp_path: Path, path: str, reason: str
) -> None:
    plain = json.loads((store.folder / "manifest.json").read_bytes())
    plain["files"][path] = plain["files"]["proof.json"]
    (store.folder / "manifest.json").write_bytes(manifest.canonical(plain))
    with pytest.raises(DamagedSnapshot, match=reason):
        remote.fetch(URL, store, tmp_path / "cache")
    assert [name for name, _, _ in store.asked] == ["manifest.json"]


def test_no_space(store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match="1,000 are free; free space there, or set XDG_CACHE_HOME"):
        remote.fetch(URL, store, tmp_path)


def test_a_damaged_copy_in_the_cache_is_fetched_anew(store: FolderStore, tmp_path: Path) -> None:
    path = remote.fetch(URL, store, tmp_path)
    (path / "proof.json").unlink()
    assert remote.cached(Remote(URL.url, "sha256:" + path.name), tmp_path) is None
    assert remote.fetch(URL, store, tmp_path) == path
    assert (path / "proof.json").exists()


def test_the_form_for_this_machine_comes_along(store: FolderStore, tmp_path: Path) -> None:
    put_form(store, "0123456789abcdef")
    place = put_form(store)
    path = remote.fetch(URL, store, tmp_path)
    assert [form.name for form in (path / "compiled").iterdir()] == [place.name]
    assert (path / "compiled" / place.name / "module.so").read_bytes() == b"code"


def test_a_form_that_is_made_later_is_added(store: FolderStore, tmp_path: Path) -> None:
    path = remote.fetch(URL, store, tmp_path)
    assert not (path / "compiled").exists()
    place = put_form(store)
    store.asked.clear()
    remote.fetch(URL, store, tmp_path)
    assert {file.name for file in (path / "compiled" / place.name).iterdir()} == {
        "form.json",
        "module.so",
    }
    assert not any(name.startswith("weights") for name, _, _ in store.asked)
    store.asked.clear()
    remote.fetch(URL, store, tmp_path)
    assert [name for name, _, _ in store.asked] == ["manifest.json"]


def test_no_form_where_missing_objects_are_denied(store: FolderStore, tmp_path: Path) -> None:
    """S3 answers so to who may read but not list."""
    known = store.stat

    def stat(name: str) -> Found:
        if name.startswith("compiled/"):
            raise StoreDenied(name)
        return known(name)

    store.stat = stat  # type: ignore[method-assign]
    assert not (remote.fetch(URL, store, tmp_path) / "compiled").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"snapshot": "sha256:00"}, "belongs to another snapshot"),
        ({"files": {"module.so": "00"}}, "does not have the digest"),
        ({"files": {"../../../evil": "00"}}, "file '../../../evil'"),
        ({"files": {"a/b": "00"}}, "file 'a/b'"),
        ({"files": {"form.json": "00"}}, "file 'form.json'"),
        ({"files": {"gone.so": "00"}}, "gone.so is not there"),
        ({"format": 9}, "format 9"),
    ],
)
def test_a_form_that_is_wrong_is_left_out(
    store: FolderStore, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    put_form(store, **changes)
    notes: list[str] = []
    for _ in range(2):  # with the snapshot, and later
        path = remote.fetch(URL, store, tmp_path / "cache", note=notes.append)
        assert list(path.glob("compiled/*")) == []
    assert len(notes) == 2 and all(reason in note for note in notes)


def test_uploading_ends_with_the_manifest(store: FolderStore, tmp_path: Path) -> None:
    place = put_form(store)
    (store.folder / "compiled" / ".zerowake-staging-x").mkdir()
    (store.folder / "timings.json").write_text("{}")
    target = FolderStore(tmp_path / "target")
    remote.upload(store.folder, target)
    form = f"compiled/{place.name}/"
    assert target.written[:2] == [f"{form}module.so", f"{form}form.json"]
    assert target.written[-1] == "manifest.json" and "timings.json" not in target.written
    path = remote.fetch(URL, target, tmp_path)
    assert (path / form / "form.json").is_file()


def test_caches_of_a_form_come_along(store: FolderStore, tmp_path: Path) -> None:
    name, digest = "caches/triton/A2/add.cubin", hashlib.sha256(b"code").hexdigest()
    place = put_form(store, files={name: digest, "module.so": digest})
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"code")
    target = FolderStore(tmp_path / "target")
    remote.upload(store.folder, target)
    path = remote.fetch(URL, target, tmp_path)
    assert (path / "compiled" / place.name / name).read_bytes() == b"code"


def test_a_damaged_snapshot_is_not_uploaded(store: FolderStore, tmp_path: Path) -> None:
    (store.folder / "proof.json").write_bytes(b"{}")
    target = FolderStore(tmp_path / "target")
    with pytest.raises(DamagedSnapshot):
        remote.upload(store.folder, target)
    assert target.written == []
