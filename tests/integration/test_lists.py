"""Lists of jobs, deliveries and audit events, by whatever filters: the same as looking at every row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.queries import DispatchFilter, JobFilter, make_sessions
from dicom_node.tables import AuditRow, DispatchRow, InstanceRow, JobRow, StudyRow
from tests.backlog import UID_OF_FIRST, fill

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
JOBS = 240


@pytest.fixture
def filled(engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Two years of jobs, of which some old ones changed an hour ago."""
    fill(engine, JOBS, NOW, 24)
    sessions = make_sessions(engine)
    with sessions.begin() as session:
        late = update(JobRow).where(JobRow.job_id.in_((3, 8, 40, 106)))
        session.execute(late.values(updated_at=NOW - timedelta(hours=1)))
    yield sessions


def expected(session: Session, wanted: JobFilter) -> list[int]:
    rows = session.execute(select(JobRow, StudyRow).join(StudyRow)).all()
    asked: dict[str, Any] = {
        "state": lambda job, _: job.state, "study": lambda job, _: job.study_instance_uid,
        "patient": lambda _, study: study.patient_id, "accession": lambda _, study: study.accession_number,
    }  # fmt: skip
    fits = [
        job.job_id
        for job, study in rows
        if all(getattr(wanted, name) in (None, value(job, study)) for name, value in asked.items())
        and (wanted.since is None or job.updated_at >= wanted.since)
    ]
    return sorted(fits, reverse=True)[: wanted.limit]


def test_jobs_by_every_combination_of_filters(filled: sessionmaker[Session]) -> None:
    states = (None, "DELIVERED", "FAILED", "NOT_APPLICABLE", "RECEIVING", "CANCELLED")
    who: tuple[dict[str, str], ...] = (
        {}, {"study": UID_OF_FIRST}, {"patient": "PID-7"}, {"patient": "PID-7", "accession": "ACC-7"},
        {"accession": "ACC-106"}, {"patient": "nobody"},
    )  # fmt: skip
    instants = (None, NOW - timedelta(hours=2), NOW - timedelta(days=30), NOW - timedelta(days=500), NOW)
    with filled() as session:
        for state, one, since, limit in itertools.product(states, who, instants, (1, 5, 50)):
            wanted = JobFilter(state=state, since=since, limit=limit, **one)
            assert [job.job_id for job in queries.list_jobs(session, wanted)] == expected(session, wanted), wanted


def test_deliveries_by_every_combination_of_filters(filled: sessionmaker[Session]) -> None:
    with filled() as session:
        rows = session.scalars(select(DispatchRow).order_by(DispatchRow.dispatch_id.desc())).all()
        states, names = (None, "PENDING", "DELIVERED", "DEAD"), (None, "pacs", "research", "moved", "nowhere")
        for state, name, limit in itertools.product(states, names, (1, 7, 500)):
            fits = [r.dispatch_id for r in rows if state in (None, r.state) and name in (None, r.destination)]
            found = queries.list_dispatches(session, DispatchFilter(state, name, limit))
            assert [one.dispatch_id for one in found] == fits[:limit], (state, name, limit)


def test_audit_events_by_kind_and_time(filled: sessionmaker[Session]) -> None:
    with filled() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.at.desc(), AuditRow.id.desc())).all()
        kinds, instants = (None, "results exported", "no such"), (None, NOW - timedelta(days=100))
        for kind, since, limit in itertools.product(kinds, instants, (3, 1000)):
            fits = [r.id for r in rows if kind in (None, r.kind) and (since is None or r.at >= since)]
            assert [one.audit_id for one in queries.list_audit(session, limit, kind, since)] == fits[:limit]


def test_counts(filled: sessionmaker[Session]) -> None:
    with filled() as session:
        assert sum(queries.count_jobs(session).values()) == JOBS
        assert queries.count_instances(session) == len(session.scalars(select(InstanceRow.sop_instance_uid)).all())


def test_postgresql_estimates_many_instances(filled: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows were analysed; those that came since are in the pages that there are now."""
    monkeypatch.setattr("dicom_node.queries.counts.COUNTED", 100)
    with filled() as session:
        counted = len(session.scalars(select(InstanceRow.sop_instance_uid)).all())
        assert queries.count_instances(session) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_kept_studies_are_looked_at_in_steps(filled: sessionmaker[Session], step: int) -> None:
    before = NOW - timedelta(days=5)
    last: queries.Kept | None = None
    seen: list[queries.Kept] = []
    with filled() as session:
        while kept := queries.kept_studies(session, before, last, step):
            seen += kept
            last = kept[-1]
        of_kept = select(InstanceRow).where(InstanceRow.removed_at.is_(None), InstanceRow.received_at < before)
        rows = session.scalars(of_kept).all()
    assert seen == sorted(seen)
    assert {study for _, study in seen} == {row.study_instance_uid for row in rows}
