"""How destinations fare: one where nobody answers is held, so that what waits for it does not try in vain."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.queries.inserting import insert_or_ignore
from dicom_node.queries.notifications import notify
from dicom_node.study import backoff
from dicom_node.tables import DestinationRow

LONGEST_HOLD = timedelta(minutes=1)
"""Between two looks at a destination that is away: nothing else waits for them."""

DOWN_AFTER = 3
"""Tries in a row that found nobody there, after which a destination counts as down and administrators are told."""


def note_contact(session: Session, destination: str, now: datetime) -> None:
    """Note that a destination answered: what was held for it goes on."""
    _know(session, destination)
    of_name = DestinationRow.name == destination
    was_down = update(DestinationRow).where(of_name, DestinationRow.failures >= DOWN_AFTER).values(failures=0)
    if session.scalar(was_down.returning(DestinationRow.name)) is not None:
        notify(session, "destination recovered", destination, now)
    session.execute(update(DestinationRow).where(of_name).values(failures=0, hold_until=None, last_contact_at=now))


def hold_destination(session: Session, destination: str, error: str, now: datetime) -> datetime:
    """Note that nobody answers at a destination, and hold its dispatches; return until when."""
    _know(session, destination)
    row = session.get_one(DestinationRow, destination, with_for_update=True)
    row.failures += 1
    if row.failures == DOWN_AFTER:
        notify(session, "destination down", destination, now)
    row.last_error, row.last_error_at = error, now
    row.hold_until = now + min(backoff(row.failures, destination), LONGEST_HOLD)
    return row.hold_until


@dataclass(frozen=True, slots=True)
class DestinationState:
    """How a destination fares: whether it is held, and why; without values, one that was never tried."""

    failures: int = 0
    hold_until: datetime | None = None
    last_contact_at: datetime | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None


def destination_states(session: Session) -> dict[str, DestinationState]:
    """Return how each destination fares that something was sent to, by name."""
    return {
        row.name: DestinationState(row.failures, row.hold_until, row.last_contact_at, row.last_error, row.last_error_at)
        for row in session.scalars(select(DestinationRow))
    }


def _know(session: Session, destination: str) -> None:
    insert_or_ignore(session, DestinationRow, name=destination, failures=0)
