"""What a process counts and times, in memory: incrementing is all that the work waits for.

`dicom_node/reporting.py` keeps the samples in a row of the process every few seconds, the console adds the rows up.
No value of a label comes from a dataset: AE titles and destinations that are not configured are counted as `other`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dicom_node.config import Settings

Samples = dict[tuple[str, ...], tuple[float, ...]]
"""(name, label, …) to a counter's or gauge's one value, or a histogram's counts by bucket and last the sum."""

Kind = Literal["counter", "histogram", "sum", "max", "min"]
"""Of a gauge: how the values of several processes are put together."""

OTHER = "other"

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86400.0)
STUDIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Metric:
    """A metric's name without `_total`, what it tells, and the values that its labels are known to have."""

    name: str
    help: str
    kind: Kind = "counter"
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    """Shown as 0 from the beginning: an increase from nothing is none to Prometheus."""


REFUSALS = ("unknown_caller", "unknown_called", "congestion", "limit", "tls")
STEP_NAMES = ("ground", "write")
FAILURES = ("not_applicable", "permanent", "transient", "error", "out_of_memory", "quarantined")
"""Why a step failed: `transient` is tried again as something is away, `error` is one of the program."""

METRICS = {
    one.name: one
    for one in (
        Metric("knowmvg_associations_accepted", "Associations let in, by calling AE title", labels=("peer",)),
        Metric(
            "knowmvg_associations_refused", "Associations turned away, by cause", labels=("cause",),
            known=tuple((cause,) for cause in REFUSALS),
        ),
        Metric("knowmvg_instances_received", "Instances answered with success", labels=("peer", "kind")),
        Metric("knowmvg_received_bytes", "Bytes of instances answered with success", labels=("peer", "kind")),
        Metric("knowmvg_instances_refused", "Instances not taken, by DIMSE status", labels=("status",)),
        Metric("knowmvg_open_associations", "Associations open now", "sum"),
        Metric("knowmvg_receivers_closed", "Receivers that take nothing in for now", "sum"),
        Metric(
            "knowmvg_stage_seconds", "From the stage before (received, complete, grounded, written) to this one",
            "histogram", ("stage",), SECONDS,
            tuple((stage,) for stage in ("complete", "grounded", "written", "delivered")),
        ),
        Metric(
            "knowmvg_step_seconds", "What the work of a step itself took", "histogram", ("step",), SECONDS,
            tuple((step,) for step in (*STEP_NAMES, "deliver")),
        ),
        Metric(
            "knowmvg_step_failures", "Tries of a step that failed, by cause", labels=("step", "cause"),
            known=tuple((step, cause) for step in STEP_NAMES for cause in FAILURES),
        ),
        Metric("knowmvg_batch_studies", "Studies that the model was given at once", "histogram", (), STUDIES, ((),)),
        Metric("knowmvg_batch_seconds", "What the model took for a batch", "histogram", (), SECONDS, ((),)),
        Metric("knowmvg_store_answers", "C-STORE answers of archives", labels=("destination", "verdict", "status")),
        Metric("knowmvg_delivery_tries", "Tries at a delivery, by what came of it", labels=("destination", "outcome")),
        Metric("knowmvg_deliveries", "Deliveries confirmed, and by what", labels=("destination", "confirmed_by")),
        Metric("knowmvg_model_info", "The model that a worker has loaded", "sum",
               ("name", "version", "sha256", "device")),
        Metric("knowmvg_gpu_memory_used_bytes", "Memory in use of a GPU", "max", ("host", "gpu")),
        Metric("knowmvg_gpu_memory_bytes", "Memory of a GPU", "max", ("host", "gpu")),
        Metric("knowmvg_gpu_utilization_ratio", "Share of time that a GPU computed lately", "max", ("host", "gpu")),
        Metric("knowmvg_scheduler_swept_timestamp_seconds", "When the last sweep ended", "max"),
        Metric("knowmvg_broker_up", "Whether the broker takes rings, as the scheduler finds", "min"),
    )
}  # fmt: skip


class Recorder:
    """Counters, histograms and gauges of one process; any thread may use it."""

    def __init__(self, peers: Iterable[str] = (), destinations: Iterable[str] = ()) -> None:
        """`peers` (AE titles) and `destinations` are those whose names are labels."""
        self._named = {"peer": frozenset(peers), "destination": frozenset(destinations)}
        self._lock = threading.Lock()
        self._samples: dict[tuple[str, ...], list[float]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Recorder:
        """Return a recorder that knows the configured peers and destinations by name."""
        peers = {one.ae_title.strip() for one in settings.receiver.peers}
        peers |= {one.ae_title.strip() for one in settings.destinations}  # they call with reports of commitment
        return cls(peers, (one.name for one in settings.destinations))

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        key = self._key(METRICS[name], labels)
        with self._lock:
            self._samples.setdefault(key, [0.0])[0] += by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a value, usually seconds, to a histogram."""
        metric = METRICS[name]
        key = self._key(metric, labels)
        with self._lock:
            counts = self._samples.setdefault(key, [0.0] * (len(metric.buckets) + 2))
            counts[bisect_left(metric.buckets, value)] += 1
            counts[-1] += max(value, 0.0)  # clocks of two hosts may differ: a sum never goes back

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        key = self._key(METRICS[name], labels)
        with self._lock:
            self._samples[key] = [value]

    def samples(self) -> Samples:
        """Return all that was counted so far."""
        with self._lock:
            return {key: tuple(values) for key, values in self._samples.items()}

    def _key(self, metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}")
        pairs = zip(metric.labels, labels, strict=True)
        return (metric.name, *(self._bounded(label, value) for label, value in pairs))

    def _bounded(self, label: str, value: str) -> str:
        return value if label not in self._named or value in self._named[label] else OTHER


# ---- samples of several processes ------------------------------------------------------------------------------------


def is_counted(key: tuple[str, ...]) -> bool:
    """Tell whether a sample only ever grows, so that it outlives its process; one that no metric has any more does
    not."""
    metric = METRICS.get(key[0])
    return metric is not None and metric.kind in ("counter", "histogram")


def add(one: Mapping[tuple[str, ...], tuple[float, ...]], other: Samples, sign: float = 1.0) -> Samples:
    """Return the counters and histograms of both together; with `sign` -1, what `one` has more than `other`.

    Histograms of a version with other buckets are left out of `other`.
    """
    total = {key: values for key, values in one.items() if is_counted(key)}
    for key, values in other.items():
        if is_counted(key):
            mine = total.get(key, (0.0,) * len(values))
            if len(mine) == len(values):
                total[key] = tuple(a + sign * b for a, b in zip(mine, values, strict=True))
    return total


def gauges(samples: Samples) -> Samples:
    """Return the samples that tell of this moment."""
    return {key: values for key, values in samples.items() if key[0] in METRICS and not is_counted(key)}


def to_json(samples: Samples) -> list[list[object]]:
    """Return samples as JSON values."""
    return [[list(key), list(values)] for key, values in sorted(samples.items())]


def from_json(values: Iterable[tuple[list[str], list[float]]]) -> Samples:
    """Return samples from what `to_json` made."""
    return {tuple(key): tuple(numbers) for key, numbers in values}
