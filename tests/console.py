"""A console in this process for tests: its application over a real database with two studies, asked through ASGI."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from httpx import Response
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from dicom_node.accounts import TOKEN_PREFIX, digest, hash_password, make_token
from dicom_node.audit import Kind
from dicom_node.config import Role, Settings
from dicom_node.console.app import make_app
from dicom_node.instance import read_instance
from dicom_node.objects import open_storage
from dicom_node.queries import (
    ApiToken,
    Arrival,
    AuditEntry,
    add_token,
    add_user,
    list_audit,
    make_engine,
    make_sessions,
    record_instance,
    upgrade_schema,
)
from dicom_node.storage import StoredFile
from tests.builders import encode, make_cxr_dataset, make_report_dataset
from tests.fakes import FrozenClock

PASSWORD = "a long enough password"
HASH = hash_password(PASSWORD)
HERE = "http://127.0.0.1:8042"


class Browser(TestClient):
    """Somebody who calls, and keeps cookies; `last` is what the last try to sign in was answered with."""

    last: Response


@dataclass
class Console:
    """A console over SQLite in `folder`. `sections` are those of the configuration."""

    folder: Path
    sections: dict[str, Any] = field(default_factory=dict)
    clock: FrozenClock = field(default_factory=FrozenClock)

    def __post_init__(self) -> None:
        url = f"sqlite:///{self.folder}/knowmvg.db"
        upgrade_schema(url)
        self.engine = make_engine(url)
        self.sessions: sessionmaker[Session] = make_sessions(self.engine)
        self.settings = Settings.model_validate(
            {
                "node": {"data_dir": self.folder},
                "database": {"url": url},
                "storage": {"url": f"file://{self.folder}/dicom"},
                "receiver": {"min_free_bytes": 1},
            }
            | self.sections
        )
        self.app: FastAPI = make_app(self.settings, self.sessions, self.clock, open_storage(self.settings))

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    def file_studies(self) -> None:
        """File two studies: one whole, one with an image only."""
        image = make_cxr_dataset(study="whole")
        for ds in (image, make_report_dataset(study="whole", image=image), make_cxr_dataset(study="half")):
            stored = StoredFile(f"key/{ds.SOPInstanceUID}", "0" * 64, 1)
            with self.sessions.begin() as session:
                arrival = Arrival(read_instance(encode(ds)), stored, "PACS", self.clock())
                record_instance(session, arrival, timedelta(seconds=5))

    def add_user(self, name: str, role: Role) -> None:
        """Make a user with the password of all."""
        with self.sessions.begin() as session:
            add_user(session, name, role, HASH, self.clock())

    def add_token(self, name: str, role: Role, lives: timedelta | None = None) -> str:
        """Make a token, and return it."""
        token = make_token(TOKEN_PREFIX)
        now = self.clock()
        with self.sessions.begin() as session:
            add_token(session, ApiToken(name, role, now, now + lives if lives else None), digest(token))
        return token

    def browser(self, address: str = "192.0.2.7") -> Browser:
        """Return somebody who calls from an address, and keeps cookies."""
        return Browser(
            self.app, base_url=HERE, client=(address, 50000), follow_redirects=False, raise_server_exceptions=True
        )

    def sign_in(self, name: str, password: str = PASSWORD, browser: Browser | None = None) -> Browser:
        """Sign somebody in, or try to; return the browser."""
        browser = browser or self.browser()
        page = browser.get("/sign-in")
        browser.last = browser.post(
            "/sign-in", data={"name": name, "password": password, "csrf": csrf_in(page.text)}, headers={"Origin": HERE}
        )
        return browser

    def events(self, kind: Kind) -> list[AuditEntry]:
        """Return the audit trail of a kind, the latest first."""
        with self.sessions() as session:
            return list(list_audit(session, 100, kind))


def csrf_in(page: str) -> str:
    """Return what the first form of a page sends back."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found, page
    return found[1]
