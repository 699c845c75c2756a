"""The console's application: which routes there are, and what holds for all of them."""

from __future__ import annotations

import functools

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.config import Settings
from dicom_node.console import api, api_node, oidc_signing, pages, signing, status
from dicom_node.console.api_node import describe
from dicom_node.console.films import Films
from dicom_node.console.guard import Guard
from dicom_node.console.refusing import add_handlers
from dicom_node.console.site import Site
from dicom_node.console.web import STATIC
from dicom_node.storage import Storage


def make_app(settings: Settings, sessions: sessionmaker[Session], clock: Clock, storage: Storage) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="KnowMVG Node", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.site, app.state.films = Site(settings, sessions, clock, storage), Films()
    for module in (status, signing, oidc_signing, api, api_node, pages):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.openapi = functools.partial(describe, app)  # type: ignore[method-assign]
    add_handlers(app)
    app.add_middleware(Guard, allowed_hosts=settings.console.allowed_hosts)
    return app
