"""A look at a study: it is noted in the audit trail first, and refused where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fastapi import Request
from sqlalchemy.orm import Session

from dicom_node.audit import AuditEvent
from dicom_node.console.site import RefusedError, Site
from dicom_node.console.visitors import Visitor
from dicom_node.logs import log_event
from dicom_node.queries import DATABASE_ERRORS, JobDetail, about_study, note_audit, show_job

logger = logging.getLogger(__name__)

UNAUDITED = (
    "the access cannot be noted in the audit trail, and is not granted without: the database takes no writes now (it "
    "is read-only, full, locked or away)"
)


def look_at_job(request: Request, site: Site, visitor: Visitor, job_id: int) -> JobDetail:
    """Return a job in full, the look at it audited. Raises RefusedError if there is none, or it cannot be audited.

    A HEAD request shows nobody anything, and is not audited.
    """
    with site.sessions() as session:
        job = show_job(session, job_id)
    if job is None:
        raise RefusedError(404, f"there is no job {job_id}")
    if not request.scope.get("is_head"):
        note_look(site, visitor, job.summary.study_instance_uid, f"job {job_id}")
    return job


def note_look(site: Site, visitor: Visitor, study_instance_uid: str, what: str) -> None:
    """Note in the audit trail that a visitor is shown `what` of a study. Raises RefusedError if it cannot be."""
    with _noting(site) as session:
        event = about_study(session, "study accessed", study_instance_uid)
        event = replace(event, actor=visitor.name, actor_address=visitor.address, reason=what)
        note_audit(session, event, "console", site.clock())


def note_trail_read(site: Site, visitor: Visitor) -> None:
    """Note in the audit trail that it is read. Raises RefusedError if it cannot be."""
    with _noting(site) as session:
        event = AuditEvent("audit trail read", actor=visitor.name, actor_address=visitor.address)
        note_audit(session, event, "console", site.clock())


@contextmanager
def _noting(site: Site) -> Iterator[Session]:
    try:
        with site.sessions.begin() as session:
            yield session
    except DATABASE_ERRORS as error:
        log_event(logger, "access not audited", level=logging.ERROR, error=type(error).__name__)
        raise RefusedError(503, UNAUDITED) from None
