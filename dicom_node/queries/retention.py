"""The retention rule: which inputs may be removed, and that they were; never any that is not delivered."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from sqlalchemy import ColumnElement, exists, select, tuple_
from sqlalchemy.orm import Session, aliased

from dicom_node.queries.hints import unindexed
from dicom_node.queries.jobs import add_event
from dicom_node.study import WORKING_STATES
from dicom_node.tables import DeliveryRow, InstanceRow, JobRow, ReportReferenceRow, StudyRow

CONFIRMED = ("commitment", "query")
"""Confirmations that an archive gave by itself; a C-STORE response alone frees nothing."""


Kept = tuple[datetime, str]
"""Where a look at what is kept has come to: when an instance was received, and its study."""


def kept_studies(session: Session, received_before: datetime, after: Kept | None, limit: int) -> tuple[Kept, ...]:
    """Return studies of which bytes are kept that were received before that instant, in the order of arrival: `limit`
    instances' worth after those returned last."""
    key = tuple_(InstanceRow.received_at, InstanceRow.study_instance_uid)
    statement = (
        select(InstanceRow.received_at, InstanceRow.study_instance_uid)
        .where(InstanceRow.removed_at.is_(None), InstanceRow.received_at < received_before)
        .order_by(InstanceRow.received_at, InstanceRow.study_instance_uid)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(InstanceRow.received_at >= after[0], key > after)
    return tuple((at, study) for at, study in session.execute(statement))


def removable_studies(session: Session, delivered_before: datetime, among: Collection[str]) -> tuple[str, ...]:
    """Return those of the studies of which no bytes are needed any more.

    The job of the current revision was DELIVERED before that instant, every part of it with a confirmation; none of the
    study's jobs is under way; nothing came since; no other study waits for a report of this one; something is still
    there to be removed.
    """
    job, other = JobRow, aliased(JobRow)
    kept = exists().where(
        InstanceRow.study_instance_uid == StudyRow.study_instance_uid, InstanceRow.removed_at.is_(None)
    )
    later = exists().where(
        InstanceRow.study_instance_uid == StudyRow.study_instance_uid, InstanceRow.received_at >= delivered_before
    )
    under_way = exists().where(
        other.study_instance_uid == StudyRow.study_instance_uid,
        unindexed(other.state).in_(("RECEIVING", *WORKING_STATES)),
    )
    sent = exists().where(DeliveryRow.job_id == job.job_id)
    unconfirmed = exists().where(
        DeliveryRow.job_id == job.job_id,
        (DeliveryRow.state != "DELIVERED")
        | DeliveryRow.confirmed_by.is_(None)
        | DeliveryRow.confirmed_by.not_in(CONFIRMED),
    )
    statement = (
        select(StudyRow.study_instance_uid)
        .join(job, (job.study_instance_uid == StudyRow.study_instance_uid) & (job.revision == StudyRow.revision))
        .where(StudyRow.study_instance_uid.in_(among))
        .where(unindexed(job.state) == "DELIVERED", job.step_since < delivered_before)
        .where(kept, ~later, ~under_way, sent, ~unconfirmed, ~_is_waited_for())
        .order_by(job.step_since, StudyRow.study_instance_uid)
    )
    return tuple(session.scalars(statement))


def _is_waited_for() -> ColumnElement[bool]:
    """Say in SQL that a report of the study is about another one that is not here yet, or not delivered."""
    other = aliased(StudyRow)
    delivered = (
        exists()
        .where(other.study_instance_uid == ReportReferenceRow.study_instance_uid)
        .where(JobRow.study_instance_uid == other.study_instance_uid, JobRow.revision == other.revision)
        .where(JobRow.state == "DELIVERED")
        .correlate(ReportReferenceRow)
    )
    return exists().where(
        InstanceRow.study_instance_uid == StudyRow.study_instance_uid,
        ReportReferenceRow.sop_instance_uid == InstanceRow.sop_instance_uid,
        ~delivered,
    )


def remove_inputs(
    session: Session, study_instance_uid: str, delivered_before: datetime, remove: Callable[[str], bool], now: datetime
) -> int:
    """Remove the received bytes of a study that may still be removed, and note it; return how many instances.

    `remove` is called with each storage key, and tells whether it could be removed, while the study's row is locked: an
    instance that is sent again meanwhile waits for the end of this transaction, and is then found missing or kept anew.
    """
    locked = select(StudyRow).where(StudyRow.study_instance_uid == study_instance_uid).with_for_update(key_share=True)
    study = session.scalar(locked)
    if study is None or not removable_studies(session, delivered_before, [study_instance_uid]):
        return 0
    rows = session.scalars(
        select(InstanceRow).where(
            InstanceRow.study_instance_uid == study_instance_uid, InstanceRow.removed_at.is_(None)
        )
    ).all()
    removed = [row for row in rows if remove(row.storage_key)]
    for row in removed:
        row.removed_at = now
    if not removed:
        return 0
    job_id = session.scalar(
        select(JobRow.job_id).where(JobRow.study_instance_uid == study_instance_uid, JobRow.revision == study.revision)
    )
    assert job_id is not None
    add_event(
        session, (study_instance_uid, job_id), now, "inputs removed", f"{len(removed)} instances, by the retention rule"
    )
    return len(removed)
