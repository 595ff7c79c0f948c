"""``zerowake.snapshot.mapping``: files in memory."""

import os
from pathlib import Path

import pytest

from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.mapping import map_file, populate, resident_fraction


def test_mapping_is_private_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    before = set(os.listdir("/proc/self/fd"))
    mapped = map_file(path, 10_000)
    assert set(os.listdir("/proc/self/fd")) <= before  # no descriptor is kept
    populate(mapped)
    mapped[5] = 7
    assert path.read_bytes() == bytes(10_000) and mapped[5] == 7
    with pytest.raises(DamagedSnapshot, match="has 10000 bytes, its manifest says 9999"):
        map_file(path, 9_999)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DamagedSnapshot, match="symbolic link"):
        map_file(tmp_path / "link", 10_000)
    with pytest.raises(DamagedSnapshot, match="is missing"):
        map_file(tmp_path / "none", 1)


def test_resident_fraction(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    fraction = resident_fraction(path)
    assert fraction is None or fraction > 0.9
    assert resident_fraction(tmp_path / "none") is None
