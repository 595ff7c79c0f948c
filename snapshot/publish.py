"""Publishing a directory: written aside, synced, then renamed, so that it is there whole or not at all.

Does not know what is in it. ``staged`` gives a directory to write in, ``publish`` its name; what
killed processes have left is removed by the next one.
"""

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".zerowake-staging-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """A directory below ``parent``, made if need be, to write in.

    Locked while this process lives, so that nobody takes it for stale. Unless it is published it
    is gone afterwards.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent):  # or another process would take it for stale before it has its lock
        remove_stale(parent)
        staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        fd = os.open(staging, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        staging.chmod(0o755)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(fd)


def publish(staging: Path, final: Path, is_sound: Callable[[Path], bool]) -> None:
    """Sync ``staging``, whose files ``write_file`` has synced, and rename it to ``final`` beside it.

    What has the name already stays if ``is_sound`` says so: it was published first. Otherwise the
    two change places, so that there always is one, and who has mapped its files keeps them.
    """
    for directory, _, _ in os.walk(staging):
        sync(Path(directory))
    with _locked(final.parent):
        if os.path.lexists(final):
            if is_sound(final):
                return
            if _exchange(staging, final):
                if staging.is_symlink() or not staging.is_dir():
                    staging.unlink()  # a directory is removed where it was made
            else:
                aside = tempfile.mkdtemp(prefix=PREFIX, dir=final.parent)
                os.rename(final, Path(aside, final.name))
                os.rename(staging, final)
                shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(staging, final)
        sync(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """A new file, synced, in directories that are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove_stale(parent: Path) -> None:
    """Remove what killed processes left: staging directories that nobody holds locked."""
    for left in parent.glob(PREFIX + "*"):
        try:
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody is at work there
        finally:
            os.close(fd)


def _exchange(one: Path, two: Path) -> bool:
    """Have two paths change places in one step, where the file system can (Linux 3.15, glibc 2.28)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two))
    return bool(renameat2(*paths, _RENAME_EXCHANGE) == 0)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Waits until no other process is at this point in ``directory``."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Have what was written to a file or a directory reach the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
