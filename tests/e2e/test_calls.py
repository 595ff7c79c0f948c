"""Calls through a real gateway and real instances: kinds, batches, failures of one among many."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Gateway

ZOO = ["Batched", "Once", "Count", "Reverse", "Add", "Environment", "Wide"]


@pytest.fixture(scope="module")
def zoo(frozen: Callable[[str], Path], launch: Callable[..., Gateway]) -> Gateway:
    snapshots = [frozen(f"zoo.py:{name}") for name in ZOO]
    return launch(*snapshots, "--env", "SHOWN", env={"SHOWN": "yes", "SECRET_TOKEN": "hidden"})


def test_several_parameters_and_state_from_load(zoo: Gateway) -> None:
    assert zoo.call("add", {"a": 1, "b": 2}).json() == 1003
    assert zoo.call("add", {"a": 1}).json() == 1006


def test_bytes_go_in_and_out_raw(zoo: Gateway) -> None:
    reply = zoo.request("POST", "/invoke/reverse", b"\x00\xffabc")
    assert (reply.status, reply.body) == (200, b"cba\xff\x00")
    assert reply.headers["content-type"] == "application/octet-stream"


def test_calls_made_together_run_together(zoo: Gateway) -> None:
    answers = batch_with(zoo, *(f"item {i}" for i in range(4)))
    assert [body["did"] for _status, body in answers] == [f"item {i}" for i in range(4)]
    assert {body["batch"] for _status, body in answers} == {4}


def batch_with(zoo: Gateway, *items: str) -> list[tuple[int, dict[str, object]]]:
    """Answers to items that wait behind a slow call, and so share a batch."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "open")
        first = zoo.start_call("batched", {"do": f"gate:{gate}"})
        # running, not only waiting for company: then what follows shares the next batch
        zoo.until(lambda: zoo.is_running("batched"))
        calls = [zoo.start_call("batched", {"do": item}) for item in items]
        zoo.until(lambda: zoo.function("batched")["queued"] == len(items))
        gate.touch()
        assert first.result().status == 200
    return [(call.result().status, call.result().json()) for call in calls]


def test_an_exception_fails_its_own_item_only(zoo: Gateway) -> None:
    ok, bad, refused, other = batch_with(zoo, "a", "raise", "refuse", "b")
    assert (ok[0], other[0]) == (200, 200)
    assert bad[0] == 500 and bad[1]["code"] == "handler_failed"
    assert "RuntimeError: this item is bad" in str(bad[1]["detail"])
    assert refused[0] == 422 and refused[1]["code"] == "invalid_input"


def test_exit_in_predict_is_that_items_error(zoo: Gateway) -> None:
    ok, bad = batch_with(zoo, "a", "exit")
    assert ok[0] == 200
    assert bad[0] == 500 and "SystemExit: 3" in str(bad[1]["detail"])


def test_a_wrong_number_of_results_fails_the_item_that_makes_it_only(zoo: Gateway) -> None:
    ok, short, other = batch_with(zoo, "a", "short", "b")
    assert (ok[0], other[0]) == (200, 200)
    assert (short[0], short[1]["code"]) == (500, "wrong_result_count")
    assert "0 results for a batch of 1" in str(short[1]["detail"])
    for counts in ("2 results for a batch of 3", "0 results for a batch of 1"):
        zoo.until(lambda counts=counts: any(counts in line for line in zoo.log))


def test_a_result_that_is_no_json_fails_alone(zoo: Gateway) -> None:
    ok, bad = batch_with(zoo, "a", "nan")
    assert ok[0] == 200
    assert (bad[0], bad[1]["code"]) == (500, "bad_result")


@pytest.mark.parametrize("poison, signal_name", [("die", "SIGKILL"), ("segv", "SIGSEGV")])
def test_a_poison_item_ends_only_itself(zoo: Gateway, poison: str, signal_name: str) -> None:
    ok, bad, other = batch_with(zoo, "a", poison, "b")
    assert (ok[0], other[0]) == (200, 200)
    assert (bad[0], bad[1]["code"]) == (502, "instance_died")
    assert signal_name in str(bad[1]["detail"])
    assert zoo.call("batched", {"do": "after"}).status == 200


def test_a_predict_over_its_time_is_ended_and_its_neighbours_are_not(zoo: Gateway) -> None:
    ok, hung, other = batch_with(zoo, "a", "hang", "b")
    assert (ok[0], other[0]) == (200, 200)
    assert (hung[0], hung[1]["code"]) == (504, "predict_timeout")


def test_without_retry_predict_runs_once(zoo: Gateway, tmp_path: Path) -> None:
    log = tmp_path / "log"
    reply = zoo.call("once", {"do": "die", "log": str(log)})
    assert (reply.status, reply.json()["code"]) == (502, "instance_died")
    assert log.read_text() == "die\n"


def test_without_retry_what_predict_has_not_seen_runs_elsewhere(zoo: Gateway) -> None:
    zoo.sleep("once", "prewarmed")
    pid = zoo.pids("once")["prewarmed"]
    os.kill(pid, signal.SIGSTOP)
    reply = zoo.start_call("once", {"do": "ok"})
    zoo.until(lambda: zoo.is_running("once"))
    os.kill(pid, signal.SIGKILL)
    assert reply.result().json() == "ok"


def test_streams_arrive_item_by_item_and_their_output_is_logged(zoo: Gateway) -> None:
    reply = zoo.call("count", {"start": 2, "stop": 5})
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in reply.body.splitlines()] == [2, 3, 4]
    invocation = reply.headers["zerowake-invocation"]
    zoo.until(lambda: any("counted 4" in line and invocation in line for line in zoo.log))


def test_a_stream_that_fails_first_has_its_own_status(zoo: Gateway) -> None:
    reply = zoo.call("count", {"start": 0, "stop": 5, "fail_at": 0})
    assert reply.status == 500
    assert "failed at 0" in reply.json()["detail"]


def test_a_stream_that_fails_later_is_cut_off_or_says_so(zoo: Gateway) -> None:
    import http.client

    with pytest.raises(http.client.IncompleteRead):
        zoo.call("count", {"start": 0, "stop": 5, "fail_at": 3})
    reply = zoo.call(
        "count", {"start": 0, "stop": 5, "fail_at": 3}, {"Accept": "text/event-stream"}
    )
    assert b"event: error" in reply.body and b"failed at 3" in reply.body
    zoo.until(lambda: sum("the stream broke off" in line for line in zoo.log) == 2)
    (told, _) = (line for line in zoo.log if "the stream broke off" in line)
    assert "RuntimeError: failed at 3  [function=count invocations=" in told
    assert not any("ASGI" in line or "uvicorn" in line for line in zoo.log)


def test_a_reader_who_leaves_a_stream_stops_it(zoo: Gateway) -> None:
    import http.client

    connection = http.client.HTTPConnection(zoo.url.removeprefix("http://"))
    body = json.dumps({"start": 0, "stop": 100_000, "pause_s": 0.01})
    connection.request("POST", "/invoke/count", body)
    reply = connection.getresponse()
    assert reply.readline() == b"0\n"
    reply.close()
    connection.close()
    zoo.until(lambda: zoo.function("count")["state"] == "ready")
    assert zoo.call("count", {"start": 0, "stop": 1}).body == b"0\n"


def test_secrets_are_held_back_and_named_ones_are_not(zoo: Gateway) -> None:
    assert zoo.call("environment", "SECRET_TOKEN").json()["value"] is None
    assert zoo.call("environment", "SHOWN").json()["value"] == "yes"


def test_warm_up_calls_are_told_apart_in_the_log(zoo: Gateway) -> None:
    zoo.call("environment", "HOME")
    zoo.until(lambda: any("asked for HOME" in line for line in zoo.log))
    warm_up = [line for line in zoo.log if "asked for None" in line]
    assert warm_up and all(line.endswith("invocations=warm-up]") for line in warm_up)


def test_an_instance_holds_no_descriptors_of_its_siblings(zoo: Gateway) -> None:
    seen = zoo.call("environment", "SHOWN").json()
    sockets = [fd for fd, target in seen["fds"].items() if target.startswith("socket:")]
    pipes = {
        target for fd, target in seen["fds"].items() if target.startswith("pipe:") and int(fd) > 2
    }
    assert len(sockets) == 1
    assert len(pipes) == 1  # the pipe that ends it with the gateway
    assert not seen["torch"]  # no function here has tensors: nobody imports torch


def test_siblings_have_random_numbers_of_their_own(zoo: Gateway) -> None:
    numbers = set()
    for _ in range(2):
        numbers.add(zoo.call("environment", "SHOWN").json()["random"])
        os.kill(zoo.call("environment", "SHOWN").json()["pid"], signal.SIGKILL)
    numbers.add(zoo.call("environment", "SHOWN").json()["random"])
    assert len(numbers) == 3


def test_more_instances_where_the_function_allows_them(zoo: Gateway) -> None:
    calls = [zoo.start_call("wide", 0.4) for _ in range(3)]
    assert len({call.result().json() for call in calls}) == 3


def test_bad_input_is_refused_with_its_place(zoo: Gateway) -> None:
    reply = zoo.request("POST", "/invoke/add", b'{"a": ')
    assert (reply.status, reply.json()["code"]) == (400, "bad_request")
    reply = zoo.call("add", {"a": "one"})
    assert reply.status == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["errors"][0]["field"] == "/a"
    reply = zoo.call("ad", {})
    assert reply.status == 404 and "add" in reply.json()["detail"]


def test_replies_say_depth_and_timings(zoo: Gateway) -> None:
    zoo.call("add", {"a": 1})
    reply = zoo.call("add", {"a": 1})
    assert reply.headers["zerowake-depth"] == "hot"
    assert {"queue", "predict", "total"} <= {
        entry.split(";")[0].strip() for entry in reply.headers["server-timing"].split(",")
    }


def test_metrics_tell_what_happened(zoo: Gateway) -> None:
    zoo.call("add", {"a": 1})
    text = zoo.request("GET", "/metrics").body.decode()
    assert 'zerowake_invocations_total{function="add",outcome="ok"}' in text
    assert "zerowake_batch_size_bucket" in text
    assert "zerowake_restore_phase_seconds" in text
    assert 'zerowake_instances{depth="hot",function="add"}' in text


def test_a_caller_who_leaves_takes_queued_work_along(zoo: Gateway) -> None:
    import http.client

    slow = zoo.start_call("wide", 0.5)
    others = [zoo.start_call("wide", 0.5) for _ in range(2)]
    zoo.until(lambda: zoo.function("wide")["state"] == "busy")
    gone = http.client.HTTPConnection(zoo.url.removeprefix("http://"))
    gone.request("POST", "/invoke/wide", b"3600")
    zoo.until(lambda: zoo.function("wide")["queued"] >= 1)
    gone.close()
    zoo.until(lambda: zoo.function("wide")["queued"] == 0)
    for call in (slow, *others):
        assert call.result().status == 200
