"""Filing an instance in one transaction: its row, its study, and the job of the study's revision.

Insert-or-ignore, then conditional updates: two instances of a new study that arrive at once must both be filed. The
study's row is locked first, so that the instances of one study are filed one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.instance import Instance
from dicom_node.selection import add_referred
from dicom_node.storage import StoredFile
from dicom_node.study import WORKING_STATES, look_again_at
from dicom_node.tables import (
    Base,
    ConflictRow,
    DispatchRow,
    EventRow,
    InstanceRow,
    JobRow,
    ReportReferenceRow,
    ResultRow,
    StudyRow,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an instance.

    "new"; "repeat": held already with the same bytes; "conflict": held already with other bytes, which are kept aside;
    "own": a result of the node itself, of which no row was made. `job_id` is the job it belongs to, if it opened or
    prolonged one; `revision` the revision of the study that it belongs to (0 for "own").
    """

    kind: Literal["new", "repeat", "conflict", "own"]
    job_id: int | None = None
    revision: int = 0


def record_instance(
    session: Session,
    instance: Instance,
    stored: StoredFile,
    calling_ae_title: str,
    now: datetime,
    quiet_period: timedelta,
) -> Recorded:
    """File `instance`, whose bytes are `stored` already.

    An image or a report opens the study's job or prolongs its quiet period; after the job has left RECEIVING it opens
    the next revision and cancels what was under way of the one before. Other objects are filed and open nothing.
    A report that names images of other studies alone does the same to those of them that have no report of their own.
    """
    if instance.is_own_result or _is_result(session, instance.sop_instance_uid):
        return Recorded("own")
    studies = _lock_studies(session, instance, now)
    study = studies[instance.study_instance_uid]
    if not _insert_instance(session, instance, stored, (calling_ae_title, now, study.revision)):
        return _note_repeat(session, instance, stored, calling_ae_title, now)
    if instance.role == "other":
        _add_event(session, instance, None, now, "instance filed", f"{instance.modality}, not to be grounded")
        return Recorded("new", None, study.revision)
    job_id, revision = _take_up(session, study, now, quiet_period)
    if revision != study.revision:
        session.execute(
            update(InstanceRow)
            .where(InstanceRow.sop_instance_uid == instance.sop_instance_uid)
            .values(revision=revision)
        )
    _add_event(session, instance, job_id, now, "instance filed", f"{instance.modality} from {calling_ae_title}")
    for uid in sorted(instance.evidence_studies) if instance.role == "report" else ():
        _refer(session, instance, uid, studies.get(uid), now, quiet_period)
    return Recorded("new", job_id, revision)


@dataclass(frozen=True, slots=True)
class _Study:
    """A study's row, locked until the end of the transaction."""

    study_instance_uid: str
    revision: int


def _is_result(session: Session, sop_instance_uid: str) -> bool:
    statement = select(ResultRow.sop_instance_uid).where(ResultRow.sop_instance_uid == sop_instance_uid)
    return session.scalar(statement) is not None


def _take_up(session: Session, study: _Study, now: datetime, quiet_period: timedelta) -> tuple[int, int]:
    """Prolong the study's job or open one; return it and its revision."""
    return _prolong_job(session, study, now, quiet_period) or _open_job(session, study, now, quiet_period)


def _refer(
    session: Session, report: Instance, uid: str, study: _Study | None, now: datetime, quiet_period: timedelta
) -> None:
    """Link a report to a study that it names, and take that one up if the report counts for it as it is now.

    The link stays in any case: the images may come, or be corrected, later.
    """
    revision = study.revision if study is not None else 1
    if study is not None and report in add_referred(_instances_in(session, uid), [report]):
        job_id, revision = _take_up(session, study, now, quiet_period)
        detail = f"a report in study {report.study_instance_uid} is about this one: {report.sop_instance_uid}"
        session.add(EventRow(study_instance_uid=uid, job_id=job_id, at=now, event="report referred", detail=detail))
    insert_or_ignore(
        session,
        ReportReferenceRow,
        sop_instance_uid=report.sop_instance_uid,
        study_instance_uid=uid,
        revision=revision,
    )


def _instances_in(session: Session, study_instance_uid: str) -> list[Instance]:
    statement = select(InstanceRow.facts).where(InstanceRow.study_instance_uid == study_instance_uid)
    return [Instance.from_facts(facts) for facts in session.scalars(statement)]


def _lock_studies(session: Session, instance: Instance, now: datetime) -> dict[str, _Study]:
    """Lock the study of an instance, which is made if need be, and those known ones that it is about.

    In one order of their UIDs, whoever asks: two reports about each other's studies do not wait for one another.
    """
    uid = instance.study_instance_uid
    insert_or_ignore(
        session,
        StudyRow,
        study_instance_uid=uid,
        revision=1,
        patient_id=instance.patient_id[:64],
        accession_number=instance.accession_number[:64],
        created_at=now,
    )
    # key_share: rows that only refer to the study (events of the workers) need not wait for this transaction
    locked = (
        select(StudyRow.study_instance_uid, StudyRow.revision)
        .where(StudyRow.study_instance_uid.in_({uid, *instance.evidence_studies}))
        .order_by(StudyRow.study_instance_uid)
        .with_for_update(key_share=True)
    )
    studies = {row.study_instance_uid: _Study(row.study_instance_uid, row.revision) for row in session.execute(locked)}
    _fill_in(session, uid, StudyRow.patient_id, instance.patient_id)
    _fill_in(session, uid, StudyRow.accession_number, instance.accession_number)
    return studies


def _fill_in(session: Session, study_instance_uid: str, column: Any, value: str) -> None:
    """Set a text of the study that no instance has given so far."""
    if value:
        is_empty: ColumnElement[bool] = column == ""
        session.execute(
            update(StudyRow)
            .where(StudyRow.study_instance_uid == study_instance_uid, is_empty)
            .values({column: value[:64]})
        )


def _insert_instance(
    session: Session, instance: Instance, stored: StoredFile, arrival: tuple[str, datetime, int]
) -> bool:
    """Insert the row, with calling AE title, instant and revision; False if there is one with this UID."""
    calling_ae_title, now, revision = arrival
    return insert_or_ignore(
        session,
        InstanceRow,
        sop_instance_uid=instance.sop_instance_uid,
        study_instance_uid=instance.study_instance_uid,
        series_instance_uid=instance.series_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        modality=instance.modality[:16],
        revision=revision,
        storage_key=stored.key,
        sha256=stored.sha256,
        size_bytes=stored.size,
        calling_ae_title=calling_ae_title[:16],
        received_at=now,
        facts=instance.facts(),
    )


def _note_repeat(
    session: Session, instance: Instance, stored: StoredFile, calling_ae_title: str, now: datetime
) -> Recorded:
    statement = select(InstanceRow).where(InstanceRow.sop_instance_uid == instance.sop_instance_uid)
    held = session.scalars(statement).one()
    if held.sha256 == stored.sha256:
        held.storage_key = stored.key
        if held.removed_at is not None:  # by the retention rule, which begins to count anew
            held.removed_at, held.received_at = None, now
            _add_event(session, instance, None, now, "instance filed again", "its bytes had been removed")
        return Recorded("repeat", None, held.revision)
    is_new = insert_or_ignore(
        session,
        ConflictRow,
        sop_instance_uid=held.sop_instance_uid,
        sha256=stored.sha256,
        storage_key=stored.key,
        calling_ae_title=calling_ae_title[:16],
        received_at=now,
    )
    if is_new:
        detail = f"{held.sop_instance_uid} came with other bytes from {calling_ae_title}; they are kept aside"
        row = EventRow(study_instance_uid=held.study_instance_uid, at=now, event="conflict", detail=detail)
        session.add(row)
    return Recorded("conflict", None, held.revision)


def _prolong_job(session: Session, study: _Study, now: datetime, quiet_period: timedelta) -> tuple[int, int] | None:
    """Start the quiet period of the study's job anew; None if it has no job in RECEIVING."""
    is_open = (
        JobRow.study_instance_uid == study.study_instance_uid,
        JobRow.revision == study.revision,
        JobRow.state == "RECEIVING",
    )
    first_instance_at = session.scalar(select(JobRow.first_instance_at).where(*is_open))
    if first_instance_at is None:
        return None
    # conditional again: the scheduler may have closed the job in between
    job_id = session.scalar(
        update(JobRow)
        .where(*is_open)
        .values(last_instance_at=now, due_at=look_again_at(first_instance_at, now, quiet_period), updated_at=now)
        .returning(JobRow.job_id)
    )
    return None if job_id is None else (job_id, study.revision)


def _open_job(session: Session, study: _Study, now: datetime, quiet_period: timedelta) -> tuple[int, int]:
    """Open the study's first job, or the job of its next revision."""
    older = session.scalar(
        select(func.count()).select_from(JobRow).where(JobRow.study_instance_uid == study.study_instance_uid)
    )
    revision = study.revision + 1 if older else study.revision
    if older:
        _supersede_jobs(session, study, revision, now)
    job = JobRow(
        study_instance_uid=study.study_instance_uid,
        revision=revision,
        state="RECEIVING",
        first_instance_at=now,
        last_instance_at=now,
        step_since=now,
        due_at=look_again_at(now, now, quiet_period),
        created_at=now,
        updated_at=now,
    )
    session.add(job)
    session.flush()
    return job.job_id, revision


def _supersede_jobs(session: Session, study: _Study, revision: int, now: datetime) -> None:
    """Make `revision` the current one, and cancel what is under way of those before.

    Nothing of a cancelled job begins any more; a worker that is in the middle of a step of it keeps its lease, and
    `queries.claim` lets nobody write or deliver a newer revision before that lease is over: an archive never gets an
    older revision after a newer one, and the newer one names what was delivered as its predecessor.
    """
    uid = study.study_instance_uid
    session.execute(update(StudyRow).where(StudyRow.study_instance_uid == uid).values(revision=revision))
    reason = f"superseded by revision {revision}, which holds an image or a report that came later: see its job"
    cancelled = session.scalars(
        update(JobRow)
        .where(JobRow.study_instance_uid == uid, JobRow.state.in_(WORKING_STATES))
        .values(state="CANCELLED", outcome=None, failure=reason, step_since=now, updated_at=now)
        .returning(JobRow.job_id)
    ).all()
    session.execute(  # what an archive took of it stays noted with its deliveries
        update(DispatchRow)
        .where(DispatchRow.job_id.in_(cancelled), DispatchRow.state.in_(OPEN_DISPATCHES))
        .values(state="CANCELLED", updated_at=now)
    )
    for job_id in cancelled:
        session.add(EventRow(study_instance_uid=uid, job_id=job_id, at=now, event="job cancelled", detail=reason))


def _add_event(
    session: Session, instance: Instance, job_id: int | None, now: datetime, event: str, detail: str
) -> None:
    session.add(
        EventRow(
            study_instance_uid=instance.study_instance_uid,
            job_id=job_id,
            at=now,
            event=event,
            detail=f"{detail}: {instance.sop_instance_uid}",
        )
    )


def insert_or_ignore(session: Session, row: type[Base], **values: Any) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted."""
    table = row.__table__
    assert isinstance(table, Table)
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return session.execute(statement).first() is not None
