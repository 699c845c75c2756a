"""The list of jobs: looked for by who, what, when and why; many are retried or cancelled at once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import Field

from dicom_node.console.documents import MAX_NUMBER, Number
from dicom_node.console.filters import Instant, Text, parse_local
from dicom_node.console.filters import Query as Asked
from dicom_node.console.site import Here
from dicom_node.console.visitors import Viewer
from dicom_node.console.web import render
from dicom_node.queries import JobSearch, count_jobs, search_jobs
from dicom_node.study import State

router = APIRouter(include_in_schema=False)

PAGE = 50
REFRESH_S = 5
"""Between two looks of a page that keeps itself up to date."""


class ListQuery(Asked):
    """What is looked for. Instants without a zone, as browsers send them, are UTC."""

    who: Annotated[Text, Field(max_length=128)] = ""
    state: State | None = None
    ae: Annotated[Text, Field(max_length=16)] = ""
    since: Instant | None = None
    until: Instant | None = None
    text: Annotated[Text, Field(max_length=200)] = ""
    before: Number | None = None
    after: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | None = None

    @property
    def wanted(self) -> JobSearch:
        """The search of the job database."""
        return JobSearch(
            self.who.strip(), self.state or "", self.ae.strip(), parse_local(self.since), parse_local(self.until),
            self.text.strip(), self.before, self.after, PAGE,
        )  # fmt: skip

    def link(self, **changes: object) -> str:
        """Return the address of the list with some of the values changed; a page is kept only where it is named."""
        values = self.model_dump(exclude_none=True) | {"before": None, "after": None} | changes
        query = urlencode({key: value for key, value in values.items() if value not in (None, "")})
        return "/jobs" + (f"?{query}" if query else "")

    @property
    def here(self) -> str:
        """The address of this very page."""
        return self.link(before=self.before, after=self.after)


@router.get("/jobs")
def show_jobs(request: Request, here: Here, visitor: Viewer, query: Annotated[ListQuery, Query()]) -> HTMLResponse:
    """List jobs."""
    with here.sessions() as session:
        counts = count_jobs(session)
        page = search_jobs(session, query.wanted)
    return render(request, "jobs.html", **describe_list(query, counts), page=page, refresh_s=REFRESH_S)


def describe_list(query: ListQuery, counts: dict[str, int]) -> dict[str, Any]:
    """Return what the template shows besides the jobs."""
    is_narrowed = any((query.who, query.state, query.ae, query.since, query.until, query.text))
    return {
        "query": query,
        "counts": counts,
        "is_narrowed": is_narrowed,
        "since": _for_input(parse_local(query.since)),
        "until": _for_input(parse_local(query.until)),
    }


def _for_input(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%dT%H:%M}" if instant else ""
