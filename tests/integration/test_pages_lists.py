"""The lists of the console's pages: what is found, page by page, on both engines, and who may see and do what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from dicom_node.audit import AuditEvent
from dicom_node.queries import (
    AuditSearch,
    JobSearch,
    count_by_hour,
    make_engine,
    make_sessions,
    note_audit,
    peer_contacts,
    search_audit,
    search_dispatches,
    search_jobs,
    upgrade_schema,
)
from dicom_node.queries.search import first_job_at
from dicom_node.tables import JobRow, ResultRow
from tests.backlog import UID_OF_FIRST, fill
from tests.console import Console, csrf_in
from tests.fakes import FakePacs
from tests.pages import Node
from tests.servers import create_database

NOW = datetime(2026, 1, 2, 12, 30, tzinfo=UTC)
JOBS = 600


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("lists")
    url = f"sqlite:///{folder}/knowmvg.db"
    if request.param == "postgresql":
        url = create_database(request.getfixturevalue("postgres_server"), "page_lists")
    upgrade_schema(url)
    engine = make_engine(url)
    fill(engine, JOBS, NOW, 40)
    yield engine
    engine.dispose()


@pytest.fixture
def session(filled: Engine) -> Iterator[Session]:
    with make_sessions(filled)() as opened:
        yield opened
        opened.rollback()


def numbers(session: Session, wanted: JobSearch) -> list[int]:
    return [job.job_id for job in search_jobs(session, wanted).jobs]


@pytest.mark.parametrize(
    ("who", "found"),
    [
        ("ACC-77", [77]),
        (UID_OF_FIRST, [1]),
        (f"{UID_OF_FIRST}.1", [1]),
        ("PHANTOM", [500]),
        ("77", [77]),
        ("nobody", []),
    ],
)
def test_whoever_is_named_is_found(session: Session, who: str, found: list[int]) -> None:
    assert numbers(session, JobSearch(who)) == found


def test_all_studies_of_a_patient_are_found_the_latest_first(session: Session) -> None:
    patients = {job.patient_id for job in search_jobs(session, JobSearch("PID-77")).jobs}
    named = numbers(session, JobSearch("PID-77"))
    assert patients == {"PID-77"}
    assert len(named) > 1
    assert named == sorted(named, reverse=True)


def test_a_result_leads_to_its_job(session: Session) -> None:
    uid = session.scalar(select(ResultRow.sop_instance_uid).where(ResultRow.job_id == 77))
    assert numbers(session, JobSearch(str(uid))) == [77]


def test_pages_follow_each_other_without_gap_or_repeat_and_lead_back(session: Session) -> None:
    seen: list[int] = []
    before: int | None = None
    pages = []
    while True:
        page = search_jobs(session, JobSearch(state="DELIVERED", before=before, limit=50))
        seen += [job.job_id for job in page.jobs]
        pages.append(page)
        if page.older is None:
            break
        before = page.older
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == session.scalar(select(func.count()).where(JobRow.state == "DELIVERED"))
    assert pages[0].newer is None
    back = search_jobs(session, JobSearch(state="DELIVERED", after=pages[2].newer, limit=50))
    assert back.jobs == pages[1].jobs
    assert search_jobs(session, JobSearch(state="DELIVERED", after=pages[1].newer, limit=50)).newer is None


def test_times_are_when_a_study_came(session: Session) -> None:
    rows = {row.job_id: row.created_at for row in search_jobs(session, JobSearch(limit=JOBS)).jobs}
    since, until = NOW - timedelta(days=200), NOW - timedelta(days=100)
    found = numbers(session, JobSearch(since=since, until=until, limit=JOBS))
    assert found == [number for number, at in rows.items() if since <= at < until]
    assert found
    assert first_job_at(session, rows[300]) == 300
    assert first_job_at(session, NOW + timedelta(days=1)) == JOBS + 1
    assert first_job_at(session, NOW - timedelta(days=9999)) == 1


def test_words_of_a_failure_are_found_whatever_their_case(session: Session) -> None:
    found = numbers(session, JobSearch(text="ARCHIVE did", limit=JOBS))
    assert found == numbers(session, JobSearch(state="FAILED", limit=JOBS))
    assert numbers(session, JobSearch(text="100%")) == []
    assert numbers(session, JobSearch(text="archive_did")) == []


def test_a_sender_is_found_by_its_ae_title(session: Session) -> None:
    assert len(numbers(session, JobSearch(ae_title="PACS", state="FAILED", limit=JOBS))) > 5
    assert numbers(session, JobSearch(ae_title="NOBODY")) == []


def test_a_search_is_broken_off_and_goes_on_where_it_was(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.queries.search.LOOKED_AT", 100)
    everything = numbers(session, JobSearch(state="FAILED", limit=JOBS))
    found: list[int] = []
    before: int | None = None
    for _ in range(20):
        page = search_jobs(session, JobSearch(text="archive", before=before))
        found += [job.job_id for job in page.jobs]
        if page.older is None:
            break
        assert page.looked_to == page.older
        before = page.older
    assert found == everything


def test_dead_letters_are_listed_by_destination_page_by_page(session: Session) -> None:
    every = search_dispatches(session, "DEAD", limit=JOBS)
    assert {one.destination for one in every} == {"pacs", "moved"}
    first = search_dispatches(session, "DEAD", "pacs", limit=3)
    rest = search_dispatches(session, "DEAD", "pacs", before=first[-1].dispatch_id, limit=JOBS)
    assert [*first, *rest] == [one for one in every if one.destination == "pacs"]
    assert all(one.patient_id for one in every)


def test_the_day_is_counted_by_hour(session: Session) -> None:
    at = NOW - timedelta(hours=2)
    session.execute(update(JobRow).where(JobRow.job_id.in_([5, 6, 205])).values(updated_at=at))
    hours = count_by_hour(session, NOW)
    assert len(hours) == 24
    assert [hour.at for hour in hours] == sorted(hour.at for hour in hours)
    assert next(hour for hour in hours if hour.at == at.replace(minute=0)).failed == 3
    assert sum(hour.failed for hour in hours) == 3


def test_peers_are_known_by_their_last_association_and_refusal(session: Session) -> None:
    for minutes, kind, reason in ((9, "instances received", ""), (3, "instances received", ""),
                                  (1, "association refused", "not a peer")):  # fmt: skip
        event = AuditEvent(kind, actor="CR1", actor_address="10.0.0.1", reason=reason)
        note_audit(session, event, "receiver", NOW + timedelta(minutes=60 - minutes))
    session.flush()
    contact = peer_contacts(session)["CR1"]
    assert contact.received_at == NOW + timedelta(minutes=57)
    assert (contact.refused_at, contact.reason) == (NOW + timedelta(minutes=59), "not a peer")


def test_audit_events_are_found_and_paged(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    place = None
    while True:
        page = search_audit(session, AuditSearch("instances received", before=place, limit=70))
        seen += [entry.audit_id for entry in page.entries]
        if (place := page.older) is None:
            break
    assert len(seen) == len(set(seen)) == JOBS
    (mine,) = search_audit(session, AuditSearch("instances received", UID_OF_FIRST.upper())).entries
    assert mine.event.study_instance_uid == UID_OF_FIRST
    assert search_audit(session, AuditSearch(who=UID_OF_FIRST[:-1])).entries == ()
    monkeypatch.setattr("dicom_node.queries.audit.AUDIT_LOOKED_AT", 50)
    first = search_audit(session, AuditSearch("instances received", UID_OF_FIRST))
    assert first.entries == () and first.broken_off and first.older is not None


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path, {"receiver": {"min_free_bytes": 1, "peers": [{"ae_title": "CR1", "address": "10.0.0.1"}]}})
    made.file_studies()
    for role in ("viewer", "operator", "admin"):
        made.add_user(role, role)
    yield made
    made.close()


@pytest.mark.parametrize("path", ["/", "/jobs", "/jobs/1", "/destinations", "/audit", "/configuration"])
def test_every_page_is_shown_to_an_administrator_and_to_nobody_who_is_not_signed_in(
    console: Console, path: str
) -> None:
    answer = console.sign_in("admin").get(path)
    assert answer.status_code == 200
    assert "PID-whole" in answer.text or path not in ("/jobs", "/jobs/1")
    stranger = console.browser().get(path)
    assert stranger.status_code in (303, 302, 401)
    assert "PID-whole" not in stranger.text


@pytest.mark.parametrize("path", ["/audit", "/configuration"])
def test_some_pages_are_for_administrators_alone(console: Console, path: str) -> None:
    for role in ("viewer", "operator"):
        browser = console.sign_in(role)
        assert browser.get(path).status_code == 403
        assert f'href="{path}"' not in browser.get("/").text


def test_reading_the_trail_is_audited(console: Console) -> None:
    page = console.sign_in("admin").get("/audit").text
    assert [one.event.actor for one in console.events("audit trail read")] == ["admin"]
    assert "audit trail read" in page


@pytest.mark.parametrize(
    "path",
    ["/jobs?state=DONE", "/jobs?since=yesterday", "/jobs?before=0", "/jobs?colour=red", "/audit?until=x",
     "/jobs?who=%00", "/destinations?before=one"],
)  # fmt: skip
def test_what_no_page_knows_is_refused(console: Console, path: str) -> None:
    assert console.sign_in("admin").get(path).status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/jobs?since=0001-01-01T00:00&until=9999-12-31T23:59:59.999999", "/audit?since=0001-01-01&until=9999-12-31",
     "/jobs?before=2147483647&after=0", "/jobs?text=%25_%5C&ae=%25", "/audit?who=%22%5C&entry=4611686018427387904"],
)  # fmt: skip
def test_the_ends_of_what_may_be_asked_are_answered(console: Console, path: str) -> None:
    assert console.sign_in("admin").get(path).status_code == 200


def test_passwords_are_masked_in_the_configuration(tmp_path: Path) -> None:
    sections = {"broker": {"url": "redis://:s3cret@queue:6379/0"}}
    console = Console(tmp_path, sections)
    console.add_user("admin", "admin")
    page = console.sign_in("admin").get("/configuration").text
    assert "s3cret" not in page
    assert "queue:6379" in page
    console.close()


def test_jobs_that_were_chosen_are_cancelled_and_what_cannot_be_is_said(console: Console) -> None:
    browser = console.sign_in("operator")
    csrf = csrf_in(browser.get("/jobs").text)
    done = browser.post("/jobs/cancel", data={"csrf": csrf, "job": ["1", "99"]})
    assert done.status_code == 200
    assert "Cancelled: " in done.text
    assert "there is no job 99" in done.text
    assert "CANCELLED" in browser.get("/jobs/1").text
    assert "No job was chosen" in browser.post("/jobs/retry", data={"csrf": csrf}).text
    assert browser.post("/jobs/retry", data={"csrf": "0" * 64, "job": ["1"]}).status_code == 403


@pytest.mark.parametrize("what", ["retry", "cancel", "resend", "reground"])
def test_a_viewer_can_change_nothing(console: Console, what: str) -> None:
    browser = console.sign_in("viewer")
    csrf = csrf_in(browser.get("/jobs/1").text)
    assert browser.post(f"/jobs/1/{what}", data={"csrf": csrf}).status_code == 403
    assert browser.post("/jobs/retry", data={"csrf": csrf, "job": ["1"]}).status_code == 403


def test_a_dead_letter_is_replayed_and_its_destination_called(tmp_path: Path) -> None:
    with FakePacs() as pacs:
        pacs.status = 0xA900
        node = Node(tmp_path, pacs)
        node.deliver()
        browser = node.browse("operator")
        page = browser.get("/destinations").text
        assert "0xA900" in page
        pacs.status = 0x0000
        csrf = csrf_in(page)
        answer = browser.post("/deliveries/1/replay", data={"csrf": csrf})
        assert answer.headers["location"] == "/jobs/1?said=replay"
        assert "The dead letter is sent again" in browser.get(answer.headers["location"]).text
        node.settle(seconds=1)
        assert node.job(1)["state"] == "DELIVERED"
        assert "answers C-ECHO" in browser.post("/destinations/archive0/echo", data={"csrf": csrf}).text
        assert browser.post("/destinations/nowhere/echo", data={"csrf": csrf}).status_code == 404
        answer = browser.post("/jobs/1/reground", data={"csrf": csrf})
        assert answer.headers["location"] == "/jobs/2?said=reground"
        assert re.search("newer revision .*job 2", browser.get("/jobs/1").text)
        node.console.close()
