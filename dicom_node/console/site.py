"""What every route of the console works with: the settings, the job database, the clock and the storage."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.storage import Storage


@dataclass(frozen=True)
class Site:
    """The parts that the console is made of. `storage` only reads here; `secret` is drawn at each start."""

    settings: Settings
    sessions: sessionmaker[Session]
    clock: Clock
    storage: Storage
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


class RefusedError(NodeError):
    """The request cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def site_of(request: Request) -> Site:
    """Return the site that the application of a request was made with."""
    site: Site = request.app.state.site
    return site


Here = Annotated[Site, Depends(site_of)]
"""The parameter of a route that takes the site."""
