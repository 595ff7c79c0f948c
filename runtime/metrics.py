"""What the gateway counts, and its Prometheus text.

Knows neither HTTP nor processes: whoever sees something happen calls an ``observe`` method, which adds
to plain numbers (about a microsecond). prometheus_client comes in when somebody scrapes. For one
thread: the gateway's event loop.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.depth import Depth
from zerowake.snapshot.mapping import resident_fraction

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Labels = tuple[str, ...]


class Outcome(StrEnum):
    """How an invocation ended."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    ERROR = "error"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @classmethod
    def of(cls, problem: Mapping[str, object]) -> "Outcome":
        """The outcome of a call that ended with ``problem`` (RFC 9457 members)."""
        status = problem["status"]
        if problem["code"] in ("queue_full", "draining"):
            return cls.REJECTED
        if status == 499:
            return cls.CANCELLED
        if status == 504:
            return cls.TIMEOUT
        return cls.CLIENT_ERROR if isinstance(status, int) and status < 500 else cls.ERROR

    @classmethod
    def of_status(cls, status: int) -> "Outcome":
        """The outcome of a call that a function itself has answered with this status of HTTP."""
        if status < 400:
            return cls.OK
        return cls.CLIENT_ERROR if status < 500 else cls.ERROR


class FunctionGauges(NamedTuple):
    """How one function stands at the moment of a scrape.

    instances: how many there are at each depth. weights: the files that its processes map.
    """

    function: str
    instances: Mapping[Depth, int]
    queued: int
    weights: tuple[Path, ...] = ()


class Histogram:
    """Observations counted in fixed buckets; ``bounds`` are inclusive upper bounds, ascending."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of (``le``, observations at or below it), ending with +Inf."""
        pairs, so_far = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            pairs.append(("+Inf" if bound == float("inf") else str(bound), float(so_far)))
        return pairs


class Metrics:
    """The numbers of one gateway."""

    def __init__(self) -> None:
        self._gauges: Callable[[], Iterable[FunctionGauges]] = tuple
        self._resident: dict[str, float] = {}
        self._invocations: defaultdict[Labels, int] = defaultdict(int)
        self._wakes: defaultdict[Labels, int] = defaultdict(int)
        self._deaths: defaultdict[Labels, int] = defaultdict(int)
        self._eager_calls: defaultdict[Labels, int] = defaultdict(int)
        self._forms: dict[Labels, int] = {}
        self._invocation_s = _histograms(SECONDS)
        self._queue_s = _histograms(SECONDS)
        self._predict_s = _histograms(SECONDS)
        self._restore_s = _histograms(SECONDS)
        self._batch_size = _histograms(SIZES)

    def watch(self, gauges: Callable[[], Iterable[FunctionGauges]]) -> None:
        """Ask ``gauges`` at every scrape how the functions stand."""
        self._gauges = gauges

    def observe_call(
        self,
        function: str,
        outcome: Outcome,
        *,
        total_s: float,
        queue_s: float | None = None,
        predict_s: float | None = None,
    ) -> None:
        """A call has ended; ``function`` is "" when the caller named one that is not served."""
        self._invocations[function, outcome] += 1
        self._invocation_s[(function,)].observe(total_s)
        if queue_s is not None:
            self._queue_s[(function,)].observe(queue_s)
        if predict_s is not None:
            self._predict_s[(function,)].observe(predict_s)

    def observe_batch(self, function: str, size: int) -> None:
        """``size`` items went to an instance together."""
        self._batch_size[(function,)].observe(size)

    def observe_wake(self, function: str, depth: Depth) -> None:
        """A call came for a function at ``depth``; finding it hot is no wake."""
        if depth is not Depth.HOT:
            self._wakes[function, depth] += 1

    def observe_restore(self, function: str, phases_ms: Mapping[str, float]) -> None:
        """An instance or a zygote became ready; ``phases_ms`` is its report.

        map, import, bind, build, wake, warm_up, total ...; a zygote's begin with ``zygote-``.
        """
        for phase, ms in phases_ms.items():
            self._restore_s[function, phase].observe(ms / 1e3)

    def observe_form(self, function: str, form: str, reason: str) -> None:
        """The function runs in ``form`` from now on; ``reason``: why in none that is quicker."""
        self._forms = {key: n for key, n in self._forms.items() if key[0] != function}
        self._forms[function, form, reason] = 1

    def observe_eager_calls(self, function: str, count: int) -> None:
        """So many calls of its compiled modules were answered by the original ones."""
        if count:
            self._eager_calls[(function,)] += count

    def instance_died(self, function: str) -> None:
        """An instance of the function ended without being told to."""
        self._deaths[(function,)] += 1

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """``render`` with everything slow done in a thread, so that calls do not wait for it."""
        self._resident = await asyncio.to_thread(_residency, list(self._gauges()))
        return self.render(accept)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type, as a scraper sending ``Accept: accept`` wants it."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # calls collect() while it renders
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def describe(self) -> list["Metric"]:
        """Part of prometheus_client's collector protocol: names are not registered beforehand."""
        return []

    def collect(self) -> Iterator["Metric"]:
        """The series, as prometheus_client's collector protocol wants them."""
        from prometheus_client.core import GaugeMetricFamily

        yield _counter(
            "zerowake_invocations",
            "Calls that ended, by outcome. client_error: the input was at fault (4xx); error: the "
            "function or its process was (5xx); rejected: queue full or draining; timeout: predict "
            "ran longer than timeout_s; cancelled: the client left first. An empty function means "
            "the caller named one that is not served.",
            ("function", "outcome"),
            self._invocations,
        )
        yield _histogram(
            "zerowake_invocation_seconds",
            "From the first byte of the request to the last of the reply, restores and upload "
            "included: what a caller on this machine waits.",
            ("function",),
            self._invocation_s,
        )
        yield _histogram(
            "zerowake_queue_seconds",
            "From arrival until the call was handed to an instance. High with small batches: too few "
            "instances; high with full ones: the device is the limit.",
            ("function",),
            self._queue_s,
        )
        yield _histogram(
            "zerowake_predict_seconds",
            "Time in the author's predict, for the whole batch the call was in.",
            ("function",),
            self._predict_s,
        )
        yield _histogram(
            "zerowake_batch_size",
            "Items handed to an instance together. Always 1 under load: look at max_size, window_ms.",
            ("function",),
            self._batch_size,
        )
        yield _histogram(
            "zerowake_restore_phase_seconds",
            "How long each phase of bringing an instance up took. Phases overlap: their sum is more "
            "than the wait, the longest is what to work on.",
            ("function", "phase"),
            self._restore_s,
        )
        yield _counter(
            "zerowake_wakes",
            "Calls that found their function asleep, by the depth they found it at. Many from cold: "
            "raise --idle-s, or let it rest at zygote.",
            ("function", "depth"),
            self._wakes,
        )
        yield _counter(
            "zerowake_instance_deaths",
            "Instances that ended without being told to: crashes, the out-of-memory killer, "
            "predict over timeout_s.",
            ("function",),
            self._deaths,
        )
        yield _counter(
            "zerowake_eager_calls",
            "Calls of compiled modules that their original answered, slower and with torch, because "
            "of their shape. Rising: add an example of such a shape and freeze again; the log says which.",
            ("function",),
            self._eager_calls,
        )
        forms = GaugeMetricFamily(
            "zerowake_form_info",
            "In which form each function runs, 1 for that one: torch-free, compiled, eager, plain; for "
            "an eager one with the reason.",
            labels=("function", "form", "reason"),
        )
        for key in self._forms:
            forms.add_metric(key, 1)
        yield forms
        instances = GaugeMetricFamily(
            "zerowake_instances",
            "Processes of the function by depth; cold ones are none.",
            labels=("function", "depth"),
        )
        queued = GaugeMetricFamily(
            "zerowake_queued", "Calls waiting for an instance.", labels=("function",)
        )
        resident = GaugeMetricFamily(
            "zerowake_weights_resident_ratio",
            "Part of the mapped weights in memory now, 0 to 1. Below 1 the next wake reads from disk.",
            labels=("function",),
        )
        for state in self._gauges():
            for depth, count in state.instances.items():
                instances.add_metric((state.function, depth), count)
            queued.add_metric((state.function,), state.queued)
            if (ratio := self._resident.get(state.function)) is not None:
                resident.add_metric((state.function,), ratio)
        yield from (instances, queued, resident)


def _residency(states: Iterable[FunctionGauges]) -> dict[str, float]:
    """By function, the part of its weights that is in memory; of those where the system can say."""
    import prometheus_client.core  # noqa: F401  # for render, which runs on the event loop: 75 ms

    fractions = {
        state.function: [resident_fraction(path) for path in state.weights] for state in states
    }
    known = {
        function: [fraction for fraction in found if fraction is not None]
        for function, found in fractions.items()
    }
    return {function: sum(found) / len(found) for function, found in known.items() if found}


def _histograms(bounds: tuple[float, ...]) -> defaultdict[Labels, Histogram]:
    return defaultdict(lambda: Histogram(bounds))


def _counter(name: str, text: str, labels: Labels, values: Mapping[Labels, int]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, text: str, labels: Labels, values: Mapping[Labels, Histogram]
) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in values.items():
        family.add_metric(key, histogram.cumulative(), histogram.total)
    return family
