"""What Prometheus reads: what all processes have counted, what waits in the job database, and how the node fares.

Nothing here is about a patient: labels are states, causes, steps, and AE titles and destinations of the configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from dicom_node.config import Settings
from dicom_node.console.health import certificates, check_folder, disk_limit, living, read_disk
from dicom_node.console.web import STATES
from dicom_node.logs import log_event
from dicom_node.objects import spool_of
from dicom_node.queries import (
    DATABASE_ERRORS,
    ProcessState,
    count_instances,
    count_jobs,
    count_quarantined,
    destination_counts,
    explain,
    list_processes,
    oldest_due,
    oldest_message,
    probe,
    waiting_since,
)
from dicom_node.recorder import METRICS, Metric, Samples, add, gauges

logger = logging.getLogger(__name__)

LATELY = timedelta(days=1)
"""Quarantined jobs and dead letters of so long call for somebody."""

QUEUES = ("COMPLETE", "GROUNDED")
ROLES = ("receiver", "scheduler", "worker gpu", "worker io", "console")


def render_metrics(session: Session, now: datetime, settings: Settings | None = None) -> str:
    """Return the metrics in Prometheus' text format. Without `settings`, none of disks, destinations and certificates.

    A database that is away or takes no writes is told by `knowmvg_database_up`, and by nothing else: the rest is not
    known then.
    """
    families: list[Family]
    try:
        fault = probe(session)
        families = [] if fault else [*count_rows(session, now), *count_processes(session, now)]
        families += [*count_destinations(session, settings, now)] if settings and not fault else []
    except DATABASE_ERRORS as error:
        families, fault = [], explain(error)
    if fault:
        log_event(logger, "metrics without the database", level=logging.WARNING, reason=fault)
    families.append(GaugeMetricFamily("knowmvg_database_up", "Whether the job database takes writes", not fault))
    if settings:
        families += [*count_disks(settings), *count_certificates(settings)]
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry).decode()


@dataclass(frozen=True, eq=False)
class _Collected(Collector):
    """Metrics that were found already."""

    families: Sequence[Family]

    def collect(self) -> Iterable[Family]:
        """Return each metric once."""
        return self.families


# ---- rows ------------------------------------------------------------------------------------------------------------


def count_rows(session: Session, now: datetime) -> Iterator[Family]:
    """Yield what the job database tells of jobs, instances and messages."""
    jobs = GaugeMetricFamily("knowmvg_jobs", "Jobs by state", labels=["state"])
    counts = count_jobs(session)
    for state in STATES:
        jobs.add_metric([state], counts.get(state, 0))
    yield jobs
    yield GaugeMetricFamily("knowmvg_instances", "Instances received and kept", count_instances(session))
    yield GaugeMetricFamily(
        "knowmvg_queue_age_seconds", "How long the job has waited that has waited longest for a worker",
        _age(oldest_due(session, now), now),
    )  # fmt: skip
    waiting = GaugeMetricFamily(
        "knowmvg_waiting_seconds", "How long the job is in its state that is longest", labels=["state", "priority"]
    )
    since = waiting_since(session)
    for state in QUEUES:
        for priority in ("STAT", "ROUTINE"):
            waiting.add_metric([state, priority], _age(since.get((state, priority)), now))
    yield waiting
    quarantined = count_quarantined(session, now - LATELY)
    yield GaugeMetricFamily("knowmvg_jobs_quarantined", "Jobs quarantined in the last day, and so still", quarantined)
    yield GaugeMetricFamily(
        "knowmvg_notification_age_seconds", "How long the message to administrators waits that waits longest",
        _age(oldest_message(session), now),
    )  # fmt: skip


def count_destinations(session: Session, settings: Settings, now: datetime) -> Iterator[Family]:
    """Yield how each configured destination fares."""
    dispatches = GaugeMetricFamily("knowmvg_dispatches", "Deliveries under way", labels=["destination", "state"])
    age = GaugeMetricFamily("knowmvg_dispatch_age_seconds", "Age of the oldest of them", labels=["destination"])
    dead = GaugeMetricFamily("knowmvg_dead_letters", "Deliveries given up", labels=["destination", "given_up"])
    away = GaugeMetricFamily(
        "knowmvg_destination_failures", "Tries in a row that found nobody there", labels=["destination"]
    )
    for destination in settings.destinations:
        found = destination_counts(session, destination.name, now - LATELY)
        for state in ("PENDING", "CONFIRMING"):
            dispatches.add_metric([destination.name, state], found.open.get(state, 0))
        age.add_metric([destination.name], _age(found.oldest, now))
        dead.add_metric([destination.name, "lately"], found.dead)
        dead.add_metric([destination.name, "earlier"], found.dead_before)
        away.add_metric([destination.name], found.failures)
    yield from (dispatches, age, dead, away)


# ---- processes -------------------------------------------------------------------------------------------------------


def count_processes(session: Session, now: datetime) -> Iterator[Family]:
    """Yield which processes live, and what all together have counted."""
    states, total = list_processes(session)
    alive = [one for one in states if living(one, now)]
    present = GaugeMetricFamily("knowmvg_processes", "Processes that live, by role", labels=["role"])
    for role in ROLES:
        present.add_metric([role], sum(serves(one, role) for one in alive))
    yield present
    yield _describe(alive, now)
    for one in states:
        total = add(total, one.samples)
    now_told: dict[tuple[str, ...], list[float]] = {}
    for one in alive:
        for key, (value,) in gauges(one.samples).items():
            now_told.setdefault(key, []).append(value)
    together: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
    for key, values in now_told.items():
        total[key] = (together[METRICS[key[0]].kind](values),)
    yield from (family for metric in METRICS.values() if (family := make_family(metric, total)) is not None)
    swept = max((v for key, v in total.items() if key[0] == "knowmvg_scheduler_swept_timestamp_seconds"), default=None)
    if swept is not None:
        age = now.timestamp() - swept[0]
        yield GaugeMetricFamily("knowmvg_scheduler_sweep_age_seconds", "Since the last sweep ended", max(age, 0.0))


def serves(process: ProcessState, role: str) -> bool:
    """Tell whether a process does what a role does; a worker may serve several queues."""
    name, _, queues = process.facts.role.partition(" ")
    wanted, _, queue = role.partition(" ")
    return name == wanted and (not queue or queue in queues.split(","))


def _describe(alive: Iterable[ProcessState], now: datetime) -> Family:
    seen = GaugeMetricFamily(
        "knowmvg_process_seen_seconds", "Since a process reported last", labels=["role", "host", "pid", "version"]
    )
    for one in alive:
        labels = [one.facts.role, one.facts.host, str(one.facts.pid), one.facts.version]
        seen.add_metric(labels, max((now - one.seen_at).total_seconds(), 0.0))
    return seen


def make_family(metric: Metric, samples: Samples) -> Family | None:
    """Return a metric with its samples and those that it is known to have; None of a gauge that nobody has set."""
    found = {key[1:]: values for key, values in samples.items() if key[0] == metric.name}
    if metric.kind == "histogram":
        return _make_histogram(metric, found)
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, values in ({key: (0.0,) for key in metric.known} | found).items():
            counter.add_metric(labels, values[0])
        return counter
    gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, values in found.items():
        gauge.add_metric(labels, values[0])
    return gauge if found else None


def _make_histogram(metric: Metric, found: dict[tuple[str, ...], tuple[float, ...]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    empty = (0.0,) * (len(metric.buckets) + 2)
    limits = [*map(str, metric.buckets), "+Inf"]
    for labels, values in ({key: empty for key in metric.known} | found).items():
        if len(values) == len(empty):  # else of a version that had other buckets
            family.add_metric(labels, list(zip(limits, accumulate(values[:-1]), strict=True)), values[-1])
    return family


# ---- this host -------------------------------------------------------------------------------------------------------


def count_disks(settings: Settings) -> Iterator[Family]:
    """Yield the space of the folders, whether the storage can be written, and the limit below which it is short."""
    free = GaugeMetricFamily("knowmvg_disk_free_bytes", "Free space", labels=["folder"])
    size = GaugeMetricFamily("knowmvg_disk_size_bytes", "Space in all", labels=["folder"])
    for name, folder in (("storage", spool_of(settings)), ("data_dir", settings.node.data_dir)):
        if (usage := read_disk(folder)) is not None:
            free.add_metric([name], usage.free)
            size.add_metric([name], usage.total)
    yield from (free, size)
    yield GaugeMetricFamily("knowmvg_disk_limit_bytes", "Below this the disk counts as low", disk_limit(settings))
    writable = not check_folder(spool_of(settings))
    yield GaugeMetricFamily("knowmvg_storage_writable", "Whether the storage folder can be written", writable)


def count_certificates(settings: Settings) -> Iterator[Family]:
    """Yield when each certificate of the configuration expires; none that cannot be read."""
    expiry = GaugeMetricFamily(
        "knowmvg_certificate_expiry_timestamp_seconds", "When a certificate file expires", labels=["use"]
    )
    for use, at in certificates(settings):
        expiry.add_metric([use], at.timestamp())
    yield expiry


def _age(since: datetime | None, now: datetime) -> float:
    return max((now - since).total_seconds(), 0.0) if since else 0.0
