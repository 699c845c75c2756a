"""A job database as it is after years: made by few statements, and every question that the node asks of it.

`fill` makes the rows; `QUESTIONS` are what `bench/backlog.py` measures and `tests/integration/test_plans.py` explains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from dicom_node import queries
from dicom_node.instance import read_instance
from dicom_node.queries import AuditSearch, DispatchFilter, JobFilter, JobSearch
from dicom_node.tables import Base
from tests.builders import encode, make_cxr_dataset, make_report_dataset

YEARS_S = 2 * 365 * 24 * 3600
LEASE = timedelta(minutes=5)

# of each hundred studies five have no report, two failed, and one got a second revision; the last ones are under way
_NUMBERS = """
CREATE TEMPORARY TABLE numbers AS
SELECT n, study, {uid_of_study} AS study_uid, revision, state, {at} AS at, {later} AS later, {due} AS due FROM (
    SELECT n, CASE WHEN n % 100 = 8 THEN n - 1 ELSE n END AS study, CASE WHEN n % 100 = 8 THEN 2 ELSE 1 END AS revision,
           {now} - {years} / {count} * ({count} - n) AS seconds,
           CASE WHEN n % 100 = 7 THEN 'CANCELLED' WHEN n % 100 = 8 THEN 'DELIVERED'
                WHEN n > {count} - {under_way} THEN CASE WHEN n % 8 = 0 THEN 'RECEIVING' WHEN n % 8 < 3 THEN 'COMPLETE'
                     WHEN n % 8 = 3 THEN 'GROUNDED' ELSE 'WRITTEN' END
                WHEN n % 100 < 5 THEN 'NOT_APPLICABLE' WHEN n % 100 < 7 THEN 'FAILED' ELSE 'DELIVERED' END AS state
    FROM ({series}) AS series) AS drawn
"""

_STUDIES = """
INSERT INTO studies (study_instance_uid, revision, patient_id, accession_number, created_at)
SELECT study_uid, CASE WHEN n % 100 = 7 AND n < :count THEN 2 ELSE 1 END,
       CASE WHEN n % 500 = 0 THEN 'PHANTOM' ELSE 'PID-' || (n % (:count / 4 + 1)) END,
       CASE WHEN n % 20 = 0 THEN '' ELSE 'ACC-' || n END, at FROM numbers WHERE revision = 1
"""

_INSTANCES = """
INSERT INTO instances (sop_instance_uid, study_instance_uid, series_instance_uid, sop_class_uid, transfer_syntax_uid,
    modality, revision, storage_key, sha256, size_bytes, calling_ae_title, received_at, removed_at, facts)
SELECT study_uid || '.{k}', study_uid, study_uid || '.{k}.1', '{sop_class}', '1.2.840.10008.1.2.1', '{modality}', 1,
       n || '/{k}.' || (n * 2654435761 % 4294967296) || '.dcm', :digest, 8000000, 'PACS', at,
       CASE WHEN state = 'DELIVERED' AND n < :count * 9 / 10 THEN later END,
       json(replace(:facts, '@', study_uid))
FROM numbers WHERE revision = 1 AND {which}
"""

_CONFLICTS = """
INSERT INTO conflicts (sop_instance_uid, sha256, storage_key, calling_ae_title, received_at)
SELECT study_uid || '.1', :digest, n || '/other', 'PACS', at FROM numbers WHERE revision = 1 AND n % 50 = 0
"""

_JOBS = """
INSERT INTO jobs (job_id, study_instance_uid, revision, state, outcome, failure, attempts, deaths, due_at, lease_token,
    lease_until, first_instance_at, last_instance_at, step_since, model, selection, timings, created_at, updated_at)
SELECT n, study_uid, revision, state,
       CASE WHEN state IN ('NOT_APPLICABLE', 'FAILED') THEN state
            WHEN state IN ('WRITTEN', 'DELIVERED') THEN 'RESULT' END,
       CASE WHEN state = 'FAILED' THEN 'the archive did not take it' END, 0, 0, due,
       CASE WHEN state = 'COMPLETE' AND n > :count - 64 THEN 'worker' END,
       CASE WHEN state = 'COMPLETE' AND n > :count - 64 THEN due END,
       at, at, later, json(CAST(:model AS TEXT)), json(replace(:selection, '@', study_uid)), json('{"ground": 0.41}'),
       at, later
FROM numbers
"""

_DISPATCHES = """
INSERT INTO dispatches (job_id, destination, state, since, updated_at, attempts, deaths, failure, due_at, lease_token,
    lease_until)
SELECT n, '{destination}',
       CASE WHEN state = 'DELIVERED' THEN 'DELIVERED' WHEN state = 'FAILED' THEN 'DEAD' WHEN n % 2 = 0 THEN 'PENDING'
            ELSE 'CONFIRMING' END, later, later, 0, 0, NULL, due,
       CASE WHEN state = 'WRITTEN' AND n > :count - 64 THEN 'worker' END,
       CASE WHEN state = 'WRITTEN' AND n > :count - 64 THEN due END
FROM numbers WHERE state IN ('DELIVERED', 'FAILED', 'WRITTEN') AND {which}
"""

_RESULTS = """
INSERT INTO results (sop_instance_uid, job_id, part, sop_class_uid, series_instance_uid, storage_key, sha256,
    created_at)
SELECT study_uid || '.{k}.' || revision, n, {part}, '{sop_class}', study_uid || '.{k}', n || '/results', :digest, later
FROM numbers WHERE state IN ('DELIVERED', 'FAILED', 'WRITTEN')
"""

_DELIVERIES = """
INSERT INTO deliveries (job_id, destination, part, sop_instance_uid, state, status, confirmed_by, updated_at)
SELECT job_id, destination, part, sop_instance_uid,
       CASE WHEN state = 'DELIVERED' THEN 'DELIVERED' WHEN state = 'DEAD' THEN 'FAILED'
            WHEN state = 'CONFIRMING' THEN 'STORED' ELSE 'PENDING' END,
       0, CASE WHEN state = 'DELIVERED' THEN 'commitment' END, updated_at
FROM dispatches JOIN results USING (job_id)
"""

_COMMITMENTS = """
INSERT INTO commitments (transaction_uid, dispatch_id, asked_at, answered_at)
SELECT '2.25.' || (dispatch_id * 2654435761 % 4294967296) || dispatch_id, dispatch_id, since, updated_at
FROM dispatches WHERE state IN ('DELIVERED', 'CONFIRMING')
"""

_FINDINGS = """
INSERT INTO findings (job_id, number, sop_instance_uid, phrase, source_start, source_end, boxes, localized, negated,
    uncertainty)
SELECT n, 1, study_uid || '.1', 'small left apical pneumothorax', 0, 30,
       json('[{"xyxy": [311.0, 120.5, 905.0, 640.0], "score": 0.83}]'), TRUE, FALSE, 0.1
FROM numbers WHERE state IN ('DELIVERED', 'FAILED', 'WRITTEN')
"""

_EVENTS = """
INSERT INTO events (study_instance_uid, job_id, at, event, detail)
SELECT study_uid, n, at, '{event}', 'of ' || study_uid FROM numbers ORDER BY n
"""

_AUDIT = """
INSERT INTO audit (at, due_at, kind, association, process, event, sent_at)
SELECT at, at, '{kind}', {association}, 'receiver', json(replace(:event, '@', study_uid)),
       CASE WHEN n < :count - 200 THEN at END
FROM numbers WHERE {which} ORDER BY n
"""

EVENTS = (
    "instance filed",
    "instance filed",
    "study complete",
    "study grounded",
    "results written",
    "results delivered",
)
SR, GSPS, DX, BASIC_SR = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("88.34", "11.1", "1.1.1", "88.11"))


def fill(engine: Engine, count: int, now: datetime, under_way: int) -> None:
    """Make the rows of `count` jobs in an empty database, indices last; so many are under way."""
    indices = [index for table in Base.metadata.sorted_tables for index in table.indexes]
    with engine.connect() as connection, _hurried(connection):
        for index in indices:
            index.drop(connection)
        for statement, values in _statements(connection.dialect.name, count, now, under_way):
            named = {name: value for name, value in values.items() if f":{name}" in statement}
            connection.execute(text(statement), named)
        connection.execute(text("DROP TABLE numbers"))
        for index in indices:
            index.create(connection)
        if connection.dialect.name == "postgresql":  # which numbers jobs by a sequence
            connection.execute(text("SELECT setval('jobs_job_id_seq', (SELECT max(job_id) FROM jobs))"))
    engine.dispose()  # its next connections are as the node's are
    if engine.dialect.name == "postgresql":  # as its autovacuum does by itself; nobody does it for SQLite
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))


@contextmanager
def _hurried(connection: Connection) -> Iterator[None]:
    """A transaction that no reader and no crash is to survive, and in which nobody looks whether rows refer to rows."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        for setting in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -500000"):
            driver.execute(f"PRAGMA {setting}")
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        yield


def _statements(dialect: str, count: int, now: datetime, under_way: int) -> list[tuple[str, dict[str, object]]]:
    digest = "ab" * 32
    image, report = read_instance(encode(make_cxr_dataset())), read_instance(encode(make_report_dataset("Effusion.")))
    study = {"study_instance_uid": "@", "series_instance_uid": "@.1.1"}
    facts = {
        "1": json.dumps(image.facts() | study | {"sop_instance_uid": "@.1"}),
        "2": json.dumps(report.facts() | study | {"sop_instance_uid": "@.2"}),
        "3": json.dumps(image.facts() | study | {"sop_instance_uid": "@.3"}),
    }
    values: dict[str, object] = {
        "count": count, "digest": digest,
        "event": json.dumps({"kind": "instances received", "study_instance_uid": "@"}),
        "model": json.dumps({"name": "default", "version": "1", "sha256": digest}),
        "selection": json.dumps({"report": "@.2", "images": ["@.1"], "why": {"@.1": "used", "@.2": "used"}}),
    }  # fmt: skip
    return [
        (_numbers(dialect, count, now, under_way), values),
        (_STUDIES, values),
        *(
            (_INSTANCES.format(k=k, sop_class=sop_class, modality=modality, which=which),
             values | {"facts": facts[k]})
            for k, sop_class, modality, which in (
                ("1", DX, "DX", "1 = 1"), ("2", BASIC_SR, "SR", "n % 100 > 4"), ("3", DX, "DX", "n % 5 = 0"),
            )
        ),
        (_CONFLICTS, values),
        (_JOBS, values),
        *(
            (_DISPATCHES.format(destination=name, which=which), values)
            for name, which in (("pacs", "1 = 1"), ("research", "n % 10 = 0"), ("moved", f"n < {count // 100}"))
        ),
        (_RESULTS.format(k="90", part="'sr'", sop_class=SR), values),
        (_RESULTS.format(k="91", part="'gsps:' || study_uid || '.1'", sop_class=GSPS), values),
        (_DELIVERIES, values),
        (_COMMITMENTS, values),
        (_FINDINGS, values),
        *((_EVENTS.format(event=event), values) for event in EVENTS),
        *(
            (_AUDIT.format(kind=kind, association=association, which=which), values)
            for kind, association, which in (
                ("instances received", "'a' || n", "1 = 1"), ("results exported", "NULL", "state = 'DELIVERED'"),
                ("application start", "NULL", "n % 2000 = 0"),
            )
        ),
    ]  # fmt: skip


def _numbers(dialect: str, count: int, now: datetime, under_way: int) -> str:
    series = f"SELECT generate_series(1, {count}) AS n"
    instant = "to_timestamp({})"
    if dialect == "sqlite":
        series = (
            "WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted "
            f"WHERE n < {count}) SELECT n FROM counted"
        )
        instant = "strftime('%Y-%m-%d %H:%M:%f000', {}, 'unixepoch')"
    seconds = int(now.timestamp())
    due = f"CASE WHEN n > {count - under_way} THEN {seconds} + n * 61 % 600 ELSE seconds END"
    return _NUMBERS.format(
        series=series, count=count, under_way=under_way, years=YEARS_S, now=seconds,
        at=instant.format("seconds"), later=instant.format("seconds + 30"), due=instant.format(due),
        uid_of_study=_UID_OF_STUDY,
    )  # fmt: skip


# of every four devices one makes UIDs of random numbers, the others count
_UID_OF_STUDY = """
CASE WHEN study % 4 = 0 THEN '2.25.' || (study * 2654435761 % 4294967296) || '0000000000000000000' || study
     ELSE '1.2.840.113619.2.203.' || (study % 4) || '.' || (1700000000 + study) END
"""

UID_OF_FIRST = "1.2.840.113619.2.203.1.1700000001"
"""Study Instance UID of job 1."""

Question = Callable[[Session, datetime], object]


def _list(**wanted: object) -> Question:
    return lambda session, _: queries.list_jobs(session, JobFilter(**wanted))


def _since(**ago: float) -> Callable[..., Question]:
    def ask(**wanted: object) -> Question:
        return lambda session, now: queries.list_jobs(session, JobFilter(since=now - timedelta(**ago), **wanted))

    return ask


SEARCHES: dict[str, Callable[[datetime], JobSearch]] = {
    "any": lambda _: JobSearch(),
    "a later page": lambda _: JobSearch(before=2000),
    "the page before": lambda _: JobSearch(after=2000),
    "state": lambda _: JobSearch(state="FAILED"),
    "state, a later page": lambda _: JobSearch(state="DELIVERED", before=2000),
    "patient": lambda _: JobSearch("PID-77"),
    "patient of many studies": lambda _: JobSearch("PHANTOM"),
    "accession, state": lambda _: JobSearch("ACC-77", "DELIVERED"),
    "study UID": lambda _: JobSearch(UID_OF_FIRST),
    "instance UID": lambda _: JobSearch(f"{UID_OF_FIRST}.1"),
    "number": lambda _: JobSearch("77"),
    "nobody": lambda _: JobSearch("no such"),
    "of a day": lambda now: JobSearch(since=now - timedelta(days=100), until=now - timedelta(days=99)),
    "of a day, state": lambda now: JobSearch("", "FAILED", "", now - timedelta(days=100), now - timedelta(days=99)),
    "words": lambda _: JobSearch(text="no such words"),
    "words, state": lambda _: JobSearch(state="FAILED", text="archive did"),
    "AE title": lambda _: JobSearch(ae_title="NOBODY"),
    "AE title, state, of a day": lambda now: JobSearch(
        "", "FAILED", "NOBODY", now - timedelta(days=100), now - timedelta(days=99)
    ),
}
"""What people look for in the console."""


def _removable(session: Session, now: datetime) -> object:
    before = now - timedelta(days=30)
    last: queries.Kept | None = None
    kept = queries.kept_studies(session, before, last, 500)
    kept = queries.kept_studies(session, before, kept[-1], 500) if kept else kept
    return queries.removable_studies(session, before, {study for _, study in kept})


SWEEP: dict[str, Question] = {
    "lease tokens": lambda session, _: queries.lease_tokens(session),
    "leases of the dead": lambda session, now: queries.free_leases(session, "nobody", now),
    "studies to close": lambda session, now: queries.due_receiving(session, now, 200),
    "the next study to close": lambda session, now: queries.next_receiving(session, now),
    "jobs to ring for": lambda session, now: queries.jobs_to_ring(session, now, 200),
    "jobs rung for": lambda session, now: queries.rung(session, [1, 2, 3], now, now),
    "jobs to open": lambda session, now: queries.undispatched_jobs(session, now, 200),
    "deliveries to ring for": lambda session, now: queries.dispatches_to_ring(session, now, 200),
    "deliveries rung for": lambda session, now: queries.dispatches_rung(session, [1, 2, 3], now, now),
    "requests to ring for": lambda session, now: queries.requests_to_ring(session, now, 200),
}
"""What the scheduler asks in every sweep."""

LISTS: dict[str, Question] = {
    "jobs": _list(),
    "jobs, limit 1000": _list(limit=1000),
    **{
        f"jobs, {state}": _list(state=state)
        for state in ("RECEIVING", "COMPLETE", "WRITTEN", "DELIVERED", "NOT_APPLICABLE", "FAILED", "CANCELLED")
    },
    "jobs, study": _list(study=UID_OF_FIRST),
    "jobs, study, DELIVERED": _list(study=UID_OF_FIRST, state="DELIVERED"),
    "jobs, patient": _list(patient="PID-77"),
    "jobs, patient of many studies": _list(patient="PHANTOM"),
    "jobs, patient, FAILED": _list(patient="PID-77", state="FAILED"),
    "jobs, patient, accession": _list(patient="PID-77", accession="ACC-77"),
    "jobs, patient, since": _since(days=365)(patient="PID-77"),
    "jobs, accession": _list(accession="ACC-77"),
    "jobs, accession, unknown": _list(accession="no such"),
    "jobs, since a minute": _since(minutes=1)(),
    "jobs, since a year": _since(days=365)(),
    "jobs, since a minute, DELIVERED": _since(minutes=1)(state="DELIVERED"),
    "jobs, since a year, DELIVERED": _since(days=365)(state="DELIVERED"),
    "jobs, since a minute, RECEIVING": _since(minutes=1)(state="RECEIVING"),
    "jobs, since an hour, FAILED": _since(hours=1)(state="FAILED"),
    "jobs, all filters": _since(days=365)(study=UID_OF_FIRST, patient="PID-1", accession="ACC-1", state="FAILED"),
    "job": lambda session, _: queries.show_job(session, 8),
    "count of jobs": lambda session, _: queries.count_jobs(session),
    "count of instances": lambda session, _: queries.count_instances(session),
    "oldest due": lambda session, now: queries.oldest_due(session, now),
    "longest in each state": lambda session, _: queries.waiting_since(session),
    "quarantined lately": lambda session, now: queries.count_quarantined(session, now - timedelta(days=1)),
    "how pacs fares": lambda session, now: queries.destination_counts(session, "pacs", now - timedelta(days=1)),
    "processes": lambda session, _: queries.list_processes(session),
    "oldest message": lambda session, _: queries.oldest_message(session),
    "deliveries": lambda session, _: queries.list_dispatches(session, DispatchFilter()),
    **{
        f"deliveries, {state}": lambda session, _, state=state: queries.list_dispatches(session, DispatchFilter(state))
        for state in ("PENDING", "DELIVERED", "DEAD", "CANCELLED")
    },
    **{
        f"deliveries to {name}": lambda session, _, name=name: queries.list_dispatches(
            session, DispatchFilter(destination=name)
        )
        for name in ("pacs", "moved", "nowhere")
    },
    "deliveries to pacs, DEAD": lambda session, _: queries.list_dispatches(session, DispatchFilter("DEAD", "pacs")),
    "audit": lambda session, _: queries.list_audit(session, 100),
    "audit, kind": lambda session, _: queries.list_audit(session, 100, "application start"),
    "audit, unknown kind": lambda session, _: queries.list_audit(session, 100, "association refused"),
    "audit, since": lambda session, now: queries.list_audit(session, 100, None, now - timedelta(days=365)),
    "audit, kind, since": lambda session, now: queries.list_audit(
        session, 100, "application start", now - timedelta(hours=1)
    ),
    **{
        f"search, {name}": lambda session, now, wanted=wanted: queries.search_jobs(session, wanted(now))
        for name, wanted in SEARCHES.items()
    },
    **{
        f"look for deliveries, {state} to {name or 'any'}": lambda session, _, state=state, name=name: (
            queries.search_dispatches(session, state, name, before=1000)
        )
        for state, name in (("DEAD", ""), ("DEAD", "pacs"), ("PENDING", "pacs"))
    },
    "look for events": lambda session, now: queries.search_audit(session, AuditSearch(before=(now, 10**6))),
    "look for events, kind, who": lambda session, now: queries.search_audit(
        session, AuditSearch("instances received", UID_OF_FIRST, since=now - timedelta(days=365), until=now)
    ),
    "the last day by hour": lambda session, now: queries.count_by_hour(session, now),
    "longest in each state of the way": lambda session, _: queries.longest_waiting(session),
    "contacts of peers": lambda session, _: queries.peer_contacts(session),
    "contacts of destinations": lambda session, _: queries.destination_states(session),
    "study": lambda session, _: queries.show_study(session, UID_OF_FIRST),
    "job in a list": lambda session, _: queries.find_job(session, 8),
    "audit to send": lambda session, now: queries.unsent_audit(session, now, 200),
    "audit not sent": lambda session, _: queries.count_unsent_audit(session),
    "inputs to remove": _removable,
}
"""What people, the console, the collector of audit messages and the retention rule ask."""

STEPS: dict[str, Question] = {
    "instances of a study": lambda session, _: queries.instances_of(session, UID_OF_FIRST),
    "held instances": lambda session, _: queries.held_instances(session, [f"{UID_OF_FIRST}.1", "1.2.3"]),
    "jobs that wait for the model": lambda session, now: queries.waiting_jobs(session, "COMPLETE", now, 8),
    "claim, COMPLETE": lambda session, now: queries.claim(session, 1, "COMPLETE", "me", now, LEASE),
    "claim, GROUNDED": lambda session, now: queries.claim(session, 1, "GROUNDED", "me", now, LEASE),
    "claim of a delivery": lambda session, now: queries.claim_dispatch(session, 1, "me", now, LEASE),
    "earlier results": lambda session, _: queries.previous_results(session, UID_OF_FIRST, 2),
    "SR class that pacs takes": lambda session, _: queries.accepted_sr_class(session, "pacs"),
    "SR class that nowhere takes": lambda session, _: queries.accepted_sr_class(session, "nowhere"),
    "results": lambda session, _: queries.load_results(session, 10),
    "deliveries of a job": lambda session, _: queries.load_deliveries(session, 10, "pacs"),
    "who was asked": lambda session, _: queries.destination_asked(session, "1.2.3"),
}
"""What workers ask at each step."""

QUESTIONS = SWEEP | LISTS | STEPS
