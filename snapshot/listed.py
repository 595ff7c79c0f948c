"""Files that a list names with their SHA-256: what is hashed is what is used.

A library runs as soon as it is loaded, so nobody may have put another in its place between the look at
its digest and that. Knows no form and no snapshot.
"""

import contextlib
import hashlib
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zerowake.snapshot import state
from zerowake.snapshot.errors import DamagedSnapshot, UnusableForm
from zerowake.snapshot.mapping import map_file, open_file, populate

_counter = itertools.count(1)


class Listed(NamedTuple):
    """most: the bytes that it may have."""

    path: Path
    sha256: str
    most: int

    def check(self) -> None:
        """Raises UnusableForm unless it has the digest."""
        with self._opened() as fd:
            self._check(fd)

    def read(self) -> bytes:
        """All of it. Raises UnusableForm unless it has the digest."""
        with self._opened() as fd:
            data = self._read(fd)
        self._compare(hashlib.sha256(data).hexdigest())
        return data

    @contextlib.contextmanager
    def loadable(self) -> Iterator[str]:
        """Where ``dlopen`` finds the bytes that were checked, until the end. Raises UnusableForm."""
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(self._opened())
            facts = os.fstat(fd)
            if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
                # Somebody else can write to it at any time. A copy is ours alone; its price is that
                # processes do not share it, 1 to 2 MB each.
                copy = os.memfd_create(self.path.name)
                stack.callback(os.close, copy)
                with open(copy, "wb", closefd=False) as file:
                    file.write(self._read(fd))
                fd = copy
            self._check(fd)
            # Descriptors are used again, and the loader takes what has the name of something that it
            # has loaded for the same: each gets a name of its own.
            yield f"/proc/self/fd{'/' * next(_counter)}{fd}"

    def mapped(self) -> mmap.mmap | None:
        """The file, mapped as weights are; None without bytes. Raises UnusableForm.

        Only data, so it is hashed as weights are: once, for as long as the file stays as it is.
        """
        with self._opened() as fd:
            file = os.fstat(fd)
            facts = [state.file_facts(file)]
            if not file.st_size:
                return None
            try:
                found = map_file(self.path, file.st_size)
                is_it = facts == [state.file_facts(os.lstat(self.path))]  # while fd keeps the inode
            except (DamagedSnapshot, OSError) as error:
                raise UnusableForm(in_words(error)) from error
        # Of this path: copies of a form would take each other's record away.
        key = hashlib.sha256(f"{self.sha256} {self.path.absolute()}".encode()).hexdigest()
        record = f"sha256:{key}"
        if not (is_it and state.is_verified(record, facts)):
            populate(found)  # or each page that is hashed would be a fault
            self._compare(hashlib.sha256(found).hexdigest())
            if is_it:
                state.record_verified(record, facts)
        return found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            fd = open_file(self.path)
        except (DamagedSnapshot, OSError) as error:
            raise UnusableForm(in_words(error)) from error
        try:
            if (nbytes := os.fstat(fd).st_size) > self.most:
                raise UnusableForm(f"{self.path} has {nbytes} bytes; expected at most {self.most}")
            yield fd
        finally:
            os.close(fd)

    def _read(self, fd: int) -> bytes:
        with open(fd, "rb", closefd=False) as file:
            return file.read(self.most)

    def _check(self, fd: int) -> None:
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            self._compare(hashlib.file_digest(file, "sha256").hexdigest())

    def _compare(self, found: str) -> None:
        if found != self.sha256:
            raise UnusableForm(f"{self.path} does not have the digest that form.json names")


def in_words(error: DamagedSnapshot | OSError) -> str:
    """What is wrong with a file, without the remedies for a damaged snapshot."""
    return (
        f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error.args[0])
    )
