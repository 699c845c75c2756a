"""Who works on a row: claims with a token and a lease, and what becomes of the rows of a worker that died.

A row whose lease ran out, or whose holder is known to be dead, was left by a worker that died or hung: that is counted
(`deaths`), so that work which kills its worker each time comes to an end.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import case

from dicom_node.tables import CommitmentRequestRow, DispatchRow, JobRow, Leased

LEASED: tuple[type[Leased], ...] = (JobRow, DispatchRow, CommitmentRequestRow)

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": None}
"""Columns of a row that is given up."""


def has_free_lease(row: type[Leased], now: datetime) -> ColumnElement[bool]:
    """Say in SQL that nobody works on a row."""
    return or_(row.lease_until.is_(None), row.lease_until <= now)


def take(row: type[Leased], token: str, now: datetime, lease: timedelta) -> dict[str, Any]:
    """Return the columns of a row that is claimed; `attempts` counts this try, `deaths` a holder that never ended."""
    return {
        "lease_token": token,
        "lease_until": now + lease,
        "attempts": row.attempts + 1,
        "deaths": case((row.lease_token.is_not(None), row.deaths + 1), else_=row.deaths),
        "updated_at": now,
    }


def lease_tokens(session: Session) -> tuple[str, ...]:
    """Return the tokens of all leases, also of those that ran out."""
    held = (select(row.lease_token).where(row.lease_token.is_not(None)).distinct() for row in LEASED)
    return tuple(sorted({str(token) for statement in held for token in session.scalars(statement)}))


def free_leases(session: Session, token: str, now: datetime) -> int:
    """Give up the leases of a worker that is known to be dead; what it held is due at once. Returns how many."""
    return sum(_free(session, row, token, now) for row in LEASED)


def give_back_leases(session: Session, token: str, now: datetime) -> None:
    """Give up what a worker holds that ends as it was told to: that is no death."""
    for row in LEASED:
        session.execute(update(row).where(row.lease_token == token).values(**NO_LEASE, due_at=now))


def give_back_jobs(session: Session, job_ids: Collection[int], token: str, now: datetime) -> None:
    """Give up jobs that a worker claimed and did not begin: that is neither a try nor a death."""
    session.execute(
        update(JobRow)
        .where(JobRow.job_id.in_(job_ids), JobRow.lease_token == token)
        .values(**NO_LEASE, due_at=now, attempts=JobRow.attempts - 1)
    )


def _free(session: Session, row: type[Leased], token: str, now: datetime) -> int:
    statement = update(row).where(row.lease_token == token).values(**NO_LEASE, due_at=now, deaths=row.deaths + 1)
    return len(session.execute(statement.returning(row.due_at)).all())
