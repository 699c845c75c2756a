"""The pages: what they show comes from the job database, as JSON has it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse

from dicom_node.console.filters import JobQuery
from dicom_node.console.looking import look_at_job
from dicom_node.console.site import Here
from dicom_node.console.visitors import Viewer
from dicom_node.console.web import render
from dicom_node.queries import count_jobs, list_jobs

router = APIRouter(include_in_schema=False)

JobId = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/")
def show_jobs(request: Request, here: Here, visitor: Viewer, query: Annotated[JobQuery, Query()]) -> HTMLResponse:
    """List jobs."""
    with here.sessions() as session:
        counts = count_jobs(session)
        jobs = [job.to_json() for job in list_jobs(session, query.wanted)]
    return render(request, "jobs.html", jobs=jobs, counts=counts, state=query.state)


@router.get("/jobs/{job_id}")
def show_one(request: Request, here: Here, visitor: Viewer, job_id: JobId) -> HTMLResponse:
    """Show one job."""
    job = look_at_job(request, here, visitor, job_id)
    return render(request, "job.html", job=job.to_json())
