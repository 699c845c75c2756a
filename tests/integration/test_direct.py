"""What SQLite is given directly: the same rows, values and errors as by way of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from dicom_node.queries import AWAY_ERRORS, explain
from dicom_node.queries.direct import KeyedQuestion, fetch, write
from dicom_node.queries.inserting import insert_new, table_of
from dicom_node.tables import AuditRow, StudyRow

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
STUDIES, AUDIT = table_of(StudyRow), table_of(AuditRow)
BY_UID = KeyedQuestion(select(STUDIES).order_by(STUDIES.c.study_instance_uid), STUDIES.c.study_instance_uid)
BY_ASSOCIATION = KeyedQuestion(select(AUDIT).order_by(AUDIT.c.id), AUDIT.c.association)


def make_study(number: int, **values: Any) -> dict[str, Any]:
    told = {"revision": 1, "patient_id": "SECRET", "accession_number": "", "created_at": NOW}
    return {"study_instance_uid": f"1.{number}"} | told | values


def make_entry(association: str | None, at: datetime, event: Any) -> dict[str, Any]:
    return {"at": at, "due_at": at, "kind": "k", "process": "p", "association": association, "event": event}


def test_values_go_in_and_come_out_as_sqlalchemy_has_them(engine: Engine) -> None:
    instants = [NOW, NOW.replace(microsecond=7), NOW.astimezone(timezone(timedelta(hours=-5, minutes=-30)))]
    events = [{}, {"a": ["ä", "\U0001f4a9", "'\\\"", None, 1.5]}, {"b": {"c": True}}]
    rows = [make_entry(f"{n}", at, event) for n, (at, event) in enumerate(zip(instants, events, strict=True))]
    with engine.begin() as connection:
        write(connection, insert(AUDIT), rows)
        connection.execute(insert(AUDIT), rows)
        found = BY_ASSOCIATION.ask(connection, ["0", "1", "2"])
        assert [tuple(row) for row in found] == [tuple(row) for row in connection.execute(select(AUDIT))]
        assert [(row.at, row.event) for row in found] == [*zip(instants, events, strict=True)] * 2
        as_kept = connection.execute(text("SELECT at, due_at, event FROM audit ORDER BY id")).all()
        assert [str(row) for row in as_kept[:3]] == [str(row) for row in as_kept[3:]]


def test_a_question_is_about_the_rows_of_its_keys_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        write(connection, insert(STUDIES), [make_study(number) for number in range(5)])
        for wanted in ([], ["1.3"], ["1.0", "1.2", "1.4"], ["1.1", "1.9"], ["1.9"], ["1.4"]):
            found = [row.study_instance_uid for row in BY_UID.ask(connection, wanted)]
            assert found == [uid for uid in wanted if uid != "1.9"]


def test_what_is_changed_is_counted_and_what_is_there_already_is_not_inserted(engine: Engine) -> None:
    statement = (
        update(STUDIES)
        .where(STUDIES.c.study_instance_uid == bindparam("uid"), STUDIES.c.revision == 1)
        .values(revision=bindparam("to"))
    )
    with engine.begin() as connection:
        first = insert_new(connection, StudyRow, [make_study(1), make_study(2, revision=2)])
        again = insert_new(connection, StudyRow, [make_study(number) for number in (1, 3, 2, 4)])
        assert [sorted(row.study_instance_uid for row in rows) for rows in (first, again)] == [
            ["1.1", "1.2"],
            ["1.3", "1.4"],
        ]
        assert write(connection, statement, [{"uid": f"1.{number}", "to": 5} for number in (1, 2, 3, 9)]) == 2
        assert write(connection, statement, [{"uid": "1.9", "to": 5}]) == 0
        revisions = [row.revision for row in BY_UID.ask(connection, ["1.1", "1.2", "1.3", "1.4"])]
        assert revisions == [5, 2, 5, 1]


def write_twice(connection: Connection) -> None:
    write(connection, insert(STUDIES), [make_study(1), make_study(1)])


def fetch_twice(connection: Connection) -> None:
    for _ in range(2):
        fetch(connection, insert(STUDIES).returning(STUDIES.c.revision), [make_study(1)])


@pytest.mark.parametrize("fail", [write_twice, fetch_twice])
def test_an_error_is_raised_as_sqlalchemy_does_and_tells_no_value(
    engine: Engine, fail: Callable[[Connection], None]
) -> None:
    with pytest.raises(IntegrityError) as refused, engine.begin() as connection:
        fail(connection)
    assert "SECRET" not in str(refused.value) and "INSERT INTO studies" in str(refused.value)
    assert explain(refused.value) == ("IntegrityError" if engine.dialect.name == "sqlite" else "UniqueViolation")
    with engine.begin() as connection:
        assert not BY_UID.ask(connection, ["1.1"])


@pytest.mark.parametrize("fail", [write_twice, fetch_twice])
def test_a_database_that_takes_nothing_is_away(engine: Engine, fail: Callable[[Connection], None]) -> None:
    read_only = "PRAGMA query_only=ON" if engine.dialect.name == "sqlite" else "SET TRANSACTION READ ONLY"
    with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
        connection.execute(text(read_only))
        fail(connection)
    assert isinstance(refused.value, AWAY_ERRORS)
    assert "read" in explain(refused.value)
