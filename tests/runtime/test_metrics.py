"""``zerowake.runtime.metrics``: what was observed comes out as Prometheus text."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from zerowake.runtime.depth import Depth
from zerowake.runtime.metrics import FunctionGauges, Histogram, Metrics, Outcome


def series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    text = asyncio.run(metrics.scrape())[0].decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.total == 6.0


def test_what_was_observed_comes_out(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(1 << 16))
    metrics = Metrics()
    metrics.observe_call("f", Outcome.OK, total_s=0.2, queue_s=0.004, predict_s=0.1)
    metrics.observe_call("f", Outcome.REJECTED, total_s=0.001)
    metrics.observe_batch("f", 3)
    metrics.observe_wake("f", Depth.ZYGOTE)
    metrics.observe_wake("f", Depth.HOT)
    metrics.observe_restore("f", {"fork": 4.0, "bind": 20.0})
    metrics.instance_died("f")
    metrics.observe_eager_calls("f", 3)
    metrics.observe_eager_calls("g", 0)
    metrics.watch(lambda: [FunctionGauges("f", {Depth.HOT: 2, Depth.PREWARMED: 0}, 7, (weights,))])

    found = series(metrics)
    assert found["zerowake_invocations_total", "f", "ok"] == 1
    assert found["zerowake_invocations_total", "f", "rejected"] == 1
    assert found["zerowake_invocation_seconds_count", "f"] == 2
    assert found["zerowake_invocation_seconds_sum", "f"] == pytest.approx(0.201)
    assert found["zerowake_queue_seconds_bucket", "0.0025", "f"] == 0
    assert found["zerowake_queue_seconds_bucket", "0.005", "f"] == 1
    assert found["zerowake_predict_seconds_count", "f"] == 1
    assert found["zerowake_batch_size_bucket", "4.0", "f"] == 1
    assert found["zerowake_wakes_total", "f", "zygote"] == 1
    assert ("zerowake_wakes_total", "f", "hot") not in found
    assert found["zerowake_restore_phase_seconds_sum", "bind", "f"] == pytest.approx(0.02)
    assert found["zerowake_instance_deaths_total", "f"] == 1
    assert found["zerowake_eager_calls_total", "f"] == 3
    assert ("zerowake_eager_calls_total", "g") not in found
    assert found["zerowake_instances", "f", "hot"] == 2
    assert found["zerowake_instances", "f", "prewarmed"] == 0
    assert found["zerowake_queued", "f"] == 7
    assert found["zerowake_weights_resident_ratio", "f"] == 1.0


def test_residency_is_left_out_where_nobody_looked() -> None:
    metrics = Metrics()
    metrics.watch(lambda: [FunctionGauges("f", {}, 0)])
    assert ("zerowake_weights_resident_ratio", "f") not in series(metrics)


def test_every_series_has_a_help_text() -> None:
    families = list(text_string_to_metric_families(Metrics().render()[0].decode()))
    assert len(families) == 13
    assert all(family.documentation for family in families)


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (400, "bad_request", Outcome.CLIENT_ERROR),
        (422, "invalid_input", Outcome.CLIENT_ERROR),
        (429, "queue_full", Outcome.REJECTED),
        (503, "draining", Outcome.REJECTED),
        (503, "function_failed", Outcome.ERROR),
        (499, "cancelled", Outcome.CANCELLED),
        (500, "handler_failed", Outcome.ERROR),
        (502, "instance_died", Outcome.ERROR),
        (504, "predict_timeout", Outcome.TIMEOUT),
    ],
)
def test_outcomes(status: int, code: str, outcome: Outcome) -> None:
    assert Outcome.of({"status": status, "code": code}) is outcome
