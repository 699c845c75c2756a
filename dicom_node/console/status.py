"""What machines ask: whether the process lives, whether the node can do its work, and its metrics. No sign-in: nothing
here is about a patient.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy.orm import Session

from dicom_node.console.health import readiness
from dicom_node.console.metrics import render_metrics
from dicom_node.console.site import Here

router = APIRouter(include_in_schema=False)

METRICS = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz")
async def tell_health() -> PlainTextResponse:
    """Tell that the process lives."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def tell_readiness(here: Here) -> PlainTextResponse:
    """Tell whether the node can do its work, or what is missing."""
    engine = here.sessions.kw["bind"]
    faults = [check.line for check in readiness(here.settings, engine, here.clock()) if not check.ok]
    return PlainTextResponse("".join(f"{line}\n" for line in faults or ["ready"]), 503 if faults else 200)


@router.get("/metrics")
def tell_metrics(here: Here) -> Response:
    """Tell what Prometheus asks for."""
    with Session(here.sessions.kw["bind"]) as session:  # one that may write: whether that is possible is told, too
        return Response(render_metrics(session, here.clock(), here.settings), media_type=METRICS)
