"""The API of jobs and deliveries, under /api/v1: what the command line prints with `--json`, and what it changes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request

from dicom_node.console import documents
from dicom_node.console.changing import change, change_each, current_job, resend
from dicom_node.console.documents import MAX_NUMBER
from dicom_node.console.filters import DeliveryQuery, JobQuery
from dicom_node.console.looking import look_at_job
from dicom_node.console.site import Here, RefusedError, Site
from dicom_node.console.visitors import Operator, Viewer
from dicom_node.queries import find_dispatch, find_job, list_dispatches, list_jobs

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": documents.Refusal, "description": why}
    for status, why in {
        400: "The request is not understood.",
        401: "Nobody is signed in, and no token was sent.",
        403: "The role may not, or the request may be forged.",
        503: "The job database, or the audit trail, does not take it now.",
    }.items()
}
ABSENT: dict[int | str, dict[str, Any]] = {404: {"model": documents.Refusal, "description": "There is none."}}
IMPOSSIBLE = ABSENT | {409: {"model": documents.Refusal, "description": "It is not in a state for that."}}

router = APIRouter(prefix="/api/v1", responses=REFUSALS)

JobId = Annotated[int, Path(ge=1, le=MAX_NUMBER)]
DeliveryId = Annotated[int, Path(ge=1, le=MAX_NUMBER)]


@router.get("/jobs", response_model=list[documents.Job])
def get_jobs(here: Here, visitor: Viewer, query: Annotated[JobQuery, Query()]) -> list[dict[str, Any]]:
    """List jobs, the latest first."""
    with here.sessions() as session:
        return [job.to_json() for job in list_jobs(session, query.wanted)]


@router.post("/jobs/retry", response_model=documents.Changed)
def retry_jobs(here: Here, visitor: Operator, wanted: documents.Numbers) -> dict[str, Any]:
    """Try jobs again, each from the step that failed."""
    return change_each(here, visitor, "retry", wanted.ids)


@router.post("/jobs/cancel", response_model=documents.Changed)
def cancel_jobs(here: Here, visitor: Operator, wanted: documents.Numbers) -> dict[str, Any]:
    """Stop jobs that are under way."""
    return change_each(here, visitor, "cancel", wanted.ids)


@router.get("/jobs/{job_id}", response_model=documents.JobInFull, responses=ABSENT)
def get_job(request: Request, here: Here, visitor: Viewer, job_id: JobId) -> dict[str, Any]:
    """Show one job; who looked at it is audited."""
    return look_at_job(request, here, visitor, job_id).to_json()


@router.post("/jobs/{job_id}/retry", response_model=documents.Job, responses=IMPOSSIBLE)
def retry_one(here: Here, visitor: Operator, job_id: JobId) -> dict[str, Any]:
    """Try a job again from the step that failed; a delivered one is delivered again."""
    return _changed(here, change(here, visitor, "retry", _known(here, job_id)))


@router.post("/jobs/{job_id}/cancel", response_model=documents.Job, responses=IMPOSSIBLE)
def cancel_one(here: Here, visitor: Operator, job_id: JobId) -> dict[str, Any]:
    """Stop a job that is under way; what was received is kept."""
    return _changed(here, change(here, visitor, "cancel", _known(here, job_id)))


@router.post("/jobs/{job_id}/resend", response_model=documents.Job, responses=IMPOSSIBLE)
def resend_one(
    here: Here, visitor: Operator, job_id: JobId, where: Annotated[documents.Where | None, Body()] = None
) -> dict[str, Any]:
    """Send the results of a job again, as they are, to every destination or to one."""
    return _changed(here, resend(here, visitor, _known(here, job_id), where.destination if where else None))


@router.post("/jobs/{job_id}/reground", response_model=documents.Job, responses=IMPOSSIBLE)
def reground_one(here: Here, visitor: Operator, job_id: JobId) -> dict[str, Any]:
    """Compute a study again with the model as it is now; the answer is the job of the new revision."""
    return _changed(here, change(here, visitor, "reground", _known(here, job_id)))


@router.get("/deliveries", response_model=list[documents.Delivery])
def get_deliveries(here: Here, visitor: Viewer, query: Annotated[DeliveryQuery, Query()]) -> list[dict[str, Any]]:
    """List deliveries, the latest first: the results of one job to one destination each."""
    with here.sessions() as session:
        return [one.to_json() for one in list_dispatches(session, query.wanted)]


@router.post("/deliveries/replay", response_model=documents.Changed)
def replay_deliveries(here: Here, visitor: Operator, wanted: documents.Numbers) -> dict[str, Any]:
    """Send dead letters again."""
    return change_each(here, visitor, "replay", wanted.ids)


@router.post("/deliveries/{delivery_id}/replay", response_model=documents.Delivery, responses=IMPOSSIBLE)
def replay_one(here: Here, visitor: Operator, delivery_id: DeliveryId) -> dict[str, Any]:
    """Send a dead letter again."""
    with here.sessions() as session:
        if find_dispatch(session, delivery_id) is None:
            raise RefusedError(404, f"there is no delivery {delivery_id}")
    change(here, visitor, "replay", delivery_id)
    with here.sessions() as session:
        found = find_dispatch(session, delivery_id)
    assert found is not None
    return found.to_json()


def _known(here: Site, job_id: int) -> int:
    with here.sessions() as session:
        if find_job(session, job_id) is None:
            raise RefusedError(404, f"there is no job {job_id}")
    return job_id


def _changed(here: Site, study: str) -> dict[str, Any]:
    return current_job(here, study).to_json()
