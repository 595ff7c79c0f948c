"""A snapshot that was opened: its place, its identity and what was read and checked.

Knows no file system; ``store`` makes one.
"""

from dataclasses import dataclass, field
from pathlib import Path

from zerowake.snapshot.manifest import Manifest
from zerowake.snapshot.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``digest`` ("sha256:<hex>") is the manifest's, and so names everything else."""

    path: Path
    digest: str
    manifest: Manifest
    skeleton: Skeleton = field(repr=False, compare=False)
