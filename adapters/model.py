"""The folder in which a platform lays out a model."""

from pathlib import Path

MANIFEST = "manifest.json"


def snapshot_in(folder: Path) -> Path:
    """The snapshot that ``folder`` is, or the only one in it: an archive may have a folder at its top."""
    below = list(folder.glob(f"*/{MANIFEST}"))
    if not (folder / MANIFEST).exists() and len(below) == 1:
        return below[0].parent
    return folder  # opening it says what is wrong
