"""Snapshots in an object store: fetched once into a cache that is addressed by digest, and uploaded.

Knows no cloud: a ``Store`` of an adapter reads and writes objects. The objects are the snapshot's
files under the same names. The manifest names all others, so nothing is ever listed, and it is
written last, so a snapshot without one is not there yet.
"""

import errno
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zerowake.snapshot import form as forms
from zerowake.snapshot import manifest, publish
from zerowake.snapshot.errors import (
    DamagedSnapshot,
    NotInStore,
    SnapshotError,
    SnapshotNotFound,
    StoreChanged,
    StoreDenied,
    StoreError,
    UnusableForm,
)
from zerowake.snapshot.fingerprint import fingerprint_id
from zerowake.snapshot.storage import (
    THREADS,
    Found,
    Pause,
    Progress,
    Store,
    again,
    download,
    read_object,
)
from zerowake.snapshot.store import (
    MANIFEST_FILE,
    check_digests,
    file_sizes,
    is_whole,
    open_snapshot,
)

_SPARE_NBYTES = 1 << 20  # directories and the manifest, when judging free space
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^#]+")
_PINNED = re.compile(r"(?P<url>[^#]*)#(?P<digest>sha256:[0-9a-f]{64})")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """url: a snapshot's folder in a store. digest: the only snapshot that is to be found there."""

    url: str
    digest: str | None = None


def is_remote(text: str) -> bool:
    """Whether ``text`` is meant to name something in a store: ``scheme://...``, complete or not."""
    return _SCHEME.match(text) is not None


def parse_url(text: str) -> Remote:
    """``s3://bucket/prefix/name-0123456789ab``, or the same with ``#sha256:<hex>`` behind it.

    Raises SnapshotError.
    """
    pinned = _PINNED.fullmatch(text)
    url = (pinned["url"] if pinned else text).rstrip("/")
    if not _URL.fullmatch(url):
        raise SnapshotError(
            f"{text!r:.200} is no address of a snapshot; wanted scheme://.../name, and behind it "
            "#sha256: with 64 hexadecimal digits, or nothing"
        )
    return Remote(url, pinned["digest"] if pinned else None)


def cached(remote: Remote, cache: Path) -> Path | None:
    """The local directory of a pinned snapshot if it is there: no store is needed then."""
    if remote.digest is None:
        return None
    path = _place(cache / "remote", remote.digest)
    return path if is_whole(path, remote.digest) else None


def fetch(
    remote: Remote,
    store: Store,
    cache: Path,
    progress: Progress = lambda stage, done, total: None,
    note: Note = lambda text: None,
    pause: Pause | None = None,
) -> Path:
    """The local directory of a remote snapshot, below ``cache``; fetched unless it is there.

    It has every digest that the manifest names, and this machine's compiled form where the store
    has one. Whole or not there, whatever ends this process; of several that fetch the same one
    works and the others wait. ``progress(stage, done, total)`` counts bytes of "fetch" and "verify";
    pause: waits so many seconds before the next try. Raises SnapshotNotFound, DamagedSnapshot,
    UnsupportedVersion or StoreError.
    """
    home = cache / "remote"
    try:
        data = read_object(store, MANIFEST_FILE, manifest.MAX_JSON_NBYTES, pause)
    except NotInStore as error:
        raise SnapshotNotFound(
            f"there is no snapshot at {remote.url}: no {MANIFEST_FILE}. Name the snapshot's own "
            "folder, <name>-<digest>; `zerowake freeze --out URL` makes one"
        ) from error
    digest = manifest.digest_of(data)
    if remote.digest not in (None, digest):
        raise StoreError(
            f"{remote.url} holds {digest}, wanted {remote.digest}; name the snapshot that is meant, "
            "or its digest as it is now"
        )
    path = _place(home, digest)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, digest, lambda: note(f"{remote.url} is being fetched; waiting for it")):
            form = _form_name()
            if not is_whole(path, digest):
                with publish.staged(home) as staging:
                    _fetch_all(remote, store, data, staging, progress, pause)
                    if form is not None:
                        _fetch_form(store, digest, form, staging, note, pause)
                    publish.publish(staging, path, lambda old: is_whole(old, digest))
            elif form is not None and not (path / form).is_dir():
                with publish.staged(path / forms.DIRECTORY) as staging:
                    if _fetch_form(store, digest, form, staging, note, pause):
                        publish.publish(staging / form, path / form, lambda old: True)
    except OSError as error:
        raise StoreError(
            f"{remote.url} cannot be kept in {home}: {error.strerror or error}; free space there, "
            "or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return path


def _is_own(file: Path) -> bool:
    """A file, and not a link to one that lies elsewhere."""
    return file.is_file() and not file.is_symlink()


def upload(
    path: Path,
    store: Store,
    progress: Progress = lambda stage, done, total: None,
    pause: Pause | None = None,
) -> None:
    """Write the snapshot at ``path`` and its compiled forms to ``store``, the manifest last.

    ``progress("upload", done, total)`` counts bytes. Raises SnapshotError for what is wrong with
    the snapshot, StoreError.
    """
    snapshot = open_snapshot(path)
    check_digests(snapshot, progress)
    heads = sorted(snapshot.path.glob(f"{forms.DIRECTORY}/[!.]*/{forms.FILE}"))
    files = [
        *(f for head in heads for f in sorted(head.parent.rglob("*")) if _is_own(f) and f != head),
        *heads,
        *(snapshot.path / name for name in file_sizes(snapshot.manifest)),
        snapshot.path / MANIFEST_FILE,
    ]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        name = file.relative_to(snapshot.path).as_posix()
        again(lambda name=name, file=file: store.write(name, file), pause)  # type: ignore[misc]
        done += file.stat().st_size
        progress("upload", done, total)


def _place(home: Path, digest: str) -> Path:
    return home / digest.removeprefix("sha256:")


def _fetch_all(
    remote: Remote, store: Store, data: bytes, into: Path, progress: Progress, pause: Pause | None
) -> None:
    """The snapshot of the manifest ``data`` and its form for this machine, checked."""
    try:
        sizes = file_sizes(manifest.parse(data))
        found = _stat_all(store, sizes, pause)
        for name, size in sizes.items():
            if found[name].nbytes != size:
                raise DamagedSnapshot(
                    f"{name} has {found[name].nbytes} bytes, the manifest says {size}"
                )
        _check_space(into, sum(sizes.values()))
        download(store, found, into, progress, pause)
        publish.write_file(into / MANIFEST_FILE, data)
        try:
            check_digests(open_snapshot(into), progress)
        except DamagedSnapshot:
            _check_unchanged(store, found, pause)
            raise
    except NotInStore as error:
        raise DamagedSnapshot(
            f"{remote.url} lacks a file that its manifest names: {error}"
        ) from error
    except DamagedSnapshot as error:
        raise DamagedSnapshot(f"{remote.url}: {error.args[0]}") from error


def _fetch_form(
    store: Store, digest: str, name: str, into: Path, note: Note, pause: Pause | None
) -> bool:
    """The compiled form ``name`` ("compiled/<fingerprint>") of the snapshot ``digest``, below ``into``.

    False where the store has none, or one that is not what it says: the snapshot serves without,
    so that is only told. Whether it may be used is judged when it is opened.
    """
    place = into / name
    try:
        data = read_object(store, f"{name}/{forms.FILE}", manifest.MAX_JSON_NBYTES, pause)
    except (NotInStore, StoreDenied):  # S3 denies what is not there to who may not list
        return False
    try:
        form = forms.parse_form(place, data)
        if form.snapshot != digest:
            raise UnusableForm("it belongs to another snapshot")
        files = {f"{name}/{file}": sha256 for file, sha256 in form.files.items()}
        found = _stat_all(store, files, pause)
        _check_space(into, sum(each.nbytes for each in found.values()))
        download(store, found, into, pause=pause)
        for file, sha256 in files.items():
            with open(into / file, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                    raise UnusableForm(f"{file} does not have the digest that {forms.FILE} names")
        publish.write_file(place / forms.FILE, data)
    except (UnusableForm, NotInStore) as error:
        shutil.rmtree(place, ignore_errors=True)
        note(f"the compiled form in the store cannot be used: {error}; upload the snapshot again")
        return False
    return True


def _form_name() -> str | None:
    """Where a form for this machine would be; None where there can be none."""
    try:
        return f"{forms.DIRECTORY}/{fingerprint_id()}"
    except (SnapshotError, OSError, ImportError):  # no torch is installed that could run one
        return None


def _stat_all(store: Store, names: Iterable[str], pause: Pause | None) -> dict[str, Found]:
    with ThreadPoolExecutor(THREADS) as pool:
        stats = pool.map(lambda name: again(lambda: store.stat(name), pause), names)
        return dict(zip(names, stats, strict=True))


def _check_unchanged(store: Store, seen: Mapping[str, Found], pause: Pause | None) -> None:
    """Raises StoreChanged when that is why digests differ: not every store reads at a version."""
    for name, found in seen.items():
        if again(lambda name=name: store.stat(name), pause) != found:  # type: ignore[misc]
            raise StoreChanged(
                f"{name} was replaced in the store while it was fetched; start again"
            )


def _check_space(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if free < needed + _SPARE_NBYTES:
        raise OSError(errno.ENOSPC, f"it needs {needed:,} bytes, {free:,} are free")


@contextmanager
def _alone(home: Path, digest: str, wait: Callable[[], None]) -> Iterator[None]:
    """While this runs, no other process is at work on ``digest``; the kernel ends a lock with its
    process. ``wait`` is called when somebody is."""
    locks = home / "locks"
    locks.mkdir(exist_ok=True)
    with open(_place(locks, digest), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
