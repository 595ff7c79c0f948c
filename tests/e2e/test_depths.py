"""Sleep and wake through every depth, on command and by idle time; ends of processes on the way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Gateway, zerowake


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(gateway: Gateway) -> list[int]:
    """What it has started itself: at cold only its base zygote."""
    pid = gateway.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def add(frozen: Callable[[str], Path], launch: Callable[..., Gateway]) -> Gateway:
    return launch(frozen("zoo.py:Add"), "--depth", "cold", "--idle-s", "3600")


@pytest.mark.parametrize("depth", ["prewarmed", "zygote", "cold"])
def test_a_function_wakes_from_every_depth(add: Gateway, depth: str) -> None:
    assert add.sleep("add", depth).status == 200
    assert add.function("add")["depth"] == depth
    reply = add.call("add", {"a": 1})
    assert reply.json() == 1006
    assert reply.headers["zerowake-depth"] == depth
    assert add.function("add")["depth"] == "hot"


def test_cold_leaves_nothing_of_the_function(add: Gateway) -> None:
    add.sleep("add", "prewarmed")
    pids = add.pids("add")
    assert set(pids) == {"prewarmed", "zygote"}
    add.sleep("add", "cold")
    assert add.function("add")["processes"] == []
    assert not any(alive(pid) for pid in pids.values())


def test_wake_brings_it_up(add: Gateway) -> None:
    add.sleep("add", "cold")
    assert add.request("POST", "/functions/add/wake", b"{}").status == 200
    assert add.function("add")["depth"] == "hot"


def test_the_command_line_does_the_same(add: Gateway) -> None:
    assert zerowake("sleep", "add", "--depth", "zygote", "--url", add.url).returncode == 0
    listed = zerowake("ps", "--url", add.url)
    assert "zygote" in listed.stdout
    invoked = zerowake("invoke", "add", "--data", '{"a": 2}', "--url", add.url)
    assert invoked.stdout.strip() == "1007"
    assert zerowake("wake", "add", "--url", add.url).returncode == 0
    wrong = zerowake("invoke", "add", "--data", '{"a": "x"}', "--url", add.url)
    assert wrong.returncode == 1 and "422" in wrong.stderr


def test_calls_during_a_restore_are_its_first_batch(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Batched"), "--depth", "cold")
    (base,) = children(gateway)
    os.kill(base, signal.SIGSTOP)  # until all of them are there
    try:
        calls = [gateway.start_call("batched", {"do": str(i)}) for i in range(4)]
        gateway.until(lambda: gateway.function("batched")["queued"] == 4)
    finally:
        os.kill(base, signal.SIGCONT)
    replies = [call.result() for call in calls]
    assert [reply.status for reply in replies] == [200] * 4
    assert max(reply.json()["batch"] for reply in replies) > 1
    assert {reply.headers["zerowake-depth"] for reply in replies} == {"cold"}
    assert all("restore;dur=" in reply.headers["server-timing"] for reply in replies)


def test_idle_functions_sink_to_where_they_rest(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Add"), "--depth", "cold", "--idle-s", "0.2")
    assert gateway.call("add", {"a": 1}).status == 200
    gateway.at_depth("add", "cold")
    assert gateway.function("add")["processes"] == []


def test_a_lost_zygote_leaves_its_hot_instance_alive(add: Gateway) -> None:
    add.sleep("add", "zygote")
    add.call("add", {"a": 1})
    pids = add.pids("add")
    os.kill(pids["zygote"], signal.SIGKILL)
    add.until(lambda: "zygote" not in add.pids("add"))
    assert add.call("add", {"a": 1}).headers["zerowake-depth"] == "hot"
    assert add.pids("add")["instance"] == pids["instance"]
    os.kill(pids["instance"], signal.SIGKILL)  # an orphan: the gateway itself must notice
    add.until(lambda: add.pids("add").get("instance") != pids["instance"])
    assert add.call("add", {"a": 1}).json() == 1006


def test_a_lost_base_is_started_again(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Add"), "--depth", "cold")
    (base,) = children(gateway)
    os.kill(base, signal.SIGKILL)
    assert gateway.call("add", {"a": 1}).json() == 1006


def test_nothing_survives_a_killed_gateway(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Batched"), "--depth", "prewarmed")
    hung = gateway.start_call("batched", {"do": "hang"})
    gateway.until(lambda: gateway.function("batched")["state"] == "busy")
    pids = [*children(gateway), *gateway.pids("batched").values()]
    assert len(pids) >= 3
    gateway.process.kill()
    gateway.until(lambda: not any(alive(pid) for pid in pids))
    assert hung.exception() is not None


def test_sigterm_drains(frozen: Callable[[str], Path], launch: Callable[..., Gateway]) -> None:
    gateway = launch(frozen("zoo.py:Wide"), "--drain-s", "20")
    call = gateway.start_call("wide", 1.5)
    gateway.until(lambda: gateway.function("wide")["state"] == "busy")
    gateway.process.send_signal(signal.SIGTERM)
    gateway.until(lambda: gateway.request("GET", "/readyz").status == 503)
    assert gateway.request("GET", "/livez").status == 200
    late = gateway.call("wide", 0)
    assert (late.status, late.json()["code"]) == (503, "draining")
    assert call.result().status == 200
    assert gateway.process.wait(30) == 0


def test_calls_that_outlast_the_drain_are_answered(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("zoo.py:Wide"), "--drain-s", "0.2")
    calls = [gateway.start_call("wide", 20) for _ in range(5)]
    gateway.until(lambda: gateway.function("wide")["queued"] == 2)
    gateway.process.send_signal(signal.SIGTERM)
    for call in calls:
        assert (call.result().status, call.result().json()["code"]) == (503, "draining")
    assert gateway.process.wait(30) == 0


def test_a_module_with_threads_sleeps_only_at_cold(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("threaded.py:Threaded"), "--depth", "zygote")
    gateway.until(lambda: gateway.function("threaded")["reason"])
    function = gateway.function("threaded")
    assert "thread" in function["reason"]
    assert function["depths"] == ["hot", "cold"]
    assert gateway.call("threaded", 1).json() == 2
    refused = gateway.sleep("threaded", "zygote")
    assert refused.status == 409 and "thread" in refused.json()["detail"]
    assert gateway.sleep("threaded", "cold").status == 200
    assert gateway.call("threaded", 2).json() == 3


def test_a_predict_that_starts_threads_is_not_rehearsed_in_the_zygote(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("late_thread.py:StartsLate"), "--depth", "prewarmed")
    gateway.at_depth("starts_late", "prewarmed")
    assert gateway.call("starts_late", 1).json() == 2
    assert gateway.sleep("starts_late", "zygote").status == 200
    assert gateway.call("starts_late", 2).json() == 3
    assert any("makes no warm-up call" in line for line in gateway.log)


def test_a_wake_that_fails_each_time_marks_the_function_failed(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    failing = {"ZEROWAKE_TEST_WAKE_FAILS": "1"}
    gateway = launch(frozen("zoo.py:NeverWakes"), "--depth", "cold", env=failing)
    reply = gateway.call("never_wakes", 1)
    assert (reply.status, reply.json()["code"]) == (503, "function_failed")
    assert (
        "wake" in reply.json()["detail"] and "the database is not there" in reply.json()["detail"]
    )
    assert gateway.function("never_wakes")["state"] == "failed"
    again = gateway.call("never_wakes", 1)
    assert again.status == 503 and int(again.headers["retry-after"]) >= 1


def test_a_snapshot_cut_off_while_it_is_served_is_quarantined(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / frozen("zoo.py:Add").name
    shutil.copytree(frozen("zoo.py:Add"), copy)
    gateway = launch(copy, "--depth", "cold")
    (copy / "skeleton.json").write_bytes(b"")
    reply = gateway.call("add", {"a": 1})
    assert (reply.status, reply.json()["code"]) == (503, "function_failed")
    assert "quarantined" in reply.json()["detail"]
    assert gateway.request("GET", "/livez").status == 200
