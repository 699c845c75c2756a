"""What operators change: by the functions that the command line calls, each in one transaction with its audit event.

Nothing is rung: the rows are due at once, and the scheduler rings for them within a second.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from dicom_node.console.site import RefusedError, Site
from dicom_node.console.visitors import Visitor
from dicom_node.errors import NodeError
from dicom_node.queries import (
    Author,
    Change,
    JobFilter,
    JobSummary,
    cancel_job,
    change_audited,
    list_jobs,
    reground_job,
    replay_dispatch,
    resend_job,
    retry_job,
)

CHANGES: dict[str, tuple[Change, str]] = {
    "retry": (retry_job, "retried job {}"),
    "cancel": (cancel_job, "cancelled job {}"),
    "reground": (reground_job, "regrounded job {}"),
    "replay": (replay_dispatch, "replayed delivery {}"),
}
"""What each does, and what the audit trail says of it."""


def change(here: Site, visitor: Visitor, what: str, number: int) -> str:
    """Change a job or a delivery; return its study. Raises RefusedError (409) where that is not possible."""
    return _apply(here, visitor, *CHANGES[what], number)


def change_each(here: Site, visitor: Visitor, what: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Change several, each for itself; return which were changed, and why the others were not."""
    changed: list[int] = []
    refused: list[dict[str, Any]] = []
    for number in dict.fromkeys(numbers):
        try:
            change(here, visitor, what, number)
            changed.append(number)
        except RefusedError as error:
            refused.append({"id": number, "error": str(error)})
    return {"changed": changed, "refused": refused}


def resend(here: Site, visitor: Visitor, job_id: int, destination: str | None) -> str:
    """Send a job's results again; return its study. Raises RefusedError where that is not possible."""
    names = [one.name for one in here.settings.destinations]
    if destination is not None and destination not in names:
        raise RefusedError(409, f"there is no such destination; the configuration has {', '.join(names) or 'none'}")
    where = f"to {destination}" if destination else "to every destination"
    send = functools.partial(resend_job, destination=destination)
    return _apply(here, visitor, send, f"resent job {{}} {where}", job_id)


def current_job(here: Site, study: str) -> JobSummary:
    """Return the job of a study's latest revision."""
    with here.sessions() as session:
        return list_jobs(session, JobFilter(study=study, limit=1))[0]


def _apply(here: Site, visitor: Visitor, wanted: Change, reason: str, number: int) -> str:
    author = Author(visitor.name, "console", visitor.address)
    try:
        with here.sessions.begin() as session:
            return change_audited(session, wanted, number, author, reason, here.clock())
    except NodeError as error:
        raise RefusedError(409, str(error)) from error
