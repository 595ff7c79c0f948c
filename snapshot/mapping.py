"""A weights file in memory: mapped private and writable, so a write makes a page of one's own.

Knows no tensor and no manifest. A file that shrinks under a mapping is a SIGBUS in whoever
touches it, so the length is checked on the descriptor that is mapped.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from pathlib import Path

from zerowake.snapshot.errors import DamagedSnapshot

MADV_POPULATE_READ = 22  # Linux 5.14
_MAP_FIXED = 0x10
_SAMPLES = 256


def map_file(path: Path, nbytes: int) -> mmap.mmap:
    """The ``nbytes`` of ``path``, mapped. The mapping ends when its last user is gone.

    Raises DamagedSnapshot when the file is a link, no regular file, missing or of another length.
    """
    fd = open_file(path)
    try:
        found = os.fstat(fd).st_size
        if found != nbytes:
            raise DamagedSnapshot(f"{path.name} has {found} bytes, its manifest says {nbytes}")
        # Python's own mapping of a file keeps a descriptor open, which a forked child that closes
        # all descriptors would leave dangling. So an anonymous one is made and replaced in place.
        mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        hold = ctypes.c_char.from_buffer(mapped)
        got = _libc_mmap()(
            ctypes.addressof(hold),
            nbytes,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | _MAP_FIXED,
            fd,
            0,
        )
        if got != ctypes.addressof(hold):
            code = ctypes.get_errno()
            raise OSError(code, f"mmap of {path}: {os.strerror(code)}")
        del hold
        return mapped
    finally:
        os.close(fd)


def open_file(path: Path) -> int:
    """A descriptor for reading. Raises DamagedSnapshot when ``path`` is missing, no regular file, or
    its last part is a symbolic link."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedSnapshot(
                f"{path} is a symbolic link; a snapshot holds only files"
            ) from None
        if error.errno == errno.ENOENT:
            raise DamagedSnapshot(f"{path} is missing") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DamagedSnapshot(f"{path} is no regular file; a snapshot holds only files")
    return fd


def read_file(path: Path, most: int) -> bytes:
    """All of a file. Raises DamagedSnapshot as ``open_file`` does, or when it has more than ``most``
    bytes."""
    with open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DamagedSnapshot(f"{path.name} has {size} bytes; expected at most {most}")
        return file.read(size)


def populate(mapped: mmap.mmap) -> None:
    """Fill the page tables for reading, so that the first run takes no faults."""
    try:
        mapped.madvise(MADV_POPULATE_READ)
    except OSError:  # an older kernel: touch every page
        for offset in range(0, len(mapped), mmap.PAGESIZE):
            mapped[offset]


def resident_fraction(path: Path, samples: int = _SAMPLES) -> float | None:
    """The part of the file in the page cache, from ``samples`` one-byte reads that may not wait.

    None when the file is not there or its file system cannot say. ``mincore`` is no help: for a
    file that one may not write it answers "all resident".
    """
    import random  # no start needs it

    try:
        fd = open_file(path)
    except (OSError, DamagedSnapshot):
        return None
    try:
        npages = -(-os.fstat(fd).st_size // mmap.PAGESIZE)
        if npages == 0:
            return None
        # stratified, and not on the same pages each time: a probe may itself start read-ahead
        count = min(samples, npages)
        hits = 0
        for i in range(count):
            page = int((i + random.random()) * npages / count)
            with contextlib.suppress(BlockingIOError):
                hits += os.preadv(fd, [bytearray(1)], page * mmap.PAGESIZE, os.RWF_NOWAIT) == 1
        return hits / count
    except OSError:
        return None
    finally:
        os.close(fd)


def _libc_mmap() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return function
