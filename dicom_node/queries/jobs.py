"""Moving a job along its path: who may work on it, and compare-and-set commits of what came of it.

A worker claims a job with a token and a lease; only the holder of the token moves it on, and only out of the state it
was claimed in. Every function is one statement or a few in the caller's transaction, and tells by its result whether
it was the one that won.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from dicom_node.priority import PRIORITIES, Urgency, WaitingJob
from dicom_node.queries.leases import NO_LEASE, has_free_lease, take
from dicom_node.queries.notifications import JOBS, notify
from dicom_node.study import (
    NEXT,
    QUARANTINED,
    WORKING_STATES,
    Complete,
    JobFacts,
    NotApplicable,
    State,
    Verdict,
    Waiting,
)
from dicom_node.tables import DispatchRow, EventRow, JobRow, StudyRow

EVENTS: dict[str, str] = {
    "COMPLETE": "study complete",
    "GROUNDED": "study grounded",
    "WRITTEN": "results written",
    "DELIVERED": "results delivered",
    "NOT_APPLICABLE": "not applicable",
    "FAILED": "job failed",
    "CANCELLED": "job cancelled",
}
"""What the timeline says when a job comes into a state."""

OUTCOMES: dict[str, str | None] = {"NOT_APPLICABLE": "NOT_APPLICABLE", "FAILED": "FAILED", "CANCELLED": None}

KEY_SHARED = {"key_share": True}
"""A row's lock that lets others refer to the row: to its job, an event; to its study, a job."""

ROUTINE = Urgency()

STEP_STATES: tuple[State, ...] = ("COMPLETE", "GROUNDED")
"""States that a step of the job itself leads out of; out of WRITTEN lead its dispatches."""


def due_receiving(session: Session, now: datetime, limit: int) -> tuple[JobFacts, ...]:
    """Return jobs whose study may be complete, those that wait longest first."""
    statement = (
        select(JobRow)
        .where(JobRow.state == "RECEIVING", JobRow.due_at <= now)
        .order_by(JobRow.due_at, JobRow.job_id)
        .limit(limit)
    )
    return tuple(map(_facts, session.scalars(statement)))


def next_receiving(session: Session, now: datetime) -> datetime | None:
    """Return when the next study may be complete, of those that are not to be looked at yet."""
    statement = (
        select(JobRow.due_at)
        .where(JobRow.state == "RECEIVING", JobRow.due_at > now)
        .order_by(JobRow.due_at, JobRow.job_id)
        .limit(1)
    )
    return session.scalar(statement)


def close_job(session: Session, job_id: int, verdict: Verdict, now: datetime, urgency: Urgency = ROUTINE) -> bool:
    """Do what `study.completion` says with a job in RECEIVING; False if something new came since it looked."""
    detail = ""
    unchanged = (
        JobRow.job_id == job_id,
        JobRow.state == "RECEIVING",
        JobRow.last_instance_at == verdict.last_instance_at,
    )
    match verdict:
        case Waiting(until=until):
            values: dict[str, Any] = {"due_at": until}
        case Complete():
            values = _entering("COMPLETE", now) | {"priority": urgency.priority}
            detail = f"{urgency.priority}: {urgency.why}" if urgency.why else ""
        case NotApplicable(reason=reason):
            values = _entering("NOT_APPLICABLE", now) | {"outcome": "NOT_APPLICABLE", "failure": reason}
    changed = session.execute(
        update(JobRow).where(*unchanged).values(values).returning(JobRow.study_instance_uid)
    ).scalar()
    if changed is not None and not isinstance(verdict, Waiting):
        add_event(session, (changed, job_id), now, EVENTS[values["state"]], values.get("failure") or detail)
    return changed is not None


def jobs_to_ring(session: Session, now: datetime, limit: int) -> tuple[tuple[int, State], ...]:
    """Return (job, state) of jobs that are due for a worker and that nobody works on: STAT, then the longest due."""
    statement = (
        select(JobRow.job_id, JobRow.state)
        .where(JobRow.state.in_(STEP_STATES), JobRow.due_at <= now, has_free_lease(JobRow, now))
        .order_by(JobRow.due_at, JobRow.job_id)
    )
    due: list[tuple[int, State]] = []
    for priority in PRIORITIES:
        found = session.execute(statement.where(JobRow.priority == priority).limit(limit - len(due)))
        due += ((job_id, state) for job_id, state in found)  # type: ignore[misc]  # a str column
    return tuple(due)


def rung(session: Session, job_ids: Sequence[int], now: datetime, again_at: datetime) -> None:
    """Note that workers were rung for these jobs; without a claim they are due again at `again_at`."""
    if not job_ids:
        return
    session.execute(
        update(JobRow)
        .where(JobRow.job_id.in_(job_ids), JobRow.due_at <= now, JobRow.state.in_(STEP_STATES))
        .values(due_at=again_at)
    )


def claim(session: Session, job_id: int, state: State, token: str, now: datetime, lease: timedelta) -> JobFacts | None:
    """Take a job that is in `state` for the time of `lease`; None if it is not there to be taken.

    It is not if its study has a newer revision, if somebody holds it, or if it would write results while a worker is
    still at an older revision of its study. `attempts` of the returned facts counts this one.
    """
    current = select(StudyRow.revision).where(StudyRow.study_instance_uid == JobRow.study_instance_uid)
    conditions = [JobRow.job_id == job_id, JobRow.state == state, JobRow.revision == current.scalar_subquery()]
    if state == "GROUNDED":
        conditions.append(~older_is_under_way(now))
    statement = (
        update(JobRow)
        .where(*conditions, has_free_lease(JobRow, now))
        .values(take(JobRow, token, now, lease))
        .returning(JobRow)
    )
    row = session.execute(statement).scalar()
    return None if row is None else _facts(row)


def is_free(session: Session, job_id: int, state: State, now: datetime) -> bool:
    """Tell whether a job is in `state` and nobody works on it: only then a claim, which takes locks, is worth it."""
    statement = select(JobRow.job_id).where(JobRow.job_id == job_id, JobRow.state == state, has_free_lease(JobRow, now))
    return session.scalar(statement) is not None


def waiting_jobs(session: Session, state: State, now: datetime, limit: int) -> tuple[WaitingJob, ...]:
    """Return the jobs in `state` that wait for a worker, of each priority the `limit` that wait longest; locked.

    A job that was not tried yet waits even if it was rung for just now; one that is to be tried again waits from its
    time on. Jobs whose worker died are left to their own rings: they are worked on alone.
    """
    current = select(StudyRow.revision).where(StudyRow.study_instance_uid == JobRow.study_instance_uid)
    statement = (
        select(JobRow.job_id, JobRow.step_since)
        .where(JobRow.state == state, JobRow.revision == current.scalar_subquery())
        .where(JobRow.lease_token.is_(None), JobRow.deaths == 0, or_(JobRow.attempts == 0, JobRow.due_at <= now))
        .order_by(JobRow.step_since, JobRow.job_id)
        .limit(limit)
        .with_for_update(of=JobRow, skip_locked=True, **KEY_SHARED)
    )
    return tuple(
        WaitingJob(job_id, priority, since)
        for priority in PRIORITIES
        for job_id, since in session.execute(statement.where(JobRow.priority == priority))
    )


def claim_waiting(
    session: Session, job_ids: Sequence[int], token: str, now: datetime, lease: timedelta
) -> tuple[JobFacts, ...]:
    """Take jobs that `waiting_jobs` returned in the same transaction, in this order."""
    if not job_ids:
        return ()
    values = take(JobRow, token, now, lease)
    claimed = session.scalars(update(JobRow).where(JobRow.job_id.in_(job_ids)).values(values).returning(JobRow))
    return tuple(sorted(map(_facts, claimed), key=lambda job: job_ids.index(job.job_id)))


def end_delivery(
    session: Session, job_id: int, failures: Sequence[str], now: datetime, detail: str = "to every destination"
) -> bool:
    """End a WRITTEN job, all of whose dispatches have ended: DELIVERED, or FAILED for the reasons given.

    A job that was FAILED for want of a confirmation is DELIVERED when that has come after all.
    """
    row = session.get(JobRow, job_id, with_for_update=KEY_SHARED, populate_existing=True)
    if row is None or row.state not in (("WRITTEN",) if failures else ("WRITTEN", "FAILED")):
        return False
    seconds = round((now - row.step_since).total_seconds(), 3)
    failure = "; ".join(dict.fromkeys(failures))
    values = _ending("FAILED", failure, now) if failures else _entering("DELIVERED", now)
    values["timings"] = row.timings | {"deliver": seconds}
    if row.state == "FAILED":
        values["outcome"] = (row.selection or {}).get("outcome", row.outcome)
    session.execute(update(JobRow).where(JobRow.job_id == job_id).values(values | NO_LEASE))
    add_event(session, (row.study_instance_uid, job_id), now, EVENTS[values["state"]], failure or detail)
    return True


def is_written(session: Session, job_id: int) -> bool:
    """Tell whether a job is WRITTEN, and keep it so until the end of the transaction."""
    statement = select(JobRow.state).where(JobRow.job_id == job_id).with_for_update(key_share=True)
    return session.scalar(statement) == "WRITTEN"


def note_opened(session: Session, job_id: int, again_at: datetime) -> None:
    """Note that the dispatches of a WRITTEN job are open; they are looked for again at `again_at`."""
    session.execute(update(JobRow).where(JobRow.job_id == job_id, JobRow.state == "WRITTEN").values(due_at=again_at))


def fail_delivery(session: Session, job_id: int, failure: str, now: datetime) -> bool:
    """End a WRITTEN job whose results can go nowhere."""
    return end_delivery(session, job_id, (failure,), now)


def older_is_under_way(now: datetime) -> ColumnElement[bool]:
    """Say in SQL, of a job, that a worker is still at an older revision of its study, or sends results of one.

    Who writes or sends results waits for that: an archive never gets an older revision after a newer one, and the newer
    one names what was delivered as its predecessor.
    """
    older = aliased(JobRow)
    of_older = (older.study_instance_uid == JobRow.study_instance_uid, older.revision < JobRow.revision)
    sends = exists().where(*of_older, DispatchRow.job_id == older.job_id, DispatchRow.lease_until > now)
    return or_(exists().where(*of_older, older.lease_until > now), sends)


def advance(
    session: Session, job_id: int, token: str, from_state: State, to_state: State, now: datetime, **values: Any
) -> bool:
    """Move a claimed job on to the next state and give up its lease; False if it is no longer ours to move.

    `values` are columns to set besides (outcome, selection, timings, due_at), and the `detail` of the event. Commit
    also if it is False: the lease is given up, and what became of a delivery did happen.
    """
    detail = values.pop("detail", "")
    if NEXT.get(from_state) != to_state:
        raise ValueError(f"{to_state} does not follow {from_state}")
    return _finish(session, (job_id, token, from_state), now, _entering(to_state, now) | values, detail=detail)


def retry_later(session: Session, job_id: int, token: str, reason: str, due_at: datetime, now: datetime) -> bool:
    """Give up a claimed job and its lease, to be tried again from `due_at` on; False if it is no longer ours."""
    values = {"due_at": due_at, "failure": reason, "deaths": 0, "updated_at": now}
    return _finish(session, (job_id, token, None), now, values, event="step will be tried again", detail=reason)


def end_job(session: Session, job_id: int, token: str, state: State, failure: str, now: datetime) -> bool:
    """End a claimed job as NOT_APPLICABLE, FAILED or CANCELLED for the reason given; False if it is no longer ours."""
    ended = _finish(session, (job_id, token, None), now, _ending(state, failure, now), detail=failure)
    if ended and failure.startswith(QUARANTINED):
        notify(session, "quarantine", JOBS, now, job_id)
    return ended


def _ending(state: State, failure: str, now: datetime) -> dict[str, Any]:
    values = _entering(state, now) | {"outcome": OUTCOMES[state], "failure": failure}
    del values["attempts"], values["deaths"]  # how often it was tried stays to be seen
    return values


def _entering(state: State, now: datetime) -> dict[str, Any]:
    return {
        "state": state,
        "attempts": 0,
        "deaths": 0,
        "failure": None,
        "step_since": now,
        "due_at": now,
        "updated_at": now,
    }


def _finish(
    session: Session,
    claimed: tuple[int, str, State | None],
    now: datetime,
    values: dict[str, Any],
    *,
    event: str | None = None,
    detail: str = "",
) -> bool:
    """Set `values` on a job that is ours and in a working state (or the given one), and give up the lease.

    A job that was cancelled under our hands keeps its state, but its lease is given up all the same: the next revision
    waits for that.
    """
    job_id, token, from_state = claimed
    ours = and_(JobRow.job_id == job_id, JobRow.lease_token == token)
    states = WORKING_STATES if from_state is None else (from_state,)
    study = session.execute(
        update(JobRow)
        .where(ours, JobRow.state.in_(states))
        .values(values | NO_LEASE)
        .returning(JobRow.study_instance_uid)
    ).scalar()
    if study is None:
        session.execute(update(JobRow).where(ours).values(NO_LEASE))
        return False
    add_event(session, (study, job_id), now, event or EVENTS[values["state"]], detail)
    return True


def add_event(session: Session, job: tuple[str, int], now: datetime, event: str, detail: str) -> None:
    """Add to the timeline of a job, given as its study and its number."""
    session.add(EventRow(study_instance_uid=job[0], job_id=job[1], at=now, event=event, detail=detail))


def _facts(row: JobRow) -> JobFacts:
    return JobFacts(
        job_id=row.job_id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        state=row.state,  # type: ignore[arg-type]  # a str column
        attempts=row.attempts,
        deaths=row.deaths,
        first_instance_at=row.first_instance_at,
        last_instance_at=row.last_instance_at,
        step_since=row.step_since,
        created_at=row.created_at,
        selection=row.selection,
        model=row.model,
        outcome=row.outcome,
        timings=dict(row.timings),
    )
