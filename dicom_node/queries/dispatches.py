"""Dispatches: the results of a job on their way to one destination, from the opening to the confirmation.

The job's row is locked before its dispatches and deliveries are decided upon, by a worker as by the receiver that an
archive reports to: whoever comes second sees what the first found, and the last to end a dispatch ends the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Table, bindparam, delete, exists, select, update
from sqlalchemy.orm import Session

from dicom_node.delivery import NOT_ACCEPTED, OPEN_DISPATCHES, DispatchState, PartState, settle
from dicom_node.queries.audit import note_export
from dicom_node.queries.inserting import insert_or_ignore
from dicom_node.queries.jobs import add_event, end_delivery, older_is_under_way
from dicom_node.queries.leases import has_free_lease, take
from dicom_node.queries.notifications import notify
from dicom_node.tables import CommitmentRow, DeliveryRow, DestinationRow, DispatchRow, JobRow, ResultRow, StudyRow

# Made once: SQLAlchemy takes longer to put a statement together than SQLite to execute it.
_DELIVERIES = cast(Table, DeliveryRow.__table__)
_MARK = update(_DELIVERIES).where(
    _DELIVERIES.c.job_id == bindparam("of_job"),
    _DELIVERIES.c.destination == bindparam("of_destination"),
    _DELIVERIES.c.part == bindparam("of_part"),
    _DELIVERIES.c.state != "DELIVERED",
)
_LOCK = select(JobRow.job_id).where(JobRow.job_id == bindparam("of_job")).with_for_update(key_share=True)


@dataclass(frozen=True, slots=True)
class DispatchFacts:
    """A dispatch as the worker sees it that claimed it."""

    dispatch_id: int
    job_id: int
    destination: str
    state: DispatchState
    attempts: int
    deaths: int
    since: datetime
    study_instance_uid: str
    revision: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One part on its way to one destination, and which instance of it was sent last."""

    destination: str
    part: str
    state: PartState = "PENDING"
    sop_instance_uid: str | None = None
    status: int | None = None
    confirmed_by: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a try ends: when the dispatch is looked at again (if something is to be sent, or if only a confirmation is
    waited for), why it is not over, what to do if it is given up, and whether what is still open is given up now."""

    pending_at: datetime
    confirming_at: datetime
    failure: str
    advice: str = ""
    give_up: bool = False


def open_dispatches(session: Session, job_id: int, destinations: Sequence[str], now: datetime) -> tuple[int, ...]:
    """Open the dispatch of a job's results to each destination, and return those; ended ones stay as they are.

    A job that has no results is DELIVERED at once.
    """
    parts = sorted(set(session.scalars(select(ResultRow.part).where(ResultRow.job_id == job_id))))
    if not parts:
        end_delivery(session, job_id, (), now, "nothing to deliver")
        return ()
    for destination in destinations:
        insert_or_ignore(
            session, DispatchRow, job_id=job_id, destination=destination, state="PENDING", since=now, due_at=now,
            attempts=0, deaths=0, updated_at=now,
        )  # fmt: skip
        for part in parts:
            insert_or_ignore(
                session, DeliveryRow, job_id=job_id, destination=destination, part=part, state="PENDING", updated_at=now
            )
    statement = select(DispatchRow.dispatch_id).where(
        DispatchRow.job_id == job_id, DispatchRow.state.in_(OPEN_DISPATCHES)
    )
    _settle_job(session, job_id, now)
    return tuple(session.scalars(statement))


def undispatched_jobs(session: Session, now: datetime, limit: int) -> tuple[int, ...]:
    """Return jobs whose results are written and whose dispatches are to be opened: all that are due."""
    statement = (
        select(JobRow.job_id)
        .where(JobRow.state == "WRITTEN", JobRow.due_at <= now)
        .order_by(JobRow.due_at)
        .limit(limit)
    )
    return tuple(session.scalars(statement))


def dispatches_to_ring(session: Session, now: datetime, limit: int) -> tuple[int, ...]:
    """Return the dispatches that are due and that nobody works on, the longest due first; none of a destination that is
    held."""
    statement = (
        select(DispatchRow.dispatch_id)
        .join(JobRow, JobRow.job_id == DispatchRow.job_id)
        .where(
            DispatchRow.state.in_(OPEN_DISPATCHES),
            DispatchRow.due_at <= now,
            JobRow.state == "WRITTEN",
            has_free_lease(DispatchRow, now),
            ~_is_held(now),
        )
        .order_by(DispatchRow.due_at, DispatchRow.dispatch_id)
        .limit(limit)
        .with_for_update(of=DispatchRow, skip_locked=True)  # `dispatches_rung` follows, and is not to wait for anybody
    )
    return tuple(session.scalars(statement))


def dispatches_rung(session: Session, dispatch_ids: Sequence[int], now: datetime, again_at: datetime) -> None:
    """Note that workers were rung for these; without a claim they are due again at `again_at`."""
    if not dispatch_ids:
        return
    session.execute(
        update(DispatchRow)
        .where(DispatchRow.dispatch_id.in_(dispatch_ids), DispatchRow.due_at <= now)
        .values(due_at=again_at)
    )


def destination_of(session: Session, dispatch_id: int) -> str | None:
    """Return the name of the destination of a dispatch."""
    return session.scalar(select(DispatchRow.destination).where(DispatchRow.dispatch_id == dispatch_id))


def claim_dispatch(
    session: Session, dispatch_id: int, token: str, now: datetime, lease: timedelta
) -> DispatchFacts | None:
    """Take a dispatch for the time of `lease`; None if it is not there to be taken.

    It is not if it has ended, if its job is not WRITTEN or no longer the current revision, if somebody holds it, if its
    destination is held, or if a worker is still at an older revision of its study.
    """
    current = select(StudyRow.revision).where(StudyRow.study_instance_uid == JobRow.study_instance_uid)
    job = (
        select(JobRow.study_instance_uid, JobRow.revision)
        .join(DispatchRow, DispatchRow.job_id == JobRow.job_id)
        .where(
            DispatchRow.dispatch_id == dispatch_id,
            JobRow.state == "WRITTEN",
            JobRow.revision == current.scalar_subquery(),
            ~older_is_under_way(now),
        )
        .with_for_update(of=JobRow, key_share=True)
    )
    found = session.execute(job).one_or_none()
    if found is None:
        return None
    row = session.execute(
        update(DispatchRow)
        .where(
            DispatchRow.dispatch_id == dispatch_id,
            DispatchRow.state.in_(OPEN_DISPATCHES),
            has_free_lease(DispatchRow, now),
            ~_is_held(now),
        )
        .values(take(DispatchRow, token, now, lease))
        .returning(DispatchRow)
    ).scalar()
    if row is None:
        return None
    return DispatchFacts(
        row.dispatch_id, row.job_id, row.destination, row.state, row.attempts, row.deaths, row.since,  # type: ignore[arg-type]  # a str column
        found.study_instance_uid, found.revision,
    )  # fmt: skip


def load_deliveries(session: Session, job_id: int, destination: str | None = None) -> tuple[Delivery, ...]:
    """Return the deliveries of a job (to one destination), by destination and part."""
    statement = select(DeliveryRow).where(DeliveryRow.job_id == job_id)
    if destination is not None:
        statement = statement.where(DeliveryRow.destination == destination)
    return tuple(
        Delivery(
            row.destination, row.part, row.state, row.sop_instance_uid, row.status, row.confirmed_by, row.detail  # type: ignore[arg-type]  # a str column
        )
        for row in session.scalars(statement.order_by(DeliveryRow.destination, DeliveryRow.part))
    )  # fmt: skip


def mark_delivery(session: Session, job_id: int, delivery: Delivery, now: datetime) -> None:
    """Note what became of a delivery. It holds whatever became of the job in the meantime: the archive has it.

    What is DELIVERED already stays so: its confirmation may have come by another way meanwhile.
    """
    session.execute(
        _MARK,
        {
            "of_job": job_id,
            "of_destination": delivery.destination,
            "of_part": delivery.part,
            "state": delivery.state,
            "sop_instance_uid": delivery.sop_instance_uid,
            "status": delivery.status,
            "confirmed_by": delivery.confirmed_by,
            "detail": delivery.detail,
            "updated_at": now,
        },
    )


def end_try(
    session: Session, claimed: DispatchFacts, token: str, ending: Ending, now: datetime
) -> DispatchState | None:
    """End a try at a claimed dispatch: its new state comes from its parts, and with the last dispatch the job ends.

    None if the dispatch is no longer ours.
    """
    lock_job(session, claimed.job_id)
    dispatch = session.get_one(DispatchRow, claimed.dispatch_id, with_for_update=True)
    if dispatch.lease_token != token:
        return None
    if ending.give_up:
        session.execute(
            update(DeliveryRow)
            .where(*parts_of(dispatch), DeliveryRow.state.in_(("PENDING", "STORED")))
            .values(state="FAILED", updated_at=now)
        )
    settle_dispatch(session, dispatch, ending, now)
    state: Any = dispatch.state
    return state  # type: ignore[no-any-return]


def cancel_dispatches(session: Session, job_ids: Sequence[int], now: datetime) -> None:
    """Cancel what is on its way of jobs that were cancelled; what an archive took stays noted."""
    session.execute(
        update(DispatchRow)
        .where(DispatchRow.job_id.in_(job_ids), DispatchRow.state.in_(OPEN_DISPATCHES))
        .values(state="CANCELLED", updated_at=now)
    )


def reopen_dispatches(
    session: Session, job_id: int, now: datetime, *, all_parts: bool, only: int | None = None
) -> None:
    """Put the ended dispatches of a job (or one of them) back to PENDING: what was not delivered, or all parts.

    Where the archive no longer accepted the SR class that it had been sent, any may be sent: a person has decided.
    Where all is sent again, what the archive reports on an earlier transaction is no news.
    """
    statement = select(DispatchRow).where(DispatchRow.job_id == job_id, DispatchRow.state.not_in(OPEN_DISPATCHES))
    if only is not None:
        statement = statement.where(DispatchRow.dispatch_id == only)
    for dispatch in session.scalars(statement):
        if all_parts:
            session.execute(delete(CommitmentRow).where(CommitmentRow.dispatch_id == dispatch.dispatch_id))
        of_state = () if all_parts else (DeliveryRow.state != "DELIVERED",)
        session.execute(
            update(DeliveryRow)
            .where(*parts_of(dispatch), DeliveryRow.state == "FAILED", DeliveryRow.detail == NOT_ACCEPTED)
            .values(sop_instance_uid=None)
        )
        session.execute(
            update(DeliveryRow)
            .where(*parts_of(dispatch), *of_state)
            .values(state="PENDING", confirmed_by=None, detail=None, updated_at=now)
        )
        if dispatch.state == "DELIVERED" and not all_parts:
            continue
        dispatch.state, dispatch.since, dispatch.due_at, dispatch.updated_at = "PENDING", now, now, now
        dispatch.attempts = dispatch.deaths = 0
        dispatch.failure = None


def settle_dispatch(session: Session, dispatch: DispatchRow, ending: Ending, now: datetime) -> None:
    """Give up a dispatch with the state that its parts give it; with the last one of the job, the job ends.

    However a try ends, nobody died at it.
    """
    before = dispatch.state
    parts = list(session.scalars(select(DeliveryRow.state).where(*parts_of(dispatch))))
    dispatch.lease_token = dispatch.lease_until = None
    dispatch.deaths = 0
    dispatch.updated_at = now
    if dispatch.state != "CANCELLED" or settle(parts) == "DELIVERED":  # type: ignore[arg-type]  # a str column
        dispatch.state = settle(parts)  # type: ignore[arg-type]
    if dispatch.state in OPEN_DISPATCHES:
        dispatch.due_at = ending.pending_at if dispatch.state == "PENDING" else ending.confirming_at
        dispatch.failure = ending.failure or None
        _show_in_job(session, dispatch.job_id, now)
        return
    why = ending.failure or dispatch.failure or ""
    dispatch.failure = f"{why}{ending.advice}" if dispatch.state == "DEAD" else None
    session.flush()
    if dispatch.state == "DELIVERED" and before != "DELIVERED":
        _note_delivered(session, dispatch, now)
    if dispatch.state == "DEAD" and before != "DEAD":
        notify(session, "dead letter", dispatch.destination, now, dispatch.job_id)
    _settle_job(session, dispatch.job_id, now)


def _settle_job(session: Session, job_id: int, now: datetime) -> None:
    """End a job all of whose dispatches have ended; one that had FAILED, where they are all DELIVERED by now."""
    ended = session.execute(
        select(DispatchRow.state, DispatchRow.failure)
        .where(DispatchRow.job_id == job_id)
        .order_by(DispatchRow.destination)
    ).all()
    if not ended or any(state in OPEN_DISPATCHES for state, _ in ended):
        return
    end_delivery(session, job_id, [why or state for state, why in ended if state != "DELIVERED"], now)


def _show_in_job(session: Session, job_id: int, now: datetime) -> None:
    """Let the job's own row say how often, and why in vain, its results were sent so far."""
    session.flush()
    rows = session.execute(
        select(DispatchRow.attempts, DispatchRow.failure)
        .where(DispatchRow.job_id == job_id, DispatchRow.state.not_in(("DELIVERED", "CANCELLED")))
        .order_by(DispatchRow.destination)
    ).all()
    failure = "; ".join(dict.fromkeys(why for _, why in rows if why)) or None
    session.execute(
        update(JobRow)
        .where(JobRow.job_id == job_id, JobRow.state == "WRITTEN")
        .values(attempts=max((attempts for attempts, _ in rows), default=0), failure=failure, updated_at=now)
    )


def _note_delivered(session: Session, dispatch: DispatchRow, now: datetime) -> None:
    job = session.get_one(JobRow, dispatch.job_id)
    deliveries = load_deliveries(session, dispatch.job_id, dispatch.destination)
    how = sorted({str(one.confirmed_by) for one in deliveries})
    warnings = sorted({one.detail for one in deliveries if one.detail})
    detail = f"{len(deliveries)} parts to {dispatch.destination}, confirmed by {', '.join(how)}"
    detail += "".join(f"; {warning}" for warning in warnings)
    add_event(session, (job.study_instance_uid, job.job_id), now, "destination has results", detail)
    uids = [one.sop_instance_uid for one in deliveries if one.sop_instance_uid]
    note_export(session, job.study_instance_uid, dispatch.destination, uids, now)


def parts_of(dispatch: DispatchRow) -> tuple[Any, ...]:
    """Say in SQL which deliveries belong to a dispatch."""
    return DeliveryRow.job_id == dispatch.job_id, DeliveryRow.destination == dispatch.destination


def lock_job(session: Session, job_id: int) -> None:
    """Lock a job's row until the end of the transaction."""
    session.execute(_LOCK, {"of_job": job_id})


def _is_held(now: datetime) -> Any:
    return exists().where(DestinationRow.name == DispatchRow.destination, DestinationRow.hold_until > now)
