"""The same as the command line's JSON over HTTP, under /api/v1."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from dicom_node.console.filters import JobQuery
from dicom_node.console.looking import look_at_job
from dicom_node.console.site import Here
from dicom_node.console.visitors import Viewer
from dicom_node.queries import list_jobs

router = APIRouter(prefix="/api/v1")

JobId = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/jobs")
def get_jobs(here: Here, visitor: Viewer, query: Annotated[JobQuery, Query()]) -> list[dict[str, Any]]:
    """List jobs, the latest first."""
    with here.sessions() as session:
        return [job.to_json() for job in list_jobs(session, query.wanted)]


@router.get("/jobs/{job_id}")
def get_job(request: Request, here: Here, visitor: Viewer, job_id: JobId) -> dict[str, Any]:
    """Show one job."""
    return look_at_job(request, here, visitor, job_id).to_json()
