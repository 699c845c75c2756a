"""Pages from templates: everything that a template shows is escaped; what it does not know is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dicom_node.console.wording import FILTERS, PAGES
from dicom_node.results.values import NOTE
from dicom_node.study import State

HERE = Path(__file__).parent
TEMPLATES, STATIC = HERE / "templates", HERE / "static"

STATES: tuple[str, ...] = get_args(State)


def _shorten_instant(value: object) -> str:
    """Return an ISO instant to the second, as `2026-01-31 12:00:00`."""
    return str(value)[:19].replace("T", " ")


def _or_dash(value: object) -> object:
    return "-" if value is None else value


def _spell_status(value: object) -> object:
    return f"0x{value:04X}" if isinstance(value, int) else value


environment = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
environment.filters |= {"instant": _shorten_instant, "dash": _or_dash, "status": _spell_status, **FILTERS}
environment.globals |= {"STATES": STATES, "PAGES": PAGES, "NOTE": NOTE}


def render_page(name: str, **context: Any) -> str:
    """Return the page of a template. Without a `visitor` it shows what somebody sees who is not signed in."""
    return environment.get_template(name).render({"visitor": None, "path": "/"} | context)


def render(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Return the answer with the page of a template, for who asks."""
    visitor = getattr(request.state, "visitor", None)
    return HTMLResponse(render_page(name, visitor=visitor, path=request.url.path, **context), status)
