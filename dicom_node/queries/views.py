"""What people ask of the job database: lists, and one job in full."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from dicom_node.delivery import OPEN_DISPATCHES, DispatchState
from dicom_node.queries.dispatches import load_deliveries
from dicom_node.queries.hints import unindexed
from dicom_node.queries.outcomes import TAKEN, instance_rows, load_results
from dicom_node.study import State
from dicom_node.tables import (
    ConflictRow,
    DispatchRow,
    EventRow,
    FindingRow,
    InstanceRow,
    JobRow,
    StudyRow,
)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; None means any. `since`: changed then or later."""

    state: str | None = None
    study: str | None = None
    patient: str | None = None
    accession: str | None = None
    since: datetime | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job in a list."""

    job_id: int
    study_instance_uid: str
    revision: int
    state: str
    outcome: str | None
    priority: str
    failure: str | None
    attempts: int
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the job as `jobs list --json` prints it; instants as ISO 8601 in UTC."""
        return {key: _instant(value) if isinstance(value, datetime) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class JobDetail:
    """A job with everything that is known of it; all but `summary` are JSON values."""

    summary: JobSummary
    timeline: tuple[dict[str, Any], ...]
    timings: dict[str, float]
    instances: tuple[dict[str, Any], ...]
    conflicts: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    report: dict[str, Any] | None
    model: dict[str, Any] | None
    findings: tuple[dict[str, Any], ...]
    results: tuple[dict[str, Any], ...]
    deliveries: tuple[dict[str, Any], ...]
    dispatches: tuple[dict[str, Any], ...]
    """The way of all results to each destination: state, tries, when it is tried again, why it failed."""
    revisions: tuple[dict[str, Any], ...]
    """Every revision of the study, the first one first, with what archives hold of it."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as `jobs show --json` prints it."""
        return self.summary.to_json() | {
            "timeline": list(self.timeline),
            "timings": self.timings,
            "instances": list(self.instances),
            "conflicts": list(self.conflicts),
            "warnings": list(self.warnings),
            "report": self.report,
            "model": self.model,
            "findings": list(self.findings),
            "results": list(self.results),
            "deliveries": list(self.deliveries),
            "dispatches": list(self.dispatches),
            "revisions": list(self.revisions),
        }


def list_jobs(session: Session, wanted: JobFilter) -> tuple[JobSummary, ...]:
    """Return the jobs that fit, the latest first."""
    if wanted.study is not None or wanted.patient is not None or wanted.accession is not None:
        return _listed(session, _of_study(wanted))
    statement = _latest(wanted.limit)
    if wanted.state is not None:
        statement = statement.where(JobRow.state == wanted.state)
    found = _listed(session, statement)
    if wanted.since is None or all(job.updated_at >= wanted.since for job in found):
        return found
    return _listed(session, _changed(wanted, wanted.since))


def _listed(session: Session, statement: Select[Any]) -> tuple[JobSummary, ...]:
    return tuple(map(_summary, session.scalars(statement)))


def _latest(limit: int) -> Select[Any]:
    return select(JobRow).order_by(JobRow.job_id.desc()).limit(limit)


def _of_study(wanted: JobFilter) -> Select[Any]:
    """Return the jobs of a study, a patient or an order: few, so that nothing else is to lead to them."""
    statement = _latest(wanted.limit)
    if wanted.patient is not None or wanted.accession is not None:
        statement = statement.join(StudyRow, StudyRow.study_instance_uid == JobRow.study_instance_uid)
    conditions = (
        (wanted.study, JobRow.study_instance_uid == wanted.study),
        (wanted.patient, StudyRow.patient_id == wanted.patient),
        (wanted.accession, StudyRow.accession_number == wanted.accession),
        (wanted.state, unindexed(JobRow.state) == wanted.state),
    )
    statement = statement.where(*(condition for value, condition in conditions if value is not None))
    return statement if wanted.since is None else statement.where(JobRow.updated_at >= wanted.since)


def _changed(wanted: JobFilter, since: datetime) -> Select[Any]:
    """Return the jobs that changed since then, where fewer than the limit are younger: older ones changed, too.

    How many of all that is, is known to no engine; they are looked up by their change, and sorted.
    """
    states = get_args(State) if wanted.state is None else (wanted.state,)
    return (
        select(JobRow)
        .where(JobRow.state.in_(states), JobRow.updated_at >= since)
        .order_by((JobRow.job_id + 0).desc())
        .limit(wanted.limit)
    )


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """Whose study it is, and which of its revisions is the current one."""

    patient_id: str
    accession_number: str
    revision: int


def show_study(session: Session, study_instance_uid: str) -> StudyFacts | None:
    """Return what is known of a study, or None if there is none."""
    row = session.get(StudyRow, study_instance_uid)
    return StudyFacts(row.patient_id, row.accession_number, row.revision) if row else None


def find_job(session: Session, job_id: int) -> JobSummary | None:
    """Return a job as it is in a list, or None if there is none of this number."""
    job = session.get(JobRow, job_id)
    return None if job is None else _summary(job)


def show_job(session: Session, job_id: int) -> JobDetail | None:
    """Return a job in full, or None if there is none of this number."""
    job = session.get(JobRow, job_id)
    if job is None:
        return None
    selection = job.selection or {}
    return JobDetail(
        summary=_summary(job),
        timeline=tuple(_timeline(session, job)),
        timings=dict(job.timings),
        instances=tuple(_instances(session, job, selection.get("why", {}))),
        conflicts=tuple(_conflicts(session, job)),
        warnings=tuple(selection.get("warnings", [])),
        report={"sop_instance_uid": selection["report"]} if selection else None,
        model=job.model,
        findings=tuple(_findings(session, job, selection.get("images", []))),
        results=tuple(
            {
                "part": result.part,
                "sop_class": result.sop_class_uid,
                "sop_instance_uid": result.sop_instance_uid,
                "series_instance_uid": result.series_instance_uid,
                "storage_key": result.key,
            }
            for result in load_results(session, job_id)
        ),
        deliveries=tuple(asdict(delivery) for delivery in load_deliveries(session, job_id)),
        dispatches=tuple(_dispatches(session, job_id)),
        revisions=tuple(_revisions(session, job.study_instance_uid)),
    )


@dataclass(frozen=True, slots=True)
class DispatchFilter:
    """Which dispatches to list; None means any."""

    state: str | None = None
    destination: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class DispatchSummary:
    """A dispatch in a list."""

    dispatch_id: int
    job_id: int
    study_instance_uid: str
    destination: str
    state: str
    attempts: int
    failure: str | None
    again_at: datetime | None
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return it as `deliveries list --json` prints it; instants as ISO 8601 in UTC."""
        return {key: _instant(value) if isinstance(value, datetime) else value for key, value in asdict(self).items()}


def list_dispatches(session: Session, wanted: DispatchFilter) -> tuple[DispatchSummary, ...]:
    """Return the dispatches that fit, the latest first."""
    if wanted.destination is None:
        return _dispatches_in(session, wanted)
    states = get_args(DispatchState) if wanted.state is None else (wanted.state,)
    latest = [one for state in states for one in _dispatches_in(session, replace(wanted, state=state))]
    return tuple(sorted(latest, key=lambda one: one.dispatch_id, reverse=True)[: wanted.limit])


def _dispatches_in(session: Session, wanted: DispatchFilter) -> tuple[DispatchSummary, ...]:
    """Return the dispatches in a state, of any or one destination; or any."""
    statement = (
        select(DispatchRow, JobRow.study_instance_uid)
        .join(JobRow, JobRow.job_id == DispatchRow.job_id)
        .order_by(DispatchRow.dispatch_id.desc())
        .limit(wanted.limit)
    )
    if wanted.state is not None:
        statement = statement.where(DispatchRow.state == wanted.state)
    if wanted.destination is not None:
        statement = statement.where(DispatchRow.destination == wanted.destination)
    return tuple(_dispatch_summary(row, study) for row, study in session.execute(statement))


def find_dispatch(session: Session, dispatch_id: int) -> DispatchSummary | None:
    """Return a dispatch, or None if there is none of this number."""
    row = session.get(DispatchRow, dispatch_id)
    return None if row is None else _dispatch_summary(row, session.get_one(JobRow, row.job_id).study_instance_uid)


def _dispatch_summary(row: DispatchRow, study: str) -> DispatchSummary:
    return DispatchSummary(
        row.dispatch_id, row.job_id, study, row.destination, row.state, row.attempts, row.failure,
        row.due_at if row.state in OPEN_DISPATCHES else None, row.updated_at,
    )  # fmt: skip


def _summary(row: JobRow) -> JobSummary:
    return JobSummary(
        job_id=row.job_id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        state=row.state,
        outcome=row.outcome,
        priority=row.priority,
        failure=row.failure,
        attempts=row.attempts,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _timeline(session: Session, job: JobRow) -> Iterable[dict[str, Any]]:
    """Return the events of the job, and those of its study that belong to no job."""
    statement = (
        select(EventRow)
        .where(
            EventRow.study_instance_uid == job.study_instance_uid,
            (EventRow.job_id == job.job_id) | EventRow.job_id.is_(None),
        )
        .order_by(EventRow.at, EventRow.id)
    )
    for event in session.scalars(statement):
        yield {"at": _instant(event.at), "event": event.event, "detail": event.detail}


def _instances(session: Session, job: JobRow, why: dict[str, str]) -> Iterable[dict[str, Any]]:
    """Return the study's instances up to the job's revision, with what became of each in this job."""
    for row, revision in instance_rows(session, job.study_instance_uid):
        if revision > job.revision:
            continue
        yield {
            "sop_class_uid": row.sop_class_uid,
            "sop_instance_uid": row.sop_instance_uid,
            "series_instance_uid": row.series_instance_uid,
            "transfer_syntax_uid": row.transfer_syntax_uid,
            "modality": row.modality,
            "revision": revision,
            "calling_ae_title": row.calling_ae_title,
            "received_at": _instant(row.received_at),
            "size_bytes": row.size_bytes,
            "storage_key": row.storage_key,
            "use": why.get(row.sop_instance_uid),
        }


def _dispatches(session: Session, job_id: int) -> Iterable[dict[str, Any]]:
    statement = select(DispatchRow).where(DispatchRow.job_id == job_id).order_by(DispatchRow.destination)
    for row in session.scalars(statement):
        open_ = row.state in OPEN_DISPATCHES
        yield {
            "dispatch_id": row.dispatch_id,
            "destination": row.destination,
            "state": row.state,
            "attempts": row.attempts,
            "again_at": _instant(row.due_at) if open_ else None,
            "failure": row.failure,
        }


def _revisions(session: Session, study_instance_uid: str) -> Iterable[dict[str, Any]]:
    """Return the jobs of a study, each with its results that an archive took; a later SR names the one it replaces."""
    jobs = select(JobRow).where(JobRow.study_instance_uid == study_instance_uid).order_by(JobRow.revision)
    for row in session.scalars(jobs):
        delivered = [one for one in load_deliveries(session, row.job_id) if one.state in TAKEN]
        yield {
            "job_id": row.job_id,
            "revision": row.revision,
            "state": row.state,
            "outcome": row.outcome,
            "delivered": [
                {"destination": one.destination, "part": one.part, "sop_instance_uid": one.sop_instance_uid}
                for one in delivered
            ],
        }


def _conflicts(session: Session, job: JobRow) -> Iterable[dict[str, Any]]:
    statement = (
        select(ConflictRow)
        .join(InstanceRow, InstanceRow.sop_instance_uid == ConflictRow.sop_instance_uid)
        .where(InstanceRow.study_instance_uid == job.study_instance_uid)
        .order_by(ConflictRow.id)
    )
    for row in session.scalars(statement):
        yield {
            "sop_instance_uid": row.sop_instance_uid,
            "sha256": row.sha256,
            "storage_key": row.storage_key,
            "calling_ae_title": row.calling_ae_title,
            "received_at": _instant(row.received_at),
        }


def _findings(session: Session, job: JobRow, images: list[str]) -> Iterable[dict[str, Any]]:
    """Return the findings as findings.json has them, and the SOP Instance UID of the image of each.

    Without `laterality_conflict` of the boxes: the job's warnings say that.
    """
    statement = select(FindingRow).where(FindingRow.job_id == job.job_id).order_by(FindingRow.number)
    for row in session.scalars(statement):
        source = None if row.source_start is None else {"start": row.source_start, "end": row.source_end}
        yield {
            "phrase": row.phrase,
            "source": source,
            "image": images.index(row.sop_instance_uid) if row.sop_instance_uid in images else None,
            "sop_instance_uid": row.sop_instance_uid,
            "boxes": row.boxes,
            "localized": row.localized,
            "negated": row.negated,
            "finding": row.finding,
            "site": row.site,
            "uncertainty": row.uncertainty,
        }


def _instant(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds")
