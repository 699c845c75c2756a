"""The page of one job: what happened to a study, what was found in it, and what was made of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from dicom_node.console.api import JobId
from dicom_node.console.findings import ShownFinding, mark_text
from dicom_node.console.looking import look_at_job
from dicom_node.console.pages.actions import SAID, Said
from dicom_node.console.pages.pictures import FilmQuery, Visiting
from dicom_node.console.pages.reading import Reading, ShownFilm, read_job, write_query
from dicom_node.console.visitors import Visitor
from dicom_node.console.web import render
from dicom_node.console.wording import write_span
from dicom_node.delivery import read_status
from dicom_node.queries import JobDetail
from dicom_node.results.film import Window
from dicom_node.study import END_STATES

router = APIRouter(include_in_schema=False)


class JobPageQuery(FilmQuery):
    """How films are shown, and what was done with the job just now."""

    said: Said | None = None


@router.get("/jobs/{job_id}")
def show_one(visit: Visiting, job_id: JobId, query: Annotated[JobPageQuery, Query()]) -> HTMLResponse:
    """Show one job."""
    job = look_at_job(visit.request, visit.site, visit.visitor, job_id)
    if not visit.request.scope.get("is_head"):  # which nobody was shown anything by
        visit.films.note_shown(visit.visitor, job_id, visit.site.clock())
    read = read_job(visit.site, visit.films, job)
    context = describe_job(job, read, visit.visitor, query.window)
    return render(visit.request, "job.html", **context, said=SAID[query.said] if query.said else "")


def describe_job(job: JobDetail, read: Reading, visitor: Visitor, window: Window | None) -> dict[str, Any]:
    """Return what the template of the page shows."""
    shown = job.to_json()
    shown["deliveries"] = [{**one, "said": say_status(one["status"])} for one in shown["deliveries"]]
    newest = shown["revisions"][-1] if shown["revisions"] else None
    return {
        "job": shown,
        "study": read.study,
        "senders": sorted({one["calling_ae_title"] for one in job.instances}),
        "actions": actions_of(job, read.study.revision, visitor),
        "replaced_by": newest if newest and newest["revision"] > job.summary.revision else None,
        "has_reading": job.model is not None,
        "films": [_show(film, read.findings, window) for film in read.films],
        "grounded": [one for one in read.findings if one.kind == "grounded"],
        "listed": [one for one in read.findings if one.kind != "grounded"],
        "passages": list(_pieces(read)),
        "report_reason": read.report_reason,
        "objects": read.objects,
        "timeline": list(time_events(job.timeline)),
    }


def actions_of(job: JobDetail, current_revision: int, visitor: Visitor) -> list[dict[str, str]]:
    """Return what the visitor may have done with the job as it is."""
    if not visitor.may("operator"):
        return []
    path, state = f"/jobs/{job.summary.job_id}", job.summary.state
    if state not in END_STATES:
        return [{"path": f"{path}/cancel", "text": "Cancel"}]
    if current_revision != job.summary.revision:
        return []
    if state == "DELIVERED":
        wanted = [("resend", "Send again"), ("reground", "Ground again")]
    else:
        wanted = [("retry", "Retry"), *([("reground", "Ground again")] if job.model else [])]
    return [{"path": f"{path}/{name}", "text": text} for name, text in wanted]


def time_events(timeline: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the events of a timeline, each with the time since the one before."""
    last: datetime | None = None
    for event in timeline:
        at = datetime.fromisoformat(event["at"])
        yield {**event, "after": "" if last is None else "+" + write_span((at - last).total_seconds())}
        last = at


def say_status(status: int | None) -> str:
    """Return a DIMSE status as it is written, and what it means."""
    return "no answer yet" if status is None else f"0x{status:04X} {read_status(status).text}"


def _show(film: ShownFilm, findings: Sequence[ShownFinding], window: Window | None) -> dict[str, Any]:
    phrases = {one.number: one.phrase for one in findings}
    told = "; ".join(f"box {one.tag}: {phrases[one.finding]}" for one in film.boxes) or "no boxes"
    plain, shown = film.window, window or film.window
    width, height = film.picture_size if film.columns else (0, 0)
    return {
        "sop_instance_uid": film.sop_instance_uid, "path": film.path, "reason": film.reason, "rows": film.rows,
        "columns": film.columns, "aspect": round(film.aspect, 6), "height": round(film.height, 3),
        "factor": film.factor, "tag_size": round(film.tag_size, 2), "picture_width": width, "picture_height": height,
        "query": write_query(window), "description": f"Radiograph with {told}",
        "window_centre": f"{plain.centre:g}" if plain else "", "window_width": f"{plain.width:g}" if plain else "",
        "shown_centre": f"{shown.centre:g}" if shown else "", "shown_width": f"{shown.width:g}" if shown else "",
        "boxes": [
            {
                "finding": one.finding, "colour": one.box.colour, "on_other_side": one.box.on_other_side,
                "left": round(one.box.left, 3), "top": round(one.box.top, 3), "width": round(one.box.width, 3),
                "height": round(one.box.height, 3), "tag": one.tag, "tag_left": one.tag_left, "tag_top": one.tag_top,
                "tag_width": one.tag_width,
            }
            for one in film.boxes
        ],
    }  # fmt: skip


def _pieces(read: Reading) -> Iterator[dict[str, Any]]:
    """Yield the passages of the report, each phrase with the numbers of its boxes."""
    boxes = {one.number: [box.number for box in one.boxes] for one in read.findings}
    for passage in mark_text(read.report, read.findings):
        numbers = [number for finding in passage.findings for number in boxes[finding]]
        yield {"text": passage.text, "kind": passage.kind, "tags": ", ".join(map(str, numbers))}
