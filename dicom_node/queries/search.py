"""What people look for in the console: jobs by who, what, when and why, page by page.

What names few studies (an id, a number, a UID) leads by its index, and so does a state; a time is turned into job
numbers, which grow with it. What no index knows (an AE title, words of a failure) is looked for among the next jobs
alone, so many at a time: a page then says how far it has looked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, union
from sqlalchemy.orm import Session

from dicom_node.queries.hints import unindexed
from dicom_node.queries.views import JobSummary
from dicom_node.tables import DispatchRow, InstanceRow, JobRow, ReportReferenceRow, ResultRow, StudyRow

LOOKED_AT = 5000
"""Jobs that are looked at for one page where no index leads to those that fit."""

DISORDER = 1000
"""Jobs: so far may their numbers be out of step with the time they were made at, as transactions overlap."""

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class JobSearch:
    """Which jobs are looked for; empty or None: any.

    `who`: a Patient ID, an accession number, the UID of a study or of an instance (received or result), or a job's
    number, as a whole. `since`, `until`: when the first instance of the job came. `text`: words in the failure,
    whatever their case. `before`: jobs of lower numbers, for the next page; `after`: of higher ones, for the last one.
    """

    who: str = ""
    state: str = ""
    ae_title: str = ""
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""
    before: int | None = None
    after: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class FoundJob(JobSummary):
    """A job in the list of the console, with whose study it is of."""

    patient_id: str
    accession_number: str


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page of jobs, the latest first. `older` is the job that the next page is of those before, None: there is none;
    `newer` likewise. `looked_to`: the search was broken off at this job, older ones may fit as well."""

    jobs: tuple[FoundJob, ...]
    older: int | None
    newer: int | None
    looked_to: int | None = None


def search_jobs(session: Session, wanted: JobSearch) -> FoundPage:
    """Return the page of jobs that fit."""
    low, high = _bounds(session, wanted)
    conditions = [JobRow.job_id >= low] if low is not None else []
    conditions += [JobRow.job_id < high] if high is not None else []
    if wanted.who:
        conditions += [_names(session, wanted.who), *_states(unindexed(JobRow.state), wanted)]
        return _page(session, wanted, [*conditions, *_rest(wanted)], None)
    conditions += _states(JobRow.state, wanted)
    if not (wanted.ae_title or wanted.text):
        return _page(session, wanted, [*conditions, *_rest(wanted)], None)
    window = _window(session, wanted, conditions)
    edge = () if window is None else (JobRow.job_id >= window[0], JobRow.job_id <= window[1])
    return _page(session, wanted, [*conditions, *edge, *_rest(wanted)], window)


def _states(column: ColumnElement[str] | Any, wanted: JobSearch) -> list[ColumnElement[bool]]:
    return [column == wanted.state] if wanted.state else []


def _rest(wanted: JobSearch) -> list[ColumnElement[bool]]:
    """Return the conditions that lead nowhere by themselves."""
    found: list[ColumnElement[bool]] = []
    if wanted.since:
        found.append(JobRow.created_at >= wanted.since)
    if wanted.until:
        found.append(JobRow.created_at < wanted.until)
    if wanted.text:
        found.append(func.lower(JobRow.failure).contains(wanted.text.lower(), autoescape=True))
    if wanted.ae_title:
        # no `exists`: PostgreSQL would make a join of it, which may begin with all instances
        came = select(InstanceRow.study_instance_uid).where(
            InstanceRow.study_instance_uid == JobRow.study_instance_uid,
            InstanceRow.calling_ae_title == wanted.ae_title,
        )
        found.append(came.limit(1).scalar_subquery().is_not(None))
    return found


def _page(
    session: Session, wanted: JobSearch, conditions: Sequence[ColumnElement[bool]], window: tuple[int, int, bool] | None
) -> FoundPage:
    upward = wanted.after is not None
    rows = _listed(session, wanted, conditions, upward)
    more, rows = len(rows) > wanted.limit, rows[: wanted.limit]
    jobs = tuple(reversed(rows)) if upward else tuple(rows)
    cut = window is not None and window[2]
    if not jobs:
        looked_to = window[0] if window is not None and cut and not upward else None
        return FoundPage((), looked_to, wanted.before if wanted.before and not upward else None, looked_to)
    is_first = (wanted.before is None and not upward) or (upward and not more)
    is_last = not upward and not more
    looked_to = window[0] if window is not None and cut and is_last else None
    older = looked_to if is_last else jobs[-1].job_id
    return FoundPage(jobs, older, None if is_first else jobs[0].job_id, looked_to)


def _listed(
    session: Session, wanted: JobSearch, conditions: Sequence[ColumnElement[bool]], upward: bool
) -> list[FoundJob]:
    statement = (
        select(JobRow, StudyRow.patient_id, StudyRow.accession_number)
        .join(StudyRow, StudyRow.study_instance_uid == JobRow.study_instance_uid)
        .where(*conditions)
        .order_by(JobRow.job_id if upward else JobRow.job_id.desc())
        .limit(wanted.limit + 1)
    )
    return [_found(row, patient, accession) for row, patient, accession in session.execute(statement)]


def _found(row: JobRow, patient_id: str, accession_number: str) -> FoundJob:
    return FoundJob(
        row.job_id, row.study_instance_uid, row.revision, row.state, row.outcome, row.priority, row.failure,
        row.attempts, row.created_at, row.updated_at, patient_id, accession_number,
    )  # fmt: skip


def _window(
    session: Session, wanted: JobSearch, conditions: Sequence[ColumnElement[bool]]
) -> tuple[int, int, bool] | None:
    """Return the first and the last of the jobs that are looked at, and whether there are more; None for no job."""
    upward = wanted.after is not None
    order = JobRow.job_id if upward else JobRow.job_id.desc()
    looked: Select[Any] = select(JobRow.job_id).where(*conditions).order_by(order).limit(LOOKED_AT)
    found = looked.subquery()
    first, last, count = session.execute(select(func.min(found.c.job_id), func.max(found.c.job_id), func.count())).one()
    return None if not count else (first, last, count == LOOKED_AT)


def _names(session: Session, who: str) -> ColumnElement[bool]:
    """Return the condition that a job is of what `who` names."""
    received = select(InstanceRow.study_instance_uid).where(InstanceRow.sop_instance_uid == who)
    referred = select(ReportReferenceRow.study_instance_uid).where(ReportReferenceRow.sop_instance_uid == who)
    studies = {who, *session.scalars(received), *session.scalars(referred)}
    leads = [
        _jobs_of(StudyRow.patient_id == who),
        _jobs_of(StudyRow.accession_number == who),
        select(JobRow.job_id).where(JobRow.study_instance_uid.in_(sorted(studies))),
        select(ResultRow.job_id).where(ResultRow.sop_instance_uid == who),
    ]
    if _NUMBER.fullmatch(who):
        leads.append(select(JobRow.job_id).where(JobRow.job_id == int(who)))
    return JobRow.job_id.in_(union(*leads))


def _jobs_of(condition: ColumnElement[bool]) -> Select[Any]:
    studies = select(StudyRow.study_instance_uid).where(condition)
    return select(JobRow.job_id).where(JobRow.study_instance_uid.in_(studies))


# ---- deliveries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundDispatch:
    """A delivery in the console's lists, with whose study it is of."""

    dispatch_id: int
    job_id: int
    destination: str
    state: str
    attempts: int
    failure: str | None
    due_at: datetime
    since: datetime
    updated_at: datetime
    patient_id: str
    accession_number: str


def search_dispatches(
    session: Session, state: str, destination: str = "", before: int | None = None, limit: int = 50
) -> tuple[FoundDispatch, ...]:
    """Return deliveries in a state, to one destination or any, of lower numbers than `before`, the latest first."""
    statement = (
        select(DispatchRow, StudyRow.patient_id, StudyRow.accession_number)
        .join(JobRow, JobRow.job_id == DispatchRow.job_id)
        .join(StudyRow, StudyRow.study_instance_uid == JobRow.study_instance_uid)
        .where(DispatchRow.state == state)
        .order_by(DispatchRow.dispatch_id.desc())
        .limit(limit)
    )
    if destination:
        statement = statement.where(DispatchRow.destination == destination)
    if before is not None:
        statement = statement.where(DispatchRow.dispatch_id < before)
    return tuple(
        FoundDispatch(
            row.dispatch_id, row.job_id, row.destination, row.state, row.attempts, row.failure, row.due_at, row.since,
            row.updated_at, patient_id, accession_number,
        )
        for row, patient_id, accession_number in session.execute(statement)
    )  # fmt: skip


# ---- from times to numbers -------------------------------------------------------------------------------------------


def _bounds(session: Session, wanted: JobSearch) -> tuple[int | None, int | None]:
    """Return the numbers that jobs are at least, and less than."""
    low = max(
        (edge for edge in (wanted.after and wanted.after + 1, _from(session, wanted.since)) if edge), default=None
    )
    high = min((edge for edge in (wanted.before, _until(session, wanted.until)) if edge), default=None)
    return low, high


def _from(session: Session, since: datetime | None) -> int | None:
    return None if since is None else max(1, first_job_at(session, since) - DISORDER)


def _until(session: Session, until: datetime | None) -> int | None:
    return None if until is None else first_job_at(session, until) + DISORDER


def first_job_at(session: Session, at: datetime) -> int:
    """Return the number of the first job that was made then or later, or the one after the last: by bisection, since
    jobs are numbered as they are made."""
    low, high = 1, (session.scalar(select(func.max(JobRow.job_id))) or 0) + 1
    while low < high:
        middle = (low + high) // 2
        found = session.execute(
            select(JobRow.job_id, JobRow.created_at)
            .where(JobRow.job_id >= middle, JobRow.job_id < high)
            .order_by(JobRow.job_id)
            .limit(1)
        ).one_or_none()
        if found is None or found.created_at >= at:
            high = middle
        else:
            low = found.job_id + 1
    return low
