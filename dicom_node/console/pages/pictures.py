"""Films as PNG, and results as PNG and as files; who fetches them has been shown their study, and that is audited."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from dicom_node.console.api import JobId
from dicom_node.console.films import Films
from dicom_node.console.filters import Query as Asked
from dicom_node.console.looking import note_look
from dicom_node.console.site import Here, RefusedError, Site
from dicom_node.console.visitors import Viewer, Visitor
from dicom_node.queries import StoredInstance, StoredResult, find_job, instances_of, load_results
from dicom_node.results.film import Window

router = APIRouter(include_in_schema=False)

DICOM = "application/dicom"


def films_of(request: Request) -> Films:
    """Return the films that the application keeps; one for all that ask."""
    films: Films = request.app.state.films
    return films


FilmsHere = Annotated[Films, Depends(films_of)]


@dataclass(frozen=True)
class Visit:
    """A request of somebody who may see studies."""

    request: Request
    site: Site
    visitor: Visitor
    films: Films


def visit_of(request: Request, here: Here, visitor: Viewer, films: FilmsHere) -> Visit:
    """Return what a route that shows films works with."""
    return Visit(request, here, visitor, films)


Visiting = Annotated[Visit, Depends(visit_of)]


class FilmQuery(Asked):
    """How a film is asked for: in a window (both or none), and whether it is looked at closely."""

    centre: float | None = Field(default=None, ge=-1e9, le=1e9)
    width: float | None = Field(default=None, ge=1, le=1e9)
    fine: bool = False

    @property
    def window(self) -> Window | None:
        """The window asked for."""
        if self.centre is None or self.width is None or not math.isfinite(self.centre + self.width):
            return None
        return Window(self.centre, self.width)


@router.get("/jobs/{job_id}/films/{uid}")
def show_film(visit: Visiting, job_id: JobId, uid: str, query: Annotated[FilmQuery, Query()]) -> Response:
    """Show an image of the study of a job."""
    image = _find_image(visit.site, job_id, uid)
    _note(visit, job_id)
    return _png(visit.films.draw_film(visit.site.storage, image.key, query.window, fine=query.fine))


@router.get("/jobs/{job_id}/results/{uid}.png")
def show_state(visit: Visiting, job_id: JobId, uid: str) -> Response:
    """Show a presentation state on its image."""
    result = _find_result(visit.site, job_id, uid)
    image = _find_image(visit.site, job_id, result.part.partition(":")[2])
    _note(visit, job_id)
    return _png(visit.films.draw_state(visit.site.storage, result.key, image.key))


@router.get("/jobs/{job_id}/results/{uid}.dcm")
def download(visit: Visiting, job_id: JobId, uid: str) -> Response:
    """Give a result as it is stored."""
    result = _find_result(visit.site, job_id, uid)
    if not visit.request.scope.get("is_head"):
        note_look(visit.site, visit.visitor, _study(visit.site, job_id), f"download of {uid} of job {job_id}")
    try:
        with visit.site.storage.open(result.key) as stream:
            content = stream.read()
    except OSError as error:
        raise RefusedError(503, f"the storage cannot be read now ({type(error).__name__}); see /readyz") from None
    kind = "sr" if result.part == "sr" else "gsps"
    headers = {"Content-Disposition": f'attachment; filename="job-{job_id}.{kind}.{uid}.dcm"'}
    return Response(content, media_type=DICOM, headers=headers)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png")


def _study(here: Site, job_id: int) -> str:
    with here.sessions() as session:
        job = find_job(session, job_id)
    if job is None:
        raise RefusedError(404, f"there is no job {job_id}")
    return job.study_instance_uid


def _find_image(here: Site, job_id: int, uid: str) -> StoredInstance:
    study = _study(here, job_id)
    with here.sessions() as session:
        found = [one for one in instances_of(session, study) if one.instance.sop_instance_uid == uid]
    if not found or found[0].instance.role != "image":
        raise RefusedError(404, f"job {job_id} has no such image")
    if found[0].removed_at is not None:
        raise RefusedError(410, f"the retention rule removed it on {found[0].removed_at:%Y-%m-%d}")
    return found[0]


def _find_result(here: Site, job_id: int, uid: str) -> StoredResult:
    with here.sessions() as session:
        found = [one for one in load_results(session, job_id) if one.sop_instance_uid == uid]
    if not found:
        raise RefusedError(404, f"job {job_id} has no such result")
    return found[0]


def _note(visit: Visit, job_id: int) -> None:
    """Note the look at a study, unless its page was shown to the same visitor a moment ago: the picture is of it."""
    now = visit.site.clock()
    if visit.request.scope.get("is_head") or visit.films.was_shown(visit.visitor, job_id, now):
        return
    note_look(visit.site, visit.visitor, _study(visit.site, job_id), f"job {job_id}")
    visit.films.note_shown(visit.visitor, job_id, now)
