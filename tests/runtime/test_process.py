"""Forked processes die with their gateway and share no randomness, sockets or secrets."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zerowake.runtime import process


def test_ends_are_told_in_words() -> None:
    assert (
        process.code_reason(3) == "exit code 3" and process.code_reason(-11) == "killed by SIGSEGV"
    )
    assert process.exit_reason(3 << 8) == "exit code 3" and "SIGKILL" in process.exit_reason(9)


def fork(body: "object") -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()  # type: ignore[operator]
        finally:
            os._exit(9)
    return pid


def test_the_kernel_ends_a_process_stuck_in_a_loop_when_the_writer_is_gone() -> None:
    reader, writer = os.pipe()
    armed, tell = os.pipe()

    def child() -> None:
        os.close(writer)
        process.die_with(reader)
        os.write(tell, b"x")
        while True:
            pass

    pid = fork(child)
    os.read(armed, 1)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    for fd in (reader, armed, tell):
        os.close(fd)


def test_a_process_armed_too_late_ends_as_well() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    pid = fork(lambda: process.die_with(reader))
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    os.close(reader)


def test_close_descriptors_keeps_files_and_what_is_named() -> None:
    kept, lost = socket.socketpair()
    file = os.open(__file__, os.O_RDONLY)
    pipe = os.pipe()

    def child() -> None:
        process.close_descriptors(keep=[kept.fileno()])
        left = {int(fd) for fd in os.listdir("/proc/self/fd")}
        good = {kept.fileno(), file} <= left and not {lost.fileno(), *pipe} & left
        os._exit(0 if good else 1)

    assert os.waitpid(fork(child), 0)[1] == 0
    for fd in (file, *pipe):
        os.close(fd)
    kept.close()
    lost.close()


def test_threads_and_sockets_forbid_a_fork_and_are_named() -> None:
    before = process.sockets()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with socket.socket():
        thread.start()
        reason = process.unforkable_reason("importing the module", before)
    stop.set()
    thread.join()
    assert reason is not None
    assert "running thread" in reason and "1 open socket" in reason and "wake()" in reason


def test_reseeding_gives_other_numbers() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    process.reseed()
    assert random.random() != expected


def test_the_environment_of_functions_is_an_allow_list() -> None:
    environ = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "LC_ALL": "C", "WANTED": "1"}
    assert process.function_environment(environ, ["WANTED"]) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "WANTED": "1",
        **process.FIXED,
    }


def test_wait_statuses_are_told_in_words() -> None:
    assert process.exit_reason(3 << 8) == "exit code 3"
    assert process.exit_reason(signal.SIGSEGV) == "killed by SIGSEGV"


def test_private_memory_is_counted_while_the_process_lives() -> None:
    assert (process.private_nbytes(os.getpid()) or 0) > 1 << 20
    assert process.private_nbytes(1 << 22) is None


def test_other_threads_keep_off_this_core_for_a_while() -> None:
    usable, done = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with process.spread_threads():
            inside = os.sched_getaffinity(thread.native_id)
        assert inside < usable if len(usable) > 1 else inside == usable
        assert os.sched_getaffinity(thread.native_id) == usable
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("deaf", ["leader", "child"])
def test_a_group_is_ended_with_those_that_do_not_listen(
    deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.0 if deaf == "leader" else 60.0)
    code = f"""if True:
        import os, signal
        child = os.fork() == 0
        if child is {deaf == "child"}:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"x")
        signal.pause()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.read(2)
        process.end_group(leader)
        assert leader.stdout.read() == b""  # nobody has the other end any more
    assert leader.returncode == -(signal.SIGKILL if deaf == "leader" else signal.SIGTERM)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
def test_room_is_made_in_huge_pages() -> None:
    """A process of its own, for the heap has only one end."""
    source = """
import re
from zerowake.runtime import process
process.make_room(8 << 20)
process.make_room(8 << 20)  # where there is room nothing happens
entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.M)
heap = [entry for entry in entries if "[heap]" in entry]
huge = [entry for entry in heap if re.search(r"^VmFlags:.* hg\\b", entry, re.M)]
sizes = [int(re.search(r"^Size: +(\\d+)", entry, re.M)[1]) << 10 for entry in huge]
assert sum(sizes) % (2 << 20) == 0 and 6 << 20 <= sum(sizes) <= 16 << 20, sizes
assert sum(int(re.search(r"^Rss: +(\\d+)", entry, re.M)[1]) for entry in huge) <= 2048
"""
    subprocess.run([sys.executable, "-c", source], check=True)
