"""Group commit: rows of many senders in one transaction, and each sender is told what became of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import filing, queries
from dicom_node.filing import GROUP, Filing
from dicom_node.instance import read_instance
from dicom_node.queries import Arrival, Recorded, direct, revisions
from dicom_node.storage import StoredFile
from dicom_node.tables import AuditRow, EventRow, InstanceRow, JobRow, ReportReferenceRow
from tests.builders import encode, make_cxr_dataset, make_report_dataset

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)

Sessions = sessionmaker[Session]


def make_arrival(study: int, instance: int = 1) -> Arrival:
    read = read_instance(encode(make_cxr_dataset(study=str(study), instance=instance)))
    stored = StoredFile(f"key {read.sop_instance_uid}", "a" * 64, 10)
    return Arrival(read, stored, "PACS", NOW, "127.0.0.1", f"association {study}")


@pytest.fixture
def line(sessions: Sessions) -> Filing:
    return Filing(sessions, timedelta(seconds=5))


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError


@contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """Let the first commit wait until the event that is given is set; count the commits on it (`count`)."""
    go_on = threading.Event()
    commits: list[int] = []

    def hold(_: Any) -> None:
        commits.append(1)
        if len(commits) == 1:
            assert go_on.wait(20)

    go_on.commits = commits  # type: ignore[attr-defined]
    event.listen(engine, "commit", hold)
    yield go_on
    event.remove(engine, "commit", hold)


def record(line: Filing, arrival: Arrival) -> Recorded:
    """Make the row of one instance; raise what that ends in."""
    (outcome,) = line.record([arrival])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def record_behind(line: Filing, engine: Engine, arrivals: list[Arrival]) -> tuple[list[Future[Recorded]], int]:
    """Have `arrivals` wait in line while another is committed; return what became of them, and the commits in all."""
    with held(engine) as go_on, ThreadPoolExecutor(len(arrivals) + 1) as pool:
        first = pool.submit(record, line, make_arrival(0))
        wait_until(lambda: bool(go_on.commits))  # type: ignore[attr-defined]
        others = [pool.submit(record, line, arrival) for arrival in arrivals]
        wait_until(lambda: len(line._waiting) == len(arrivals))
        go_on.set()
        assert first.result(20).kind == "new"
        for other in others:
            other.exception(20)
        return others, len(go_on.commits)  # type: ignore[attr-defined]


def count(sessions: Sessions, row: type[Any]) -> int:
    with sessions.begin() as session:
        return session.scalar(select(func.count()).select_from(row)) or 0


def test_who_commits_waits_a_little_for_what_is_being_filed(
    line: Filing, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filing, "GATHER_S", 20)
    commits: list[int] = []
    event.listen(engine, "commit", lambda _: commits.append(1))

    def file(arrival: Arrival) -> Recorded:
        with line.coming(1):
            return record(line, arrival)

    with line.coming(1), ThreadPoolExecutor(1) as pool:
        other = pool.submit(file, make_arrival(1))
        wait_until(lambda: len(line._waiting) == 1)
        assert record(line, make_arrival(2)).kind == "new"
        assert other.result(20).kind == "new"
    assert len(commits) == 1


def test_who_commits_waits_for_nothing_that_is_given_up(line: Filing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filing, "GATHER_S", 100)
    with ThreadPoolExecutor(1) as pool:
        with line.coming(1), line.coming(1):
            other = pool.submit(record, line, make_arrival(1))
            wait_until(lambda: len(line._waiting) == 1)
        assert other.result(20).kind == "new"


def test_what_waits_is_committed_together(line: Filing, engine: Engine, sessions: Sessions) -> None:
    arrivals = [make_arrival(1 + number // 4, number) for number in range(GROUP + 6)]
    recorded, commits = record_behind(line, engine, arrivals)
    assert {one.result().kind for one in recorded} == {"new"}
    assert commits == 3  # the first, and two groups
    assert count(sessions, InstanceRow) == GROUP + 7
    assert count(sessions, AuditRow) == 1 + len({arrival.association for arrival in arrivals})


def test_the_same_instance_twice_in_a_group_is_filed_once(line: Filing, engine: Engine, sessions: Sessions) -> None:
    recorded, _ = record_behind(line, engine, [make_arrival(1), make_arrival(1), make_arrival(2)])
    assert sorted(one.result().kind for one in recorded) == ["new", "new", "repeat"]
    assert count(sessions, InstanceRow) == 3


def test_what_comes_together_is_answered_one_by_one(line: Filing, sessions: Sessions) -> None:
    arrivals = [make_arrival(1, 1), make_arrival(1, 1), make_arrival(1, 2)]
    assert [getattr(one, "kind", one) for one in line.record(arrivals)] == ["new", "repeat", "new"]
    assert count(sessions, InstanceRow) == 2


def test_what_fails_for_one_fails_for_no_other(
    line: Filing, engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = [make_arrival(number) for number in range(1, 6)]

    def refuse(session: Session, of_group: Any, *arguments: Any) -> Any:
        if arrivals[2] in of_group:
            raise ZeroDivisionError
        return queries.record_instances(session, of_group, *arguments)

    monkeypatch.setattr(filing, "record_instances", refuse)
    recorded, _ = record_behind(line, engine, arrivals)
    assert [one.exception() is None for one in recorded] == [True, True, False, True, True]
    assert isinstance(recorded[2].exception(), ZeroDivisionError)
    assert count(sessions, InstanceRow) == 5
    monkeypatch.undo()
    assert record(line, arrivals[2]).kind == "new"


@pytest.mark.parametrize(("sqlstate", "tries", "failed"), [(None, 1, 4), ("40P01", 5, 0)])
def test_a_database_that_is_away_is_asked_once_and_a_deadlock_undone(
    line: Filing, engine: Engine, monkeypatch: pytest.MonkeyPatch, sqlstate: str | None, tries: int, failed: int
) -> None:
    asked: list[int] = []
    make_rows = line._record

    def fail(arrivals: Any) -> Any:
        asked.append(len(arrivals))
        if len(arrivals) > 1:
            cause = Exception("away")
            cause.sqlstate = sqlstate  # type: ignore[attr-defined]
            raise OperationalError("INSERT", {}, cause)
        return make_rows(arrivals)

    monkeypatch.setattr(line, "_record", fail)
    recorded, _ = record_behind(line, engine, [make_arrival(number) for number in range(1, 5)])
    assert len(asked) == tries + 1
    assert [one.exception() is not None for one in recorded].count(True) == failed


def test_two_receivers_file_the_same_studies_at_once(sessions: Sessions) -> None:
    lines = [Filing(sessions, timedelta(seconds=5)) for _ in range(2)]
    arrivals = [make_arrival(number % 10, number) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        recorded = list(pool.map(lambda pair: record(lines[pair[0] % 2], pair[1]), enumerate(arrivals)))
    assert {one.kind for one in recorded} == {"new"}
    assert count(sessions, InstanceRow) == 200


# ---- what a group costs, and what becomes of it ----------------------------------------------------------------------


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements from now on, whichever way they go; one for many rows is one."""
    statements: list[str] = []
    give = direct._give

    def note(statement: Any, *arguments: Any) -> Any:
        statements.append(str(statement))
        return give(statement, *arguments)

    monkeypatch.setattr(direct, "_give", note)
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    return statements


@pytest.mark.parametrize("size", [2, 16])
def test_a_group_takes_as_many_statements_as_two_instances(
    line: Filing, engine: Engine, asked: list[str], size: int
) -> None:
    is_sqlite = engine.dialect.name == "sqlite"
    line._record([make_arrival(study) for study in range(1, size + 1)])
    assert len(asked) == (7 if is_sqlite else 6)
    asked.clear()
    line._record([make_arrival(study, 2) for study in range(1, size + 1)])
    assert len(asked) == (7 if is_sqlite else 8)
    asked.clear()
    line._record([make_arrival(study, 3) for study in range(size // 2 + 1, size // 2 + size + 1)])
    assert len(asked) == 10


def test_a_job_that_is_closed_meanwhile_is_not_prolonged_but_followed(
    line: Filing, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler closes one of two jobs that were RECEIVING when they were looked at."""
    jobs = [one.job_id for one in line._record([make_arrival(1), make_arrival(2), make_arrival(3)])]
    write = revisions.write

    def close_first(connection: Connection, statement: Any, rows: Any) -> int:
        if statement is revisions._PROLONG:
            connection.execute(update(JobRow).where(JobRow.job_id == jobs[1]).values(state="COMPLETE"))
        return write(connection, statement, rows)

    monkeypatch.setattr(revisions, "write", close_first)
    later = [replace(make_arrival(study, 2), at=NOW + timedelta(seconds=3)) for study in (1, 2, 3)]
    recorded = line._record(later)
    assert [one.revision for one in recorded] == [1, 2, 1]
    assert [one.job_id in jobs for one in recorded] == [True, False, True]
    with sessions.begin() as session:
        states = {job.job_id: job.state for job in session.scalars(select(JobRow))}
        seen = set(session.scalars(select(JobRow.last_instance_at).where(JobRow.state == "RECEIVING")))
    assert states[jobs[1] or 0] == "CANCELLED" and list(states.values()).count("RECEIVING") == 3
    assert seen == {NOW + timedelta(seconds=3)}


def tell(sessions: Sessions) -> list[Any]:
    """Return what is kept of instances, jobs, timelines and links."""
    instance, job, row = InstanceRow, JobRow, EventRow
    statements = (
        select(instance.sop_instance_uid, instance.revision).order_by(instance.sop_instance_uid),
        select(job.study_instance_uid, job.revision, job.state, job.due_at).order_by(job.study_instance_uid),
        select(row.study_instance_uid, row.event, row.detail).order_by(row.study_instance_uid, row.detail),
        select(ReportReferenceRow.study_instance_uid, ReportReferenceRow.revision),
    )
    with sessions.begin() as session:
        return [[tuple(found) for found in session.execute(statement)] for statement in statements]


def test_a_report_about_a_study_that_comes_with_it_prolongs_the_job_of_that(line: Filing, sessions: Sessions) -> None:
    image, unseen = make_arrival(1), make_arrival(3)
    report = read_instance(encode(make_report_dataset("Effusion.", study="2", instance=1)))
    about = {one.instance.study_instance_uid: one.instance.sop_instance_uid for one in (image, unseen)}
    report = replace(
        report, patient_id=image.instance.patient_id, evidence=tuple(about.values()), evidence_studies=tuple(about)
    )
    first, second = line._record([image, replace(image, instance=report)])
    assert (first.revision, second.revision) == (1, 1)
    instances, jobs, events, links = tell(sessions)
    assert len(instances) == 2
    assert [(revision, state) for _, revision, state, _ in jobs] == [(1, "RECEIVING")] * 2
    told = sorted(kind for uid, kind, _ in events if uid == image.instance.study_instance_uid)
    assert told == ["instance filed", "report referred"]
    assert sorted(links) == sorted((uid, 1) for uid in about)
