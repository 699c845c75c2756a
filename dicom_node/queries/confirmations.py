"""Storage commitments that archives are asked for: kept before they are asked, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.delivery import DispatchState
from dicom_node.queries.dispatches import Ending, lock_job, parts_of, settle_dispatch
from dicom_node.study import backoff
from dicom_node.tables import CommitmentRow, DeliveryRow, DispatchRow


@dataclass(frozen=True, slots=True)
class Reported:
    """What a storage commitment report was about, and what it came to."""

    dispatch_id: int
    destination: str
    state: DispatchState
    committed: int
    failed: int
    ended_after: timedelta | None = None
    """Since the dispatch was opened, where this report ended it."""


def note_asked(session: Session, dispatch_id: int, transaction_uid: str, now: datetime) -> None:
    """Keep the transaction of a storage commitment, before the archive is asked: it may answer at once."""
    session.add(CommitmentRow(transaction_uid=transaction_uid, dispatch_id=dispatch_id, asked_at=now))


def is_answered(session: Session, transaction_uid: str) -> bool:
    """Tell whether the archive has reported on a transaction."""
    statement = select(CommitmentRow.answered_at).where(CommitmentRow.transaction_uid == transaction_uid)
    return session.scalar(statement) is not None


def destination_asked(session: Session, transaction_uid: str) -> str | None:
    """Return the destination that was asked for a storage commitment under this Transaction UID, if any was."""
    statement = (
        select(DispatchRow.destination)
        .join(CommitmentRow, CommitmentRow.dispatch_id == DispatchRow.dispatch_id)
        .where(CommitmentRow.transaction_uid == transaction_uid)
    )
    return session.scalar(statement)


def note_report(
    session: Session, transaction_uid: str, committed: Sequence[str], failed: Mapping[str, str], now: datetime
) -> Reported | None:
    """Keep what an archive reported of a storage commitment: SOP Instance UIDs that it has, and those that it has not,
    with the reason. None if nothing was asked under this Transaction UID.

    What it has not is sent again, if this was the last time that it was asked. A dispatch that a worker is at is left
    to that worker to end.
    """
    found = session.execute(
        select(DispatchRow.dispatch_id, DispatchRow.job_id, DispatchRow.destination)
        .join(CommitmentRow, CommitmentRow.dispatch_id == DispatchRow.dispatch_id)
        .where(CommitmentRow.transaction_uid == transaction_uid)
    ).one_or_none()
    if found is None:
        return None
    lock_job(session, found.job_id)
    dispatch = session.get_one(DispatchRow, found.dispatch_id, with_for_update=True)
    session.execute(
        update(CommitmentRow).where(CommitmentRow.transaction_uid == transaction_uid).values(answered_at=now)
    )
    before = dispatch.state
    _confirm(session, dispatch, committed, now)
    if _is_last_asked(session, dispatch.dispatch_id, transaction_uid):
        _send_again(session, dispatch, failed, now)
    if dispatch.lease_until is None or dispatch.lease_until <= now:
        pause = backoff(dispatch.attempts, f"dispatch {dispatch.dispatch_id}")
        settle_dispatch(session, dispatch, Ending(now + pause, dispatch.due_at, dispatch.failure or ""), now)
    state: Any = dispatch.state
    ended = now - dispatch.since if state == "DELIVERED" and before != "DELIVERED" else None
    return Reported(dispatch.dispatch_id, dispatch.destination, state, len(committed), len(failed), ended)


def _confirm(session: Session, dispatch: DispatchRow, committed: Sequence[str], now: datetime) -> None:
    session.execute(
        update(DeliveryRow)
        .where(*parts_of(dispatch), DeliveryRow.sop_instance_uid.in_(committed), DeliveryRow.state != "DELIVERED")
        .values(state="DELIVERED", confirmed_by="commitment", updated_at=now)
    )


def _send_again(session: Session, dispatch: DispatchRow, failed: Mapping[str, str], now: datetime) -> None:
    for uid, reason in failed.items():
        session.execute(
            update(DeliveryRow)
            .where(*parts_of(dispatch), DeliveryRow.sop_instance_uid == uid, DeliveryRow.state == "STORED")
            .values(state="PENDING", detail=f"no storage commitment: {reason}", updated_at=now)
        )


def _is_last_asked(session: Session, dispatch_id: int, transaction_uid: str) -> bool:
    statement = (
        select(CommitmentRow.transaction_uid)
        .where(CommitmentRow.dispatch_id == dispatch_id)
        .order_by(CommitmentRow.asked_at.desc(), CommitmentRow.transaction_uid)
        .limit(1)
    )
    return session.scalar(statement) == transaction_uid
