"""The audit trail, for administrators: looked for by kind, by who or what, and by time, page by page."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import Field

from dicom_node.audit import EVENTS
from dicom_node.console.filters import Instant, Text, parse_local
from dicom_node.console.filters import Query as Asked
from dicom_node.console.looking import note_trail_read
from dicom_node.console.site import Here
from dicom_node.console.visitors import Admin
from dicom_node.console.web import render
from dicom_node.queries import AuditPage, AuditSearch, count_unsent_audit, search_audit

router = APIRouter(include_in_schema=False)

PAGE = 100


class TrailQuery(Asked):
    """What is looked for; `before` and `entry` are the time and the number of the entry that the page comes after."""

    kind: Annotated[Text, Field(max_length=32)] = ""
    who: Annotated[Text, Field(max_length=128)] = ""
    since: Instant | None = None
    until: Instant | None = None
    before: Instant | None = None
    entry: Annotated[int, Field(ge=0, le=2**62)] = 0

    @property
    def wanted(self) -> AuditSearch:
        """The search of the job database."""
        before = parse_local(self.before)
        return AuditSearch(
            self.kind, self.who.strip(), parse_local(self.since), parse_local(self.until),
            (before, self.entry) if before else None, PAGE,
        )  # fmt: skip

    def link(self, place: tuple[datetime, int] | None) -> str:
        """Return the address of the page that begins after an entry, or of the first one."""
        values = self.model_dump(exclude_none=True) | {"before": None, "entry": None}
        if place is not None:
            values |= {"before": place[0].isoformat(), "entry": place[1]}
        query = urlencode({key: value for key, value in values.items() if value not in (None, "")})
        return "/audit" + (f"?{query}" if query else "")


@router.get("/audit")
def show_trail(request: Request, here: Here, visitor: Admin, query: Annotated[TrailQuery, Query()]) -> HTMLResponse:
    """Show the audit trail. That it is read is noted in it first."""
    if not request.scope.get("is_head"):
        note_trail_read(here, visitor)
    with here.sessions() as session:
        page: AuditPage = search_audit(session, query.wanted)
        unsent = count_unsent_audit(session)
    since, until = (f"{one:%Y-%m-%dT%H:%M}" if one else "" for one in (query.wanted.since, query.wanted.until))
    return render(
        request, "audit.html", page=page, query=query, kinds=sorted(EVENTS), since=since, until=until,
        unsent=unsent if here.settings.audit.syslog else 0,
    )  # fmt: skip
