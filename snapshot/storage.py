"""Files out of an object store: in parts, side by side, tried again, each at one version.

Knows no cloud and no snapshot. ``Store`` is what an adapter for one kind of store implements.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from zerowake.snapshot.errors import StoreError, StoreInterrupted

THREADS = 16  # one connection of S3 gives some 50 to 90 MB/s; more of them add up
PART_NBYTES, MAX_PART_NBYTES = 8 << 20, 16 << 20  # what AWS advises for ranged GETs
CHUNK_NBYTES = 1 << 20  # what a store should hand over at a time
TRIES = 6  # in a row without progress
PROGRESS_NBYTES = 256 << 10  # a try that brings less counts as one without
FIRST_DELAY_S, MAX_DELAY_S = 0.2, 10.0

Progress = Callable[[str, int, int], None]
Pause = Callable[[float], object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was seen first. version: what changes when it is replaced; "" if the store
    does not say. ranged: it can be read from the middle. kept: the one to read of several versions
    that the store keeps, by its own name for it; "" is the current one."""

    nbytes: int
    version: str
    ranged: bool = True
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``start`` to ``start + nbytes`` of an object."""

    name: str
    start: int
    nbytes: int


class Store(Protocol):
    """The objects below one URL, by their path relative to it. Used by many threads at once.

    All methods raise NotInStore, StoreDenied, StoreInterrupted for what may go well when it is
    tried again, and StoreError for the rest; the messages name the object.

    read_only: why nothing is ever written to it, and what to do instead; "" where that is not so.
    """

    read_only: str

    def stat(self, name: str) -> Found: ...

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        """Bytes of exactly the version ``found``, as they come, at most ``nbytes`` and at least one
        if there are any: a connection may end early. Raises StoreChanged as well."""
        ...

    def write(self, name: str, source: Path) -> None:
        """An object with the content of a file; it is there whole or not at all."""
        ...


def plan(files: Mapping[str, Found], threads: int = THREADS) -> list[Part]:
    """The parts that the files are fetched in, those of one file in order.

    Large enough to be worth a request, small enough that all threads have one. An object that
    cannot be read from the middle is one part.
    """
    share = -(-sum(found.nbytes for found in files.values()) // threads)
    size = min(max(share, PART_NBYTES), MAX_PART_NBYTES)
    return [
        Part(name, start, min(step, found.nbytes - start))
        for name, found in files.items()
        for step in [size if found.ranged else max(found.nbytes, 1)]
        for start in range(0, found.nbytes, step)
    ]


def delay_s(failures: int, chance: float) -> float:
    """Seconds before the next try after so many ``failures``: doubled each time, and spread by
    ``chance`` (0 to 1) so that many clients do not come back at once."""
    return float(min(FIRST_DELAY_S * 2 ** (failures - 1), MAX_DELAY_S) * (0.5 + chance / 2))


def again(act: Callable[[], T], pause: Pause | None) -> T:
    """What ``act`` returns, tried again after StoreInterrupted. pause: None waits in earnest."""
    failures = 0
    while True:
        try:
            return act()
        except StoreInterrupted as error:
            failures = _failed(failures, error, pause)


def read_object(store: Store, name: str, most: int, pause: Pause | None) -> bytes:
    """A small object. Raises StoreError when it has more than ``most`` bytes."""
    found = again(lambda: store.stat(name), pause)
    if found.nbytes > most:
        raise StoreError(f"{name} has {found.nbytes} bytes in the store; expected at most {most}")
    data = bytearray()
    _read(store, Part(name, 0, found.nbytes), found, lambda at, chunk: data.extend(chunk), pause)
    return bytes(data)


def read_version(store: Store, name: str, found: Found, pause: Pause | None = None) -> bytes:
    """The content of exactly the version ``found``, its parts side by side.

    pause: what waits before a try; it may raise, which ends the reading. Raises what the store
    raises, the first that comes.
    """
    data = bytearray(found.nbytes)
    stop = threading.Event()

    def take(at: int, chunk: bytes) -> None:
        if stop.is_set():
            raise StoreError("another part of the same object has failed")  # nobody sees it
        data[at : at + len(chunk)] = chunk

    def fetch(part: Part) -> None:
        _read(store, part, found, take, pause or stop.wait)

    parts = plan({name: found})
    if len(parts) == 1:
        fetch(parts[0])
    elif parts:
        with ThreadPoolExecutor(min(THREADS, len(parts))) as pool:
            try:
                for job in as_completed([pool.submit(fetch, part) for part in parts]):
                    job.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return bytes(data)


def download(
    store: Store,
    files: Mapping[str, Found],
    into: Path,
    progress: Progress = lambda stage, done, total: None,
    pause: Pause | None = None,
) -> None:
    """Write the objects ``files`` to files of the same names below ``into``, synced.

    ``progress("fetch", done, total)`` counts bytes. Raises what the store raises, the first that
    comes, and OSError of the disk.
    """
    stop, lock, done = threading.Event(), threading.Lock(), 0
    wait = pause or stop.wait
    total = sum(found.nbytes for found in files.values())
    progress("fetch", 0, total)
    for name, found in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        with open(into / name, "xb") as file:
            file.truncate(found.nbytes)

    def fetch(part: Part) -> None:
        fd = os.open(into / part.name, os.O_WRONLY | os.O_CLOEXEC)

        def take(at: int, chunk: bytes) -> None:
            nonlocal done
            if stop.is_set():
                raise StoreError("another part of the same fetch has failed")  # nobody sees it
            _write(fd, chunk, at)
            with lock:
                done += len(chunk)
                progress("fetch", done, total)

        try:
            _read(store, part, files[part.name], take, wait)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for job in as_completed([pool.submit(fetch, part) for part in plan(files)]):
                job.result()
            list(pool.map(lambda name: _sync(into / name), files))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(
    store: Store, part: Part, found: Found, take: Callable[[int, bytes], None], pause: Pause | None
) -> None:
    """Give every byte of ``part`` to ``take(at, chunk)``; what an early end left out is asked for
    again, from there."""
    at, end, failures = part.start, part.start + part.nbytes, 0
    while at < end:
        began = at
        try:
            for chunk in store.read(part.name, found, at, end - at):
                take(at, chunk[: end - at])
                at = min(at + len(chunk), end)
            if at < end:
                raise StoreInterrupted(f"{part.name} ended after {at} bytes of {found.nbytes}")
        except StoreInterrupted as error:
            if at - began >= PROGRESS_NBYTES:
                failures = 0
            failures = _failed(failures, error, pause)


def _failed(failures: int, error: StoreInterrupted, pause: Pause | None) -> int:
    """Count a failure and wait, or give up."""
    if failures + 1 >= TRIES:
        raise StoreInterrupted(
            f"{error}; tried {TRIES} times. Check the network and the store, then start again: "
            "nothing half-done was kept"
        ) from error
    (pause or time.sleep)(delay_s(failures + 1, random.random()))
    return failures + 1


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
