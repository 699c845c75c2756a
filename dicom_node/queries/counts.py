"""How much there is: jobs by state, instances, how long the oldest work has waited, and how destinations fare."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.priority import PRIORITIES
from dicom_node.queries.jobs import STEP_STATES
from dicom_node.queries.leases import has_free_lease
from dicom_node.study import QUARANTINED
from dicom_node.tables import DestinationRow, DispatchRow, InstanceRow, JobRow


def count_jobs(session: Session) -> dict[str, int]:
    """Return how many jobs are in each state that has any."""
    statement = select(JobRow.state, func.count()).group_by(JobRow.state)
    return {state: count for state, count in session.execute(statement)}


COUNTED = 100_000
"""So many rows are counted by PostgreSQL; of more it is asked for its estimate."""

_ESTIMATE = (
    "SELECT reltuples / greatest(relpages, 1) * (pg_relation_size(oid) / current_setting('block_size')::int) "
    "FROM pg_class WHERE oid = 'instances'::regclass"
)
"""As its planner does: rows of a page when they were last analysed, times the pages there are now."""


def count_instances(session: Session) -> int:
    """Return how many instances were received; PostgreSQL estimates that of many, from its statistics.

    Counting reads every row, or an index of them. SQLite numbers rows, and none is ever removed.
    """
    if session.get_bind().dialect.name == "sqlite":
        return session.scalar(text("SELECT max(rowid) FROM instances")) or 0
    estimate = session.scalar(text(_ESTIMATE)) or 0
    if estimate > COUNTED:
        return int(estimate)
    return session.scalar(select(func.count()).select_from(InstanceRow)) or 0


def oldest_due(session: Session, now: datetime) -> datetime | None:
    """Return since when the work waits that has waited longest for a worker, not yet tried; None if none does."""
    steps = select(func.min(JobRow.step_since)).where(
        JobRow.state.in_(STEP_STATES), JobRow.attempts == 0, has_free_lease(JobRow, now)
    )
    sending = select(func.min(DispatchRow.since)).where(
        DispatchRow.state.in_(OPEN_DISPATCHES), DispatchRow.attempts == 0, has_free_lease(DispatchRow, now)
    )
    found = [instant for statement in (steps, sending) if (instant := session.scalar(statement)) is not None]
    return min(found, default=None)


def waiting_since(session: Session) -> dict[tuple[str, str], datetime]:
    """Return since when the job is in its state that is longest, by state and priority, tried or not."""
    found: dict[tuple[str, str], datetime] = {}
    for state in STEP_STATES:
        for priority in PRIORITIES:
            oldest = session.scalar(
                select(func.min(JobRow.step_since)).where(JobRow.state == state, JobRow.priority == priority)
            )
            if oldest is not None:
                found[state, priority] = oldest
    return found


def count_quarantined(session: Session, since: datetime) -> int:
    """Return how many jobs were quarantined since then and are so still."""
    statement = select(func.count()).where(
        JobRow.state == "FAILED", JobRow.updated_at >= since, JobRow.failure.startswith(QUARANTINED)
    )
    return session.scalar(statement) or 0


@dataclass(frozen=True, slots=True)
class DestinationCounts:
    """How one destination fares: dispatches by state that are not over, the oldest of them, dead letters of late and
    earlier, and tries in a row that found nobody there."""

    open: dict[str, int]
    oldest: datetime | None
    dead: int
    dead_before: int
    failures: int


def destination_counts(session: Session, destination: str, since: datetime) -> DestinationCounts:
    """Return how a destination fares; dead letters since then, and before."""
    of_destination = DispatchRow.destination == destination
    counts = select(DispatchRow.state, func.count(), func.min(DispatchRow.since)).where(
        of_destination, DispatchRow.state.in_(OPEN_DISPATCHES)
    )
    rows = session.execute(counts.group_by(DispatchRow.state)).all()
    late = func.count().filter(DispatchRow.updated_at >= since)
    dead, lately = session.execute(select(func.count(), late).where(of_destination, DispatchRow.state == "DEAD")).one()
    failures = session.scalar(select(DestinationRow.failures).where(DestinationRow.name == destination))
    return DestinationCounts(
        {state: count for state, count, _ in rows}, min((oldest for *_, oldest in rows), default=None), lately,
        dead - lately, failures or 0,
    )  # fmt: skip
