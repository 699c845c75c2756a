"""What administrators change: jobs are tried again, cancelled, sent again or grounded anew, dead letters replayed; each
with its audit event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.errors import NodeError
from dicom_node.queries.audit import about_study, note_audit
from dicom_node.queries.dispatches import cancel_dispatches, open_dispatches, reopen_dispatches
from dicom_node.queries.jobs import OUTCOMES
from dicom_node.queries.leases import NO_LEASE
from dicom_node.queries.outcomes import instance_rows
from dicom_node.study import END_STATES, State
from dicom_node.tables import DispatchRow, EventRow, JobRow, ResultRow, StudyRow

Change = Callable[[Session, int, datetime], str]
"""Changes a row, given its number, and returns the Study Instance UID that it belongs to. Raises NodeError."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes something: a person or a token, by which process, from which address."""

    name: str
    process: str
    address: str = ""


def change_audited(session: Session, change: Change, number: int, author: Author, reason: str, now: datetime) -> str:
    """Apply a change with its audit event, which gives `reason` with the number; return the study. Raises NodeError."""
    study = change(session, number, now)
    event = about_study(session, "study changed", study)
    event = replace(event, actor=author.name, actor_address=author.address, reason=reason.format(number))
    note_audit(session, event, author.process, now)
    return study


def retry_job(session: Session, job_id: int, now: datetime) -> str:
    """Take an ended job up again from the step that failed (a delivered one: deliver again); return its study.

    Raises NodeError where there is nothing to retry.
    """
    job = _ended_job(session, job_id)
    was_delivered = job.state == "DELIVERED"
    state: State = "COMPLETE"
    if session.scalar(select(ResultRow.part).where(ResultRow.job_id == job_id).limit(1)) is not None:
        state = "WRITTEN"
    elif job.model is not None:
        state = "GROUNDED"
    values: dict[str, Any] = {"state": state, "attempts": 0, "deaths": 0, "failure": None, **NO_LEASE}
    values["outcome"] = None if state == "COMPLETE" else (job.selection or {}).get("outcome", job.outcome)
    session.execute(
        update(JobRow)
        .where(JobRow.job_id == job_id)
        .values(values | {"step_since": now, "due_at": now, "updated_at": now})
    )
    if state == "WRITTEN":
        reopen_dispatches(session, job_id, now, all_parts=was_delivered)
    _note(session, job, now, "retried by an administrator", f"from {state}")
    return job.study_instance_uid


def cancel_job(session: Session, job_id: int, now: datetime) -> str:
    """End a job that is under way, and return its study. Raises NodeError if there is none, or it has ended already."""
    reason = f"cancelled by an administrator; `knowmvg jobs retry {job_id}` takes it up again"
    cancelled = session.scalar(
        update(JobRow)
        .where(JobRow.job_id == job_id, JobRow.state.not_in(END_STATES))
        .values(state="CANCELLED", outcome=OUTCOMES["CANCELLED"], failure=reason, step_since=now, updated_at=now)
        .returning(JobRow.job_id)
    )
    job = session.get(JobRow, job_id)
    if job is None:
        raise NodeError(_unknown(job_id))
    if cancelled is None:
        raise NodeError(f"job {job_id} has ended already ({job.state}); there is nothing to cancel")
    cancel_dispatches(session, [job_id], now)
    _note(session, job, now, "job cancelled", reason)
    return job.study_instance_uid


def resend_job(session: Session, job_id: int, now: datetime, destination: str | None = None) -> str:
    """Send the results of an ended job again, to every destination or to one, as they are; return its study.

    Raises NodeError where there are none, or the job is under way, cancelled or replaced.
    """
    job = _ended_job(session, job_id, "sent again")
    if session.scalar(select(ResultRow.part).where(ResultRow.job_id == job_id).limit(1)) is None:
        raise NodeError(f"job {job_id} is {job.state} and has no results; `knowmvg jobs retry {job_id}`")
    if job.state not in ("DELIVERED", "FAILED"):
        raise NodeError(f"job {job_id} is {job.state}; `knowmvg jobs retry {job_id}` takes it up again")
    job.outcome = (job.selection or {}).get("outcome", job.outcome)
    job.state, job.failure, job.attempts, job.deaths = "WRITTEN", None, 0, 0
    job.lease_token = job.lease_until = None
    job.step_since = job.due_at = job.updated_at = now
    session.flush()
    if destination is None:
        reopen_dispatches(session, job_id, now, all_parts=True)
    else:
        of_job = select(DispatchRow.dispatch_id).where(DispatchRow.job_id == job_id)
        dispatch_id = session.scalar(of_job.where(DispatchRow.destination == destination))
        if dispatch_id is not None:
            reopen_dispatches(session, job_id, now, all_parts=True, only=dispatch_id)
        else:  # a destination that is new since
            open_dispatches(session, job_id, [destination], now)
    _note(session, job, now, "results sent again", f"to {destination or 'every destination'}")
    return job.study_instance_uid


def reground_job(session: Session, job_id: int, now: datetime) -> str:
    """Open the next revision of a study, to be computed with the model as it is now; return the study.

    Its results name those as replaced that archives hold. Raises NodeError where the job is under way or replaced, or
    where bytes were removed.
    """
    job = _ended_job(session, job_id, "grounded anew")
    uid = job.study_instance_uid
    removed = sum(row.removed_at is not None for row, _ in instance_rows(session, uid))
    if removed:
        raise NodeError(
            f"job {job_id}: the bytes of {removed} instances were removed (retention.inputs_days); have the PACS send "
            "the study again"
        )
    study = session.get_one(StudyRow, uid)
    study.revision = job.revision + 1
    anew = JobRow(
        study_instance_uid=uid, revision=study.revision, state="RECEIVING", first_instance_at=job.first_instance_at,
        last_instance_at=job.last_instance_at, step_since=now, created_at=now, updated_at=now, due_at=now,
    )  # fmt: skip
    session.add(anew)
    session.flush()
    _note(session, job, now, "replaced by an administrator", f"grounded anew as job {anew.job_id}")
    _note(session, anew, now, "grounded anew", f"job {job_id}, revision {job.revision}, asked for by an administrator")
    return uid


def replay_dispatch(session: Session, dispatch_id: int, now: datetime) -> str:
    """Send a dead letter again; its job is WRITTEN again until all its dispatches have ended. Return its study.

    Raises NodeError where it is not dead, or belongs to a revision that another has replaced.
    """
    job_id = session.scalar(select(DispatchRow.job_id).where(DispatchRow.dispatch_id == dispatch_id))
    if job_id is None:
        raise NodeError(f"there is no delivery {dispatch_id}; `knowmvg deliveries` lists them")
    job = _lock_job(session, job_id)
    assert job is not None
    dispatch = session.get_one(DispatchRow, dispatch_id)
    if dispatch.state != "DEAD":
        raise NodeError(f"delivery {dispatch_id} is {dispatch.state}, no dead letter; there is nothing to replay")
    _refuse_replaced(session, job)
    if job.state not in ("WRITTEN", "FAILED"):
        raise NodeError(
            f"delivery {dispatch_id} is of job {job_id}, which is {job.state}: `knowmvg jobs retry {job_id}`"
        )
    reopen_dispatches(session, job_id, now, all_parts=False, only=dispatch_id)
    if job.state == "FAILED":
        job.state, job.failure, job.step_since, job.due_at = "WRITTEN", None, now, now
        job.outcome = (job.selection or {}).get("outcome", job.outcome)
    job.updated_at = now
    _note(session, job, now, "dead letter replayed", f"to {dispatch.destination}")
    return job.study_instance_uid


def _ended_job(session: Session, job_id: int, what: str = "retried") -> JobRow:
    """Return a job that may be taken up again, its row locked."""
    job = _lock_job(session, job_id)
    if job is None:
        raise NodeError(_unknown(job_id))
    if job.state not in END_STATES:
        raise NodeError(f"job {job_id} is under way ({job.state}); only what has ended is {what}")
    _refuse_replaced(session, job)
    return job


def _lock_job(session: Session, job_id: int) -> JobRow | None:
    """Lock a job, after its study: an instance that opens the next revision does the same, and one of both waits."""
    of_job = select(JobRow.study_instance_uid).where(JobRow.job_id == job_id).scalar_subquery()
    study = select(StudyRow).where(StudyRow.study_instance_uid == of_job)
    session.execute(study.with_for_update(key_share=True).execution_options(populate_existing=True))
    return session.scalar(select(JobRow).where(JobRow.job_id == job_id).with_for_update(key_share=True))


def _refuse_replaced(session: Session, job: JobRow) -> None:
    current = session.get_one(StudyRow, job.study_instance_uid).revision
    if current != job.revision:
        raise NodeError(
            f"job {job.job_id} is of revision {job.revision}, but its study is at revision {current} by now; see "
            f"`knowmvg jobs --study {job.study_instance_uid}`"
        )


def _unknown(job_id: int) -> str:
    return f"there is no job {job_id}; `knowmvg jobs` lists the jobs"


def _note(session: Session, job: JobRow, now: datetime, event: str, detail: str) -> None:
    session.add(
        EventRow(study_instance_uid=job.study_instance_uid, job_id=job.job_id, at=now, event=event, detail=detail)
    )
