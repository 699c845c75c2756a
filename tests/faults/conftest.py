"""What the faults are tried on, and the figures that they come to, printed at the end."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import FakePacs

COLUMNS = ("acknowledged_and_missing", "results_missing", "duplicate_results", "needed_a_person")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    """An archive that listens."""
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture(autouse=True)
def own_garbage() -> Iterator[None]:
    """Let what a test left, such as the sockets of a sender that nobody answered, be found missing in that test."""
    yield
    gc.collect()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    rows = [
        json.loads(value)
        for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ()))
        for name, value in report.user_properties
        if name == "faults"
    ]
    if rows:
        terminalreporter.section("faults: missing / results missing / duplicates / needed a person")
    for row in rows:
        counts = " / ".join(str(row[name]) for name in COLUMNS)
        terminalreporter.write_line(f"{row['fault']} ({row['tried']}): {counts}  {row['measured'] or ''}")
