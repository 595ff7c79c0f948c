"""``zerowake.runtime.memory``, on made-up /proc and /sys."""

from pathlib import Path

from zerowake.runtime.memory import available_nbytes


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / {"meminfo": "proc/meminfo"}.get(name, f"sys/fs/cgroup/memory.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:  8000 kB\nMemAvailable:   4000 kB\n"


def test_the_machine_s_memory_counts_where_there_is_no_limit(tmp_path: Path) -> None:
    assert available_nbytes(tree(tmp_path, meminfo=MEMINFO)) == 4000 * 1024
    assert available_nbytes(tree(tmp_path, max="max\n", current="5")) == 4000 * 1024


def test_the_limit_counts_less_what_is_used_and_cannot_be_dropped(tmp_path: Path) -> None:
    tree(tmp_path, meminfo=MEMINFO, max="1000000\n", current="900000\n")
    tree(tmp_path, stat="anon 5\ninactive_file 300000\n")
    assert available_nbytes(tmp_path) == 400_000
    assert available_nbytes(tree(tmp_path, current="9000000")) == 0


def test_here_there_is_some() -> None:
    assert available_nbytes() > 0
