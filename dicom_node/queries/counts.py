"""How much there is: jobs by state, instances, and how long the oldest work has waited."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.queries.jobs import STEP_STATES
from dicom_node.queries.leases import has_free_lease
from dicom_node.tables import DispatchRow, InstanceRow, JobRow


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
