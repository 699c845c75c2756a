"""The buttons of the pages: forms that change jobs and deliveries, and lead back to what became of it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from dicom_node.console.api import DeliveryId, JobId
from dicom_node.console.changing import change, change_each, current_job, resend
from dicom_node.console.documents import Number
from dicom_node.console.site import Here, RefusedError
from dicom_node.console.visitors import Operator
from dicom_node.console.web import render
from dicom_node.queries import find_dispatch, find_job

router = APIRouter(include_in_schema=False)

Said = Literal["retry", "cancel", "resend", "reground", "replay"]

SAID: dict[Said, str] = {
    "retry": "Retried: it goes on from the step that failed, within seconds while a scheduler runs.",
    "cancel": "Cancelled. What was received is kept; a retry takes it up again.",
    "resend": "Its results are sent again to every destination.",
    "reground": "It is grounded again, as a new revision: this one.",
    "replay": "The dead letter is sent again.",
}
"""What a page says after an action; addresses name the action alone, so that nobody can have it say anything else."""

MANY = 200
Chosen = Annotated[list[Number], Form(max_length=MANY, default_factory=list)]


@router.post("/jobs/retry")
def retry_chosen(request: Request, here: Here, visitor: Operator, job: Chosen) -> HTMLResponse:
    """Retry the jobs that were chosen."""
    return render(request, "changed.html", what="Retried", **change_each(here, visitor, "retry", job))


@router.post("/jobs/cancel")
def cancel_chosen(request: Request, here: Here, visitor: Operator, job: Chosen) -> HTMLResponse:
    """Cancel the jobs that were chosen."""
    return render(request, "changed.html", what="Cancelled", **change_each(here, visitor, "cancel", job))


@router.post("/jobs/{job_id}/{what}")
def change_one(
    here: Here, visitor: Operator, job_id: JobId, what: Literal["retry", "cancel", "resend", "reground"]
) -> RedirectResponse:
    """Do something with one job."""
    with here.sessions() as session:
        if find_job(session, job_id) is None:
            raise RefusedError(404, f"there is no job {job_id}")
    if what == "resend":
        resend(here, visitor, job_id, None)
    else:
        study = change(here, visitor, what, job_id)
        job_id = current_job(here, study).job_id if what == "reground" else job_id
    return _lead_to(job_id, what)


@router.post("/deliveries/{delivery_id}/replay")
def replay_one(here: Here, visitor: Operator, delivery_id: DeliveryId) -> RedirectResponse:
    """Send a dead letter again."""
    with here.sessions() as session:
        found = find_dispatch(session, delivery_id)
    if found is None:
        raise RefusedError(404, f"there is no delivery {delivery_id}")
    change(here, visitor, "replay", delivery_id)
    return _lead_to(found.job_id, "replay")


def _lead_to(job_id: int, said: Said) -> RedirectResponse:
    return RedirectResponse(f"/jobs/{job_id}?said={said}", 303)
