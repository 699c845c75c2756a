"""Destinations and peers: is each there, what is held for it, which deliveries were given up and why."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import Field

from dicom_node.console.api_node import echo_destination, echo_peer
from dicom_node.console.documents import Number
from dicom_node.console.filters import Query as Asked
from dicom_node.console.filters import Text
from dicom_node.console.pages.overview import list_peers, read_fares
from dicom_node.console.site import Here, Site
from dicom_node.console.visitors import Operator, Viewer
from dicom_node.console.web import render
from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.queries import peer_contacts, search_dispatches

router = APIRouter(include_in_schema=False)

HELD, DEAD = 20, 50
"""Deliveries listed of each destination, and dead letters on a page."""


class DestinationsQuery(Asked):
    """Of which destination dead letters are listed, and before which one."""

    destination: Annotated[Text, Field(max_length=64)] = ""
    before: Number | None = None


@router.get("/destinations")
def show_destinations(
    request: Request, here: Here, visitor: Viewer, query: Annotated[DestinationsQuery, Query()]
) -> HTMLResponse:
    """Show destinations and peers."""
    return _show(request, here, query)


@router.post("/destinations/{name}/echo")
def echo_one(request: Request, here: Here, visitor: Operator, name: str) -> HTMLResponse:
    """Ask an archive for C-ECHO, and show what came of it."""
    return _show(request, here, DestinationsQuery(), {"name": name, **echo_destination(here, visitor, name)})


@router.post("/peers/{ae_title}/echo")
def echo_sender(request: Request, here: Here, visitor: Operator, ae_title: str) -> HTMLResponse:
    """Ask a sender for C-ECHO, and show what came of it."""
    return _show(request, here, DestinationsQuery(), {"name": ae_title, **echo_peer(here, visitor, ae_title)})


def _show(request: Request, here: Site, query: DestinationsQuery, echoed: dict[str, Any] | None = None) -> HTMLResponse:
    now = here.clock()
    with here.sessions() as session:
        fares = read_fares(session, here.settings, now)
        waiting = {
            one.name: [
                found
                for state in OPEN_DISPATCHES
                if one.counts.open.get(state)
                for found in search_dispatches(session, state, one.name, limit=HELD)
            ]
            for one in fares
        }
        peers = list_peers(here.settings, peer_contacts(session))
        dead = search_dispatches(session, "DEAD", query.destination, query.before, DEAD + 1)
    called = {peer.ae_title.strip() for peer in here.settings.receiver.peers if peer.port is not None}
    return render(
        request, "destinations.html", fares=fares, waiting=waiting, peers=peers, query=query, dead=dead[:DEAD],
        older=dead[DEAD - 1].dispatch_id if len(dead) > DEAD else None, now=now, echoed=echoed, called=called,
    )  # fmt: skip
