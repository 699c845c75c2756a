"""No question that the node asks of its rows reads a whole table: what each engine would do, by its own account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from tests.backlog import QUESTIONS, fill
from tests.servers import create_database

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
JOBS, UNDER_WAY = 4000, 100
LARGE = {
    "studies", "instances", "jobs", "findings", "results", "dispatches", "deliveries", "commitments",
    "report_references", "commitment_requests", "audit", "events",
}  # fmt: skip
SMALL_INDICES = {"jobs_leased", "dispatches_leased", "commitment_requests_leased", "audit_unsent"}
"""Indices of few rows, which may be read from one end to the other."""

FROM_THE_LAST = {
    "jobs": "jobs", "jobs, limit 1000": "jobs", "deliveries": "dispatches", "audit": "audit",
    "jobs, since a minute": "jobs", "jobs, since a year": "jobs", "jobs, DELIVERED": "jobs",
    "jobs, since a minute, DELIVERED": "jobs", "jobs, since a year, DELIVERED": "jobs",
    "deliveries, DELIVERED": "dispatches", "deliveries to pacs": "dispatches",
    "search, any": "jobs", "search, words": "jobs", "search, AE title": "jobs",
}  # fmt: skip
"""Questions that read a table from its last row on until they have as many as they list."""

COUNTED = {"count of jobs": "jobs", "count of instances": "instances"}
"""Questions that read an index of every row, and no row; PostgreSQL counts instances while there are few."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A database with some hundred jobs."""
    folder: Path = tmp_path_factory.mktemp("plans")
    url = f"sqlite:///{folder}/knowmvg.db"
    if request.param == "postgresql":
        url = create_database(request.getfixturevalue("postgres_server"), "plans")
    upgrade_schema(url)
    engine = make_engine(url)
    fill(engine, JOBS, NOW, UNDER_WAY)
    yield engine
    engine.dispose()


def statements_of(engine: Engine, question: str) -> list[tuple[str, Any]]:
    """Ask, and return the statements with their parameters; what they change is taken back."""
    found: list[tuple[str, Any]] = []

    def keep(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        found.append((statement, parameters))

    with make_sessions(engine)() as session:
        event.listen(engine, "before_cursor_execute", keep)
        try:
            QUESTIONS[question](session, NOW)
        finally:
            event.remove(engine, "before_cursor_execute", keep)
            session.rollback()
    return [one for one in found if not one[0].startswith(("BEGIN", "SAVEPOINT"))]


def scans(engine: Engine, statement: str, parameters: Any) -> set[tuple[str, str]]:
    """Return (table, index or "") of what a statement reads without being led to some of its rows."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            details = [row.detail.split() for row in rows if row.detail.startswith("SCAN ")]
            return {(words[1], words[-1] if "INDEX" in words else "") for words in details}
        for way in ("seqscan", "hashjoin", "mergejoin"):  # which are right for some thousand rows
            connection.exec_driver_sql(f"SET enable_{way} = off")
        explained = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar()
        plan = explained if isinstance(explained, list) else json.loads(str(explained))
        return set(_scans_of(plan[0]["Plan"]))


def _scans_of(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind = str(node["Node Type"])
    if kind == "Seq Scan":
        yield node["Relation Name"], ""
    elif kind in ("Index Scan", "Index Only Scan") and "Index Cond" not in node:
        yield node["Relation Name"], node["Index Name"]
    for below in node.get("Plans", []):
        yield from _scans_of(below)


OF_HUNDREDS = {"inputs to remove"}
"""Questions about hundreds of studies at once, for which PostgreSQL reads tables as small as these by right."""

MORE = 4
GROW = {
    "jobs, limit 1000", "count of jobs", "jobs, patient of many studies", "audit, kind", "deliveries to moved",
    "search, words, state", "look for events, kind, who",
}  # fmt: skip
"""Questions that have more rows for an answer, count, or look through so many at most, where there are more jobs."""


def steps_of(folder: Path, jobs: int) -> dict[str, int]:
    """Return how many instructions SQLite takes to answer each question, in hundreds."""
    upgrade_schema(url := f"sqlite:///{folder}/{jobs}.db")
    engine = make_engine(url)
    fill(engine, jobs, NOW, UNDER_WAY)
    steps = dict.fromkeys(QUESTIONS, 0)
    for question, ask in QUESTIONS.items():
        with make_sessions(engine)() as session:

            def count(question: str = question) -> None:
                steps[question] += 1

            driver: Any = session.connection().connection.driver_connection
            driver.set_progress_handler(count, 100)
            ask(session, NOW)
            session.rollback()
    engine.dispose()
    return steps


def test_more_jobs_are_no_more_work(tmp_path: Path) -> None:
    """A plan that looks well may still take the wrong index: SQLite keeps no statistics."""
    few, many = steps_of(tmp_path, JOBS), steps_of(tmp_path, MORE * JOBS)
    grown = {question: (few[question], steps) for question, steps in many.items() if steps > 1.5 * few[question] + 10}
    assert set(grown) <= GROW, grown


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_question_reads_a_whole_table(filled: Engine, question: str) -> None:
    asked = statements_of(filled, question)
    assert asked
    for statement, parameters in asked:
        found = {(t, i) for t, i in scans(filled, statement, parameters) if t in LARGE and i not in SMALL_INDICES}
        if question in COUNTED:
            found = {(table, index) for table, index in found if not (table == COUNTED[question] and index)}
        if question in FROM_THE_LAST and "LIMIT" in statement and "ORDER BY" in statement:
            found = {(table, _) for table, _ in found if table != FROM_THE_LAST[question]}
        if question in OF_HUNDREDS and filled.dialect.name == "postgresql":
            found = set()
        assert not found, statement
