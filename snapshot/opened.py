"""A snapshot that was opened: its place, its identity and what was read and checked.

Knows no file system; ``store`` makes one.
"""

from pathlib import Path
from typing import NamedTuple

from zerowake.snapshot.manifest import Manifest
from zerowake.snapshot.skeleton import Skeleton


class Snapshot(NamedTuple):
    """``digest`` ("sha256:<hex>") is the manifest's, and so names everything else."""

    path: Path
    digest: str
    manifest: Manifest
    skeleton: Skeleton
