"""A node whose pages are looked at: the rig's rows and files, and a console over both."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.testclient import TestClient

from tests.builders import make_cxr_dataset, make_report_dataset
from tests.console import Console
from tests.fakes import FakePacs
from tests.rig import Rig, make_sqlite_sessions


class Node(Rig):
    """A node, and a console over its rows and files."""

    def __init__(self, folder: Path, pacs: FakePacs) -> None:
        """`pacs` is its only destination, `archive0`."""
        super().__init__(folder, make_sqlite_sessions(folder), [pacs])
        destination = {"name": "archive0", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        self.console = Console(folder, {"destinations": [destination]}, self.clock)
        for role in ("viewer", "operator", "admin"):
            self.console.add_user(role, role)

    def browse(self, role: str = "viewer") -> TestClient:
        """Return somebody of a role, signed in."""
        return self.console.sign_in(role)

    def deliver(self, **attributes: object) -> int:
        """Have a study grounded and delivered; return its job."""
        image = make_cxr_dataset(**attributes)
        self.store(image)
        self.store(make_report_dataset(image=image))
        self.settle(seconds=6)
        self.settle(seconds=6)
        return 1


def sources(page: str) -> dict[str, list[str]]:
    """Return the pictures and downloads that a page names."""
    return {
        "films": re.findall(r'<image href="([^"]+)"', page),
        "states": re.findall(r'<img class="state-picture" src="([^"]+)"', page),
        "files": re.findall(r'href="([^"]+\.dcm)"', page),
    }
