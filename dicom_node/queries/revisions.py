"""Taking studies up: the quiet period of their job starts anew, or their first or next revision gets its job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.queries.direct import KeyedQuestion, fetch, write
from dicom_node.queries.hints import unindexed
from dicom_node.queries.inserting import table_of
from dicom_node.study import WORKING_STATES, look_again_at
from dicom_node.tables import DispatchRow, EventRow, JobRow, StudyRow


@dataclass(frozen=True, slots=True)
class LockedStudy:
    """A study's row, locked until the end of the transaction; `is_new`: made in it, and without a job so far."""

    study_instance_uid: str
    revision: int
    is_new: bool = False


Studies = dict[str, LockedStudy]


_TABLE = table_of(JobRow)
_JOBS = KeyedQuestion(
    select(_TABLE.c.job_id, _TABLE.c.study_instance_uid, _TABLE.c.revision, _TABLE.c.state, _TABLE.c.first_instance_at),
    _TABLE.c.study_instance_uid,
)

# conditional: the scheduler may have closed the job since it was looked at
_PROLONG = (
    update(_TABLE)
    .where(_TABLE.c.job_id == bindparam("prolonged"), _TABLE.c.state == "RECEIVING")
    .values(last_instance_at=bindparam("now"), due_at=bindparam("due"), updated_at=bindparam("now"))
)

_INSERT_JOBS = insert(_TABLE).returning(_TABLE.c.job_id, _TABLE.c.study_instance_uid)

_INSERT_EVENTS = insert(table_of(EventRow))


def take_up(
    connection: Connection, studies: Studies, came_at: Mapping[str, datetime], quiet_period: timedelta
) -> dict[str, tuple[int, int]]:
    """Start the quiet periods of studies anew, or open their first or next job; return (job, revision) of each study.

    `came_at` says when something came for which study. `studies` has the new revisions afterwards.
    """
    known = _jobs_of(connection, [uid for uid in sorted(came_at) if not studies[uid].is_new])
    taken = _prolong(connection, studies, known, came_at, quiet_period)
    opened = []
    for uid, now in sorted(came_at.items()):
        if uid in taken:
            continue
        if uid in known:
            studies[uid] = replace(studies[uid], revision=studies[uid].revision + 1)
            _supersede_jobs(connection, studies[uid], now)
        opened.append(_first_values(studies[uid], now, quiet_period))
        studies[uid] = replace(studies[uid], is_new=False)
    for row in fetch(connection, _INSERT_JOBS, opened) if opened else ():
        taken[row.study_instance_uid] = row.job_id, studies[row.study_instance_uid].revision
    return taken


def _jobs_of(connection: Connection, uids: Sequence[str]) -> dict[str, list[Any]]:
    jobs: dict[str, list[Any]] = {}
    for row in _JOBS.ask(connection, uids):
        jobs.setdefault(row.study_instance_uid, []).append(row)
    return jobs


def _prolong(
    connection: Connection,
    studies: Studies,
    known: Mapping[str, Iterable[Any]],
    came_at: Mapping[str, datetime],
    quiet_period: timedelta,
) -> dict[str, tuple[int, int]]:
    """Start the quiet periods of those studies anew that have a job in RECEIVING; return (job, revision) of each."""
    current = _receiving(studies, known)
    changes = [
        {
            "prolonged": job.job_id,
            "now": came_at[uid],
            "due": look_again_at(job.first_instance_at, came_at[uid], quiet_period),
        }
        for uid, job in current.items()
    ]
    if changes and write(connection, _PROLONG, changes) != len(changes):
        # those that were prolonged are locked by that: what is in RECEIVING still is what was
        current = _receiving(studies, _jobs_of(connection, list(current)))
    return {uid: (job.job_id, job.revision) for uid, job in current.items()}


def _receiving(studies: Studies, jobs: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """Return the jobs of the studies' current revisions that are in RECEIVING."""
    return {
        uid: job
        for uid, of_study in sorted(jobs.items(), key=itemgetter(0))
        for job in of_study
        if job.revision == studies[uid].revision and job.state == "RECEIVING"
    }


def _first_values(study: LockedStudy, now: datetime, quiet_period: timedelta) -> dict[str, Any]:
    instants = {
        name: now for name in ("first_instance_at", "last_instance_at", "step_since", "created_at", "updated_at")
    }
    return instants | {
        "study_instance_uid": study.study_instance_uid,
        "revision": study.revision,
        "state": "RECEIVING",
        "priority": "ROUTINE",
        "attempts": 0,
        "deaths": 0,
        "timings": {},
        "due_at": look_again_at(now, now, quiet_period),
    }


def _supersede_jobs(connection: Connection, study: LockedStudy, now: datetime) -> None:
    """Make the study's revision the current one, and cancel what is under way of those before.

    Nothing of a cancelled job begins any more; a worker that is in the middle of a step of it keeps its lease, and
    `queries.claim` lets nobody write or deliver a newer revision before that lease is over: an archive never gets an
    older revision after a newer one, and the newer one names what was delivered as its predecessor.
    """
    uid, revision = study.study_instance_uid, study.revision
    connection.execute(update(StudyRow).where(StudyRow.study_instance_uid == uid).values(revision=revision))
    reason = f"superseded by revision {revision}, which holds an image or a report that came later: see its job"
    cancelled = connection.scalars(
        update(JobRow)
        .where(JobRow.study_instance_uid == uid, unindexed(JobRow.state).in_(WORKING_STATES))
        .values(state="CANCELLED", outcome=None, failure=reason, step_since=now, updated_at=now)
        .returning(JobRow.job_id)
    ).all()
    connection.execute(  # what an archive took of it stays noted with its deliveries
        update(DispatchRow)
        .where(DispatchRow.job_id.in_(cancelled), unindexed(DispatchRow.state).in_(OPEN_DISPATCHES))
        .values(state="CANCELLED", updated_at=now)
    )
    cause = {"study_instance_uid": uid, "at": now, "event": "job cancelled", "detail": reason}
    add_events(connection, [cause | {"job_id": job_id} for job_id in cancelled])


def add_events(connection: Connection, events: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the timelines of studies."""
    if events:
        write(connection, _INSERT_EVENTS, events)
