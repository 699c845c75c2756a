"""The console process over HTTP: pages, JSON, health and metrics of a real database; and whom it does not answer."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.config import Settings
from dicom_node.console.server import make_server
from dicom_node.instance import read_instance
from dicom_node.queries import (
    Arrival,
    close_job,
    list_audit,
    make_engine,
    make_sessions,
    record_instance,
    upgrade_schema,
)
from dicom_node.recorder import Recorder
from dicom_node.reporting import Reporter
from dicom_node.storage import StoredFile
from dicom_node.study import Complete
from tests.builders import encode, make_cxr_dataset, make_report_dataset
from tests.fakes import FrozenClock

QUIET = timedelta(seconds=5)


@dataclass
class Reply:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def document(self) -> object:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Get:
    """Asks the console that listens at `port`."""

    port: int

    def __call__(self, path: str, method: str = "GET", host: str | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        reply = Reply(
            response.status, {name.title(): value for name, value in response.getheaders()}, response.read().decode()
        )
        connection.close()
        return reply


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database on SQLite, or, where a test says so, on PostgreSQL."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path}/knowmvg.db"
    postgres_url: str = request.getfixturevalue("postgres_url")
    return postgres_url


on_both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(tmp_path: Path, url: str) -> Settings:
    """The settings of a node whose files are in an empty folder."""
    return Settings.model_validate(
        {
            "node": {"data_dir": tmp_path},
            "database": {"url": url},
            "storage": {"url": f"file://{tmp_path}/dicom"},
            "receiver": {"min_free_bytes": 1},
            "console": {"local_role": "admin"},
        }
    )


@pytest.fixture
def sessions(settings: Settings, clock: FrozenClock) -> Iterator[sessionmaker[Session]]:
    """A database with two studies: one whole, one with an image only."""
    upgrade_schema(settings.database.url)
    engine = make_engine(settings.database.url)
    made = make_sessions(engine)
    image = make_cxr_dataset(study="whole")
    for ds in (image, make_report_dataset(study="whole", image=image), make_cxr_dataset(study="half")):
        stored = StoredFile(f"key/{ds.SOPInstanceUID}", "0" * 64, 1)
        with made.begin() as session:
            record_instance(session, Arrival(read_instance(encode(ds)), stored, "PACS", clock()), QUIET)
    yield made
    engine.dispose()


@pytest.fixture
def get(settings: Settings, sessions: sessionmaker[Session], clock: FrozenClock) -> Iterator[Get]:
    """Ask a running console."""
    server = make_server(settings, sessions, clock, port=0)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield Get(server.port)
    server.stop()
    thread.join()
    server.close()


def test_the_process_lives_and_is_ready(get: Get, sessions: sessionmaker[Session], clock: FrozenClock) -> None:
    assert get("/healthz").status == 200
    assert get("/readyz").status == 503  # nobody sweeps
    assert "start `knowmvg scheduler`" in get("/readyz").body
    recorder = Recorder()
    recorder.set("knowmvg_broker_up", 1)
    recorder.set("knowmvg_scheduler_swept_timestamp_seconds", clock().timestamp())
    assert Reporter(recorder, sessions, clock, "scheduler").report()
    assert (get("/readyz").status, get("/readyz").body) == (200, "ready\n")
    clock.move(seconds=61)
    assert [line.split()[1] for line in get("/readyz").body.splitlines()] == ["scheduler", "broker"]


def test_it_is_not_ready_without_room_or_rows(
    settings: Settings, sessions: sessionmaker[Session], clock: FrozenClock, get: Get
) -> None:
    with sessions.begin() as session:
        session.connection().exec_driver_sql("DROP TABLE alembic_version")
    reply = get("/readyz")
    assert reply.status == 503
    assert "knowmvg db upgrade" in reply.body
    assert get("/healthz").status == 200


def test_jobs_are_listed_as_json(get: Get) -> None:
    jobs = get("/api/v1/jobs").document
    assert isinstance(jobs, list)
    assert len(jobs) == 2
    keys = {"job_id", "study_instance_uid", "revision", "state", "outcome", "failure", "attempts"}
    for job in jobs:
        assert keys | {"created_at", "updated_at"} <= set(job)


def test_a_job_is_shown_as_json(get: Get) -> None:
    study = make_cxr_dataset(study="whole").StudyInstanceUID
    (job,) = get(f"/api/v1/jobs?study={study}").document  # type: ignore[misc]
    shown = get(f"/api/v1/jobs/{job['job_id']}").document
    assert isinstance(shown, dict)
    assert job.items() <= shown.items()
    keys = {"timeline", "timings", "instances", "report", "findings", "results", "deliveries"}
    assert keys <= set(shown)
    assert len(shown["instances"]) == 2


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("?state=RECEIVING", 2),
        ("?state=FAILED", 0),
        ("?patient=PID-half", 1),
        ("?accession=ACC-whole", 1),
        ("?limit=1", 1),
        ("?since=2026-01-02T11:59Z", 2),
        ("?since=2026-01-02T12:01Z", 0),
    ],
)
def test_jobs_are_filtered(get: Get, query: str, count: int) -> None:
    assert len(get(f"/api/v1/jobs{query}").document) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/jobs?state=DONE", 400),
        ("/api/v1/jobs?limit=0", 400),
        ("/api/v1/jobs?limit=many", 400),
        ("/api/v1/jobs?since=2026-01-02", 400),
        ("/api/v1/jobs?since=0001-01-01T00:00%2B23:00", 400),
        ("/api/v1/jobs?nonsense=1", 400),
        ("/api/v1/jobs/999", 404),
        ("/api/v1/jobs/one", 404),
        ("/api/v1/jobs/99999999999999999999999", 404),
        ("/api/v2", 404),
        ("/jobs/999", 404),
        ("/../../etc/passwd", 404),
        ("/?state=DONE", 400),
    ],
)
def test_what_it_does_not_know_is_refused(get: Get, path: str, status: int) -> None:
    reply = get(path)
    assert reply.status == status
    assert "Traceback" not in reply.body
    if path.startswith("/api/"):
        assert set(reply.document) == {"error"}  # type: ignore[call-overload]


@on_both
@pytest.mark.parametrize("name", ["state", "study", "patient", "accession", "since", "limit"])
def test_a_filter_with_a_nul_is_refused(get: Get, name: str) -> None:
    for path in ("/", "/api/v1/jobs"):
        reply = get(f"{path}?{name}=1%00")
        assert (reply.status, "NUL" in reply.body) == (400, True)


def take_no_writes(engine: Engine) -> None:
    """Make the database one that can only be read; an SQLite file that is read-only cannot even be read, but full."""
    if engine.dialect.name == "sqlite":
        full = "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        with engine.begin() as connection:
            connection.execute(text(full))
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f'ALTER DATABASE "{engine.url.database}" SET default_transaction_read_only = on'))
    engine.dispose()


@on_both
def test_what_cannot_be_audited_is_not_shown_and_that_is_said(get: Get, sessions: sessionmaker[Session]) -> None:
    take_no_writes(sessions.kw["bind"])
    for path in ("/jobs/1", "/api/v1/jobs/1"):
        reply = get(path)
        assert (reply.status, "cannot be noted in the audit trail" in reply.body) == (503, True)
        assert make_cxr_dataset(study="whole").StudyInstanceUID not in reply.body
    assert get("/jobs/99").status == 404
    assert get("/").status == 200


def test_a_look_at_a_job_is_audited_and_a_head_request_is_none(get: Get, sessions: sessionmaker[Session]) -> None:
    statuses = [get("/jobs/1", method=method).status for method in ("HEAD", "GET", "HEAD")]
    with sessions() as session:
        entries = list_audit(session, 10, "study accessed")
    assert (statuses, [entry.event.reason for entry in entries]) == ([200] * 3, ["job 1"])


def test_the_pages_show_the_jobs(get: Get) -> None:
    assert '/jobs?state=RECEIVING"><span class="count">2<' in get("/").body
    page = get("/jobs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert make_cxr_dataset(study="half").AccessionNumber in page.body
    (job,) = get("/api/v1/jobs?patient=PID-half").document  # type: ignore[misc]
    assert f"/jobs/{job['job_id']}" in page.body
    assert "Timeline" in get(f"/jobs/{job['job_id']}").body


def test_the_metrics_count_jobs_and_instances_and_age(
    get: Get, sessions: sessionmaker[Session], clock: FrozenClock
) -> None:
    with sessions.begin() as session:
        assert close_job(session, 1, Complete(clock()), clock())
    clock.move(seconds=60)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get("/metrics").body)
        for sample in family.samples
    }
    assert samples["knowmvg_jobs", "RECEIVING"] == 1
    assert samples["knowmvg_jobs", "COMPLETE"] == 1
    assert samples["knowmvg_jobs", "DELIVERED"] == 0
    assert samples["knowmvg_instances",] == 3
    assert samples["knowmvg_queue_age_seconds",] == 60


def test_a_head_request_has_no_body(get: Get) -> None:
    reply = get("/healthz", method="HEAD")
    assert (reply.status, reply.body) == (200, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(get: Get, method: str) -> None:
    assert get("/api/v1/jobs/1", method=method).status == 405


@pytest.mark.parametrize("host", ["evil.example", "192.0.2.1:8042", "[::", "127.0.0.1.evil.example"])
def test_a_page_of_another_site_gets_nothing(get: Get, host: str) -> None:
    reply = get("/api/v1/jobs", host=host)
    assert reply.status == 421
    assert "PID" not in reply.body


@pytest.mark.parametrize("host", ["localhost:9999", "[::1]:8042", "127.0.0.1"])
def test_this_host_may_be_named_in_several_ways(get: Get, host: str) -> None:
    assert get("/healthz", host=host).status == 200


def ask_raw(get: Get, line: str) -> bytes:
    """Send a request line as it is, and return all that is answered."""
    with socket.create_connection(("127.0.0.1", get.port), 20) as connection:
        connection.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("line", ["GET /readyz", "GET /readyz HTTP/0.9", "POST /readyz", "GET / HTTP/0.9 x"])
def test_who_asks_in_http_0_9_gets_status_and_headers_all_the_same(get: Get, line: str) -> None:
    assert ask_raw(get, line).startswith(b"HTTP/1.1 ")


def test_an_address_whose_host_is_none_is_refused(get: Get) -> None:
    assert re.match(rb"HTTP/1.1 40[04] ", ask_raw(get, "GET http://[::1/ HTTP/1.1"))
