"""How a request is refused: as a page, or as JSON under /api/. The one table from exceptions to HTTP statuses."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dicom_node.console.site import RefusedError
from dicom_node.console.web import render_page
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from dicom_node.queries import DATABASE_ERRORS

logger = logging.getLogger(__name__)

REASONS = {404: "there is nothing at this address", 405: "this address does not take that method"}


def refuse(path: str, status: int, reason: str, visitor: Any = None) -> Response:
    """Return the answer to a request that is refused."""
    if path.startswith("/api/"):
        return JSONResponse({"error": reason}, status)
    return HTMLResponse(render_page("error.html", status=status, reason=reason, visitor=visitor, path=path), status)


def add_handlers(app: FastAPI) -> None:
    """Have the application answer what its routes raise."""
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(NodeError, _answer_node)
    for error in DATABASE_ERRORS:
        app.add_exception_handler(error, _answer_away)
    app.add_exception_handler(Exception, _answer_bug)


def _refuse(request: Request, status: int, reason: str) -> Response:
    return refuse(request.url.path, status, reason, getattr(request.state, "visitor", None))


def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _refuse(request, error.status_code, REASONS.get(error.status_code, error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["loc"][0] == "path" for fault in faults):
        return _refuse(request, 404, REASONS[404])
    return _refuse(request, 400, "; ".join(map(_explain, faults)))


def _explain(fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "extra_forbidden":
        return f"{name} is not known here"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["loc"] == ("body",):
        return f"the body of the request: {message}; /api/v1/openapi.json says what it holds"
    return f"{name}: {message}" if name else message


def _answer_node(request: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        return _ask_to_sign_in(request) if error.status == 401 else _refuse(request, error.status, str(error))
    return _answer_away(request, error)


def _ask_to_sign_in(request: Request) -> Response:
    if request.url.path.startswith("/api/"):
        answer = _refuse(request, 401, "sign in, or send an API token as `Authorization: Bearer ...`")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    query = f"?{request.url.query}" if request.url.query else ""
    there = quote(f"{request.url.path}{query}", safe="") if request.method == "GET" else "%2F"
    return RedirectResponse(f"/sign-in?next={there}", 303)


def _answer_away(request: Request, error: Exception) -> Response:
    log_event(logger, "request failed", level=logging.ERROR, error=type(error).__name__)
    return _refuse(request, 503, "the job database does not answer; see /readyz")


def _answer_bug(request: Request, error: Exception) -> Response:
    """Answer for a bug, which is logged with its traceback where it is caught last."""
    from dicom_node.console.guard import headers_of

    answer = _refuse(request, 500, "this is a fault of the console; its log says more")
    headers_of(answer)
    return answer
