"""What Prometheus reads: how many jobs and instances there are, and how long the oldest due job has waited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from dicom_node.console.pages import STATES
from dicom_node.queries import count_instances, count_jobs, oldest_due


@dataclass(frozen=True)
class JobCollector(Collector):
    """The metrics of the job database at `now`."""

    session: Session
    now: datetime

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once."""
        jobs = GaugeMetricFamily("knowmvg_jobs", "Jobs by state", labels=["state"])
        counts = count_jobs(self.session)
        for state in STATES:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("knowmvg_instances", "Instances received and kept", count_instances(self.session))
        since = oldest_due(self.session, self.now)
        age = (self.now - since).total_seconds() if since else 0.0
        yield GaugeMetricFamily(
            "knowmvg_queue_age_seconds", "How long the job has waited that has waited longest for a worker", age
        )


def render_metrics(session: Session, now: datetime) -> str:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(JobCollector(session, now))
    return generate_latest(registry).decode()
