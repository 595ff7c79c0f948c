"""``zerowake.runtime.cores``: what a container's quota leaves of a machine's cores."""

import os
from pathlib import Path

import pytest

from zerowake.runtime import cores

V1 = "3:cpuset:/a\n2:cpu,cpuacct:/kubepods/pod1/c1\n0::/\n"


def root(folder: Path, groups: str, **files: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("-", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    "groups, files, granted",
    [
        ("0::/\n", {"cpu-max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu-max": "max 100000\n"}, float("inf")),
        ("0::/a/b\n", {"a__b__cpu-max": "max 100000\n", "a__cpu-max": "150000 100000"}, 1.5),
        ("0::/../elsewhere\n", {"cpu-max": "50000 100000"}, 0.5),
        (V1, {"cpu,cpuacct__cpu-cfs_quota_us": "400000", "cpu,cpuacct__cpu-cfs_period_us": "100000"}, 4),
        (V1, {"cpu,cpuacct__cpu-cfs_quota_us": "-1", "cpu,cpuacct__cpu-cfs_period_us": "100000"}, float("inf")),
        ("0::/\n", {"cpu-max": "nonsense"}, float("inf")),
    ],
)  # fmt: skip
def test_the_least_that_any_group_grants(
    tmp_path: Path, groups: str, files: dict[str, str], granted: float
) -> None:
    assert cores.quota(root(tmp_path, groups, **files)) == granted


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert cores.quota(tmp_path) == float("inf")


@pytest.mark.parametrize("granted, usable", [(0.5, 1), (1.9, 1), (float("inf"), 3), (2, 2), (9, 3)])
def test_no_more_than_the_affinity_and_one_at_least(
    monkeypatch: pytest.MonkeyPatch, granted: float, usable: int
) -> None:
    monkeypatch.setattr(cores, "quota", lambda root: granted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert cores.usable() == usable
