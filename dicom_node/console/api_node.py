"""The API of the node itself, under /api/v1: archives and senders, audit trail, configuration, and its description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from dicom_node.config import DestinationSettings, masked
from dicom_node.console import documents
from dicom_node.console.api import ABSENT, IMPOSSIBLE, REFUSALS
from dicom_node.console.filters import AuditQuery
from dicom_node.console.looking import note_trail_read
from dicom_node.console.site import Here, RefusedError
from dicom_node.console.visitors import Admin, Operator, Viewer
from dicom_node.delivery import OPEN_DISPATCHES
from dicom_node.errors import NodeError
from dicom_node.queries import (
    DestinationState,
    destination_counts,
    destination_states,
    list_audit,
)

router = APIRouter(prefix="/api/v1", responses=REFUSALS)


@router.get("/destinations", response_model=list[documents.Destination])
def get_destinations(here: Here, visitor: Viewer) -> list[dict[str, Any]]:
    """List the archives that results are sent to, and how each fares."""
    documents_ = []
    with here.sessions() as session:
        states = destination_states(session)
        for one in here.settings.destinations:
            counts = destination_counts(session, one.name, here.clock())
            state = states.get(one.name, DestinationState())
            instants = {key: getattr(state, key) for key in ("hold_until", "last_contact_at", "last_error_at")}
            documents_.append(
                {
                    "name": one.name, "protocol": one.protocol, "ae_title": one.ae_title, "host": one.host,
                    "port": one.port, "tls": one.tls is not None, "failures": state.failures,
                    "last_error": state.last_error, "dead": counts.dead + counts.dead_before,
                    "under_way": sum(counts.open.get(state, 0) for state in OPEN_DISPATCHES),
                }
                | {key: at.isoformat(timespec="milliseconds") if at else None for key, at in instants.items()}
            )  # fmt: skip
    return documents_


@router.post("/destinations/{name}/echo", response_model=documents.Echo, responses=ABSENT)
def echo_destination(here: Here, visitor: Operator, name: str) -> dict[str, Any]:
    """Ask an archive for C-ECHO."""
    for one in here.settings.destinations:
        if one.name == name:
            return try_echo(one, here.settings.receiver.ae_title)
    raise RefusedError(404, "there is no such destination")


@router.get("/peers", response_model=list[documents.Peer])
def get_peers(here: Here, visitor: Viewer) -> list[dict[str, Any]]:
    """List the senders that are let in."""
    return [
        {
            "ae_title": one.ae_title, "address": one.address, "port": one.port, "tls": one.tls is not None,
            "certificate": one.certificate,
        }
        for one in here.settings.receiver.peers
    ]  # fmt: skip


@router.post("/peers/{ae_title}/echo", response_model=documents.Echo, responses=IMPOSSIBLE)
def echo_peer(here: Here, visitor: Operator, ae_title: str) -> dict[str, Any]:
    """Ask a sender for C-ECHO, where it says that it can be called."""
    named = [one for one in here.settings.receiver.peers if one.ae_title.strip() == ae_title.strip()]
    if not named:
        raise RefusedError(404, "there is no such sender in receiver.peers")
    for one in named:
        if one.port is not None:
            called = DestinationSettings(
                name="peer", ae_title=one.ae_title, host=one.address, port=one.port, tls=one.tls
            )
            return try_echo(called, here.settings.receiver.ae_title)
    raise RefusedError(409, "receiver.peers has no port for it, at which it could be called")


def try_echo(called: DestinationSettings, calling_ae_title: str) -> dict[str, Any]:
    """Return whether somebody answers C-ECHO, in one sentence."""
    from dicom_node.scu import echo  # pynetdicom: not for every console

    try:
        echo(called, calling_ae_title)
    except NodeError as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": f"{called.ae_title} at {called.host}:{called.port} answers C-ECHO"}


@router.get("/audit", response_model=list[documents.AuditEntry])
def get_audit(here: Here, visitor: Admin, query: Annotated[AuditQuery, Query()]) -> list[dict[str, Any]]:
    """List the audit trail, the latest first. That it was read is noted in it first."""
    note_trail_read(here, visitor)
    with here.sessions() as session:
        entries = list_audit(session, query.limit, query.kind, query.after)
    return [entry.to_json() for entry in entries]


@router.get("/configuration", response_model=documents.Configuration)
def get_configuration(here: Here, visitor: Admin) -> dict[str, Any]:
    """Show the effective configuration; secrets are masked."""
    return masked(here.settings)


@router.get("/me", response_model=documents.Me)
def get_me(visitor: Viewer) -> dict[str, Any]:
    """Tell who asks, and what scripts send with changes."""
    return {"name": visitor.name, "role": visitor.role, "csrf": visitor.csrf}


@router.get("/openapi.json", include_in_schema=False)
def get_description(request: Request) -> JSONResponse:
    """Describe this API; no sign-in, since it says nothing of this node."""
    return JSONResponse(request.app.openapi())


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the description of the API (OpenAPI): what is not understood is 400 here, and 404 in a path."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version="1", summary="Jobs, deliveries, node", routes=app.routes)
        schema["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "cookie": {"type": "apiKey", "in": "cookie", "name": "knowmvg"},
        }
        schema["security"] = [{"token": []}, {"cookie": []}]
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
