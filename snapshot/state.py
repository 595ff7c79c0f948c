"""What this user remembers about snapshots: which were made here, which were verified.

Knows no snapshot format; a digest and a list of file facts are all it takes.
"""

import contextlib
import json
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from zerowake.snapshot.errors import SnapshotError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class NoState(SnapshotError):
    """Nothing can be remembered here: a container's file system, say, that is only read."""


def state_dir(environment: Mapping[str, str] | None = None) -> Path:
    """The directory of records, made on first use with mode 0700.

    ``$ZEROWAKE_STATE``, else ``$XDG_STATE_HOME/zerowake``, else ``~/.local/state/zerowake``. Who
    can write there can have code run, so it must be this user's alone. Raises SnapshotError, NoState
    where it cannot be made.
    """
    env = os.environ if environment is None else environment
    if given := env.get("ZEROWAKE_STATE"):
        path = Path(given)
    else:
        base = env.get("XDG_STATE_HOME")
        path = (Path(base) if base else Path.home() / ".local" / "state") / "zerowake"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(path)
    except OSError as error:
        raise NoState(
            f"the state directory {path} cannot be made: {error.strerror}; set ZEROWAKE_STATE to "
            "one that this user can write to"
        ) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise SnapshotError(
            f"the state directory {path} belongs to uid {found.st_uid} with mode "
            f"{stat.S_IMODE(found.st_mode):04o}; it must belong to uid {os.geteuid()} and be writable "
            f"by nobody else: chmod go-w {path}, or set ZEROWAKE_STATE"
        )
    return path


def record_trust(digest: str) -> None:
    """Remember that this user made the snapshot ``digest`` here."""
    _write(_record("made", digest), b"")


def is_trusted(digest: str, named: frozenset[str]) -> bool:
    """Whether this user made it here, or the operator named it (in full)."""
    if digest in named:
        return True
    try:
        return _record("made", digest).is_file()
    except NoState:
        return False


def file_facts(found: os.stat_result) -> list[object]:
    """What would change if a file were replaced or written to."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def is_verified(digest: str, facts: list[list[object]]) -> bool:
    """Whether the last verification of ``digest`` saw exactly these files."""
    try:
        return bool(json.loads(_record("verified", digest).read_bytes()) == facts)
    except (NoState, OSError, ValueError):
        return False


def record_verified(digest: str, facts: list[list[object]]) -> None:
    """Remember it, where that is possible; elsewhere it is verified again the next time."""
    with contextlib.suppress(NoState, OSError):
        _write(_record("verified", digest), json.dumps(facts).encode())


def _record(kind: str, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise SnapshotError(f"{digest!r:.80} is no digest; wanted sha256:<64 hexadecimal digits>")
    return state_dir() / kind / digest.removeprefix("sha256:")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}")
    temporary.write_bytes(data)
    temporary.replace(path)
