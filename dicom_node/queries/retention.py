"""The retention rule: which inputs may be removed, and that they were; never any that is not delivered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from dicom_node.queries.jobs import add_event
from dicom_node.tables import DeliveryRow, InstanceRow, JobRow, StudyRow

CONFIRMED = ("commitment", "query")
"""Confirmations that an archive gave by itself; a C-STORE response alone frees nothing."""


def removable_studies(
    session: Session, delivered_before: datetime, limit: int, only: str | None = None
) -> tuple[str, ...]:
    """Return studies of which no bytes are needed any more.

    The job of the current revision was DELIVERED before that instant, every part of it with a confirmation; none of the
    study's jobs is under way; nothing came since; something is still there to be removed.
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
        other.state.in_(("RECEIVING", "COMPLETE", "GROUNDED", "WRITTEN")),
    )
    sent = exists().where(DeliveryRow.job_id == job.job_id)
    unconfirmed = exists().where(
        DeliveryRow.job_id == job.job_id,
        (DeliveryRow.state != "DELIVERED") | DeliveryRow.confirmed_by.not_in(CONFIRMED),
    )
    statement = (
        select(StudyRow.study_instance_uid)
        .join(job, (job.study_instance_uid == StudyRow.study_instance_uid) & (job.revision == StudyRow.revision))
        .where(job.state == "DELIVERED", job.step_since < delivered_before)
        .where(kept, ~later, ~under_way, sent, ~unconfirmed)
        .order_by(job.step_since)
        .limit(limit)
    )
    if only is not None:
        statement = statement.where(StudyRow.study_instance_uid == only)
    return tuple(session.scalars(statement))


def remove_inputs(
    session: Session, study_instance_uid: str, delivered_before: datetime, remove: Callable[[str], None], now: datetime
) -> int:
    """Remove the received bytes of a study that may still be removed, and note it; return how many instances.

    `remove` is called with each storage key while the study's row is locked: an instance that is sent again meanwhile
    waits for the end of this transaction, and is then found missing or kept anew.
    """
    locked = select(StudyRow).where(StudyRow.study_instance_uid == study_instance_uid).with_for_update()
    study = session.scalar(locked)
    if study is None or not removable_studies(session, delivered_before, 1, study_instance_uid):
        return 0
    rows = session.scalars(
        select(InstanceRow).where(
            InstanceRow.study_instance_uid == study_instance_uid, InstanceRow.removed_at.is_(None)
        )
    ).all()
    for row in rows:
        remove(row.storage_key)
        row.removed_at = now
    job_id = session.scalar(
        select(JobRow.job_id).where(JobRow.study_instance_uid == study_instance_uid, JobRow.revision == study.revision)
    )
    assert job_id is not None
    add_event(
        session, (study_instance_uid, job_id), now, "inputs removed", f"{len(rows)} instances, by the retention rule"
    )
    return len(rows)
