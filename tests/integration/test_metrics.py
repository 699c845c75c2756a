"""The metrics of a whole node: what its processes count is added up, outlives them, and never goes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.config import Settings
from dicom_node.console.health import readiness
from dicom_node.console.metrics import render_metrics
from dicom_node.queries import make_engine, make_sessions
from dicom_node.recorder import Recorder
from dicom_node.reporting import Reporter, reporting
from dicom_node.scp import start_receiver
from dicom_node.storage import FileStorage
from tests.acceptance.peers import wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs, FrozenClock
from tests.faults.site import associate
from tests.rig import Rig, make_settings, make_sqlite_sessions
from workers.watching import UNSEEN, look_after_rows

ARRIVED = "knowmvg_instances_received"


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


def scrape(sessions: sessionmaker[Session], clock: FrozenClock, settings: Settings | None = None) -> dict[Any, float]:
    with sessions() as session:
        body = render_metrics(session, clock(), settings)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def make_reporter(sessions: sessionmaker[Session], clock: FrozenClock, role: str = "receiver") -> Any:
    recorder = Recorder(peers=["PACS"])
    return recorder, Reporter(recorder, sessions, clock, role)


def test_counters_outlive_their_processes(sessions: sessionmaker[Session], clock: FrozenClock) -> None:
    seen = []
    for count in (3, 4, 5):  # each process ends: told, killed, told
        recorder, reporter = make_reporter(sessions, clock)
        recorder.count(ARRIVED, "PACS", "image", by=count)
        recorder.observe("knowmvg_step_seconds", 0.2, "ground")
        recorder.set("knowmvg_open_associations", 7)
        reporter.report(stopped=count != 4)
        seen.append(scrape(sessions, clock)[f"{ARRIVED}_total", "image", "PACS"])
        clock.move(seconds=UNSEEN.total_seconds() + 1)
        with sessions.begin() as session:
            queries.fold_processes(session, clock() - UNSEEN, clock())
        seen.append(scrape(sessions, clock)[f"{ARRIVED}_total", "image", "PACS"])
    assert seen == [3, 3, 7, 7, 12, 12]
    found = scrape(sessions, clock)
    assert found["knowmvg_step_seconds_count", "ground"] == 3
    assert found["knowmvg_step_seconds_bucket", "0.25", "ground"] == 3
    assert ("knowmvg_open_associations",) not in found  # nobody has any
    with sessions() as session:
        assert queries.list_processes(session)[0] == ()


def test_a_process_that_was_taken_for_ended_counts_nothing_twice(
    sessions: sessionmaker[Session], clock: FrozenClock
) -> None:
    recorder, reporter = make_reporter(sessions, clock)
    recorder.count(ARRIVED, "PACS", "image", by=10)
    reporter.report()
    for _ in range(2):  # it was cut off from the database, twice
        clock.move(hours=1)
        recorder.count(ARRIVED, "PACS", "image", by=5)
        with sessions.begin() as session:
            assert queries.fold_processes(session, clock() - UNSEEN, clock()) == 1
        reporter.report()
        reporter.report()
    assert scrape(sessions, clock)[f"{ARRIVED}_total", "image", "PACS"] == 20


def test_several_that_fold_at_once_lose_and_double_nothing(sessions: sessionmaker[Session], clock: FrozenClock) -> None:
    for _ in range(12):
        recorder, reporter = make_reporter(sessions, clock)
        recorder.count(ARRIVED, "PACS", "image", by=2)
        reporter.report(stopped=True)

    def fold() -> None:
        with sessions.begin() as session:
            queries.fold_processes(session, clock() - UNSEEN, clock())

    threads = [threading.Thread(target=fold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scrape(sessions, clock)[f"{ARRIVED}_total", "image", "PACS"] == 24


def test_who_lives_is_told_by_role_and_gauges_of_the_dead_are_forgotten(
    sessions: sessionmaker[Session], clock: FrozenClock
) -> None:
    for role in ("receiver", "worker gpu,io", "worker gpu"):
        recorder, reporter = make_reporter(sessions, clock, role)
        recorder.set("knowmvg_open_associations", 2)
        reporter.report()
    found = scrape(sessions, clock)
    roles = ("receiver", "scheduler", "worker gpu", "worker io", "console")
    assert [found["knowmvg_processes", role] for role in roles] == [1, 0, 2, 1, 0]
    assert found["knowmvg_open_associations",] == 6
    clock.move(seconds=21)
    found = scrape(sessions, clock)
    assert [found["knowmvg_processes", role] for role in roles] == [0] * 5
    assert ("knowmvg_open_associations",) not in found


def test_a_database_that_is_away_stops_nobody_and_what_was_counted_comes_later(
    engine: Engine, clock: FrozenClock
) -> None:
    sessions = make_sessions(engine)
    recorder, reporter = make_reporter(sessions, clock)
    recorder.count(ARRIVED, "PACS", "image")
    assert reporter.report()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE processes RENAME TO gone"))
    recorder.count(ARRIVED, "PACS", "image")
    assert not reporter.report()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO processes"))
    assert reporter.report()
    assert scrape(sessions, clock)[f"{ARRIVED}_total", "image", "PACS"] == 2


def test_without_the_database_only_that_and_the_host_are_told(tmp_path: Path, clock: FrozenClock) -> None:
    settings = make_settings(tmp_path, [], {})
    engine = make_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    found = scrape(make_sessions(engine), clock, settings)
    assert found["knowmvg_database_up",] == 0
    assert found["knowmvg_disk_free_bytes", "storage"] > 0
    assert {name for name, *_ in found} <= {
        "knowmvg_database_up", "knowmvg_disk_free_bytes", "knowmvg_disk_size_bytes", "knowmvg_disk_limit_bytes",
        "knowmvg_storage_writable",
    }  # fmt: skip
    assert [check.name for check in readiness(settings, engine, clock()) if not check.ok] == ["database"]


def test_a_report_is_made_at_the_end_too(sessions: sessionmaker[Session], clock: FrozenClock) -> None:
    recorder, reporter = make_reporter(sessions, clock)
    with reporting(reporter):
        recorder.count(ARRIVED, "PACS", "image")
    found = scrape(sessions, clock)
    assert (found[f"{ARRIVED}_total", "image", "PACS"], found["knowmvg_processes", "receiver"]) == (1, 0)


# ---- the parts, counted ----------------------------------------------------------------------------------------------


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


def test_the_receiver_counts_who_comes_who_is_refused_and_what_arrives(tmp_path: Path) -> None:
    sessions, clock = make_sqlite_sessions(tmp_path), FrozenClock()
    peers = [{"ae_title": "PACS", "address": "127.0.0.1", "max_associations": 1}]
    settings = make_settings(tmp_path, [], {"receiver": {"min_free_bytes": 0, "peers": peers}})
    settings = settings.model_copy(update={"receiver": settings.receiver.model_copy(update={"port": 0})})
    recorder = Recorder.of(settings)
    server = start_receiver(settings, sessions, FileStorage(tmp_path / "dicom"), clock, recorder)
    image = make_cxr_dataset()
    datasets = [image, make_report_dataset(image=image)]
    association = associate(server.port, datasets)
    statuses = [association.send_c_store(ds).Status for ds in datasets]
    wait_until(lambda: recorder.samples().get(("knowmvg_open_associations",)) == (1.0,), "the gauge")
    refused = [associate(server.port, datasets, title) for title in ("PACS", "STRANGER", "STRANGER")]
    bad = make_cxr_dataset(instance=2)
    bad.StudyInstanceUID = ""
    statuses.append(association.send_c_store(bad).Status)
    association.release()
    server.stop()
    found = {key: values[0] for key, values in recorder.samples().items()}
    assert statuses == [0, 0, 0xC000]
    assert all(one.is_rejected for one in refused)
    assert found["knowmvg_associations_accepted", "PACS"] == 1
    assert found["knowmvg_associations_refused", "limit"] == 1
    assert found["knowmvg_associations_refused", "unknown_caller"] == 2
    assert (found[ARRIVED, "PACS", "image"], found[ARRIVED, "PACS", "report"]) == (1, 1)
    assert found["knowmvg_received_bytes", "PACS", "image"] > image.Rows * image.Columns
    assert found["knowmvg_instances_refused", "0xC000"] == 1


def test_a_study_is_counted_all_the_way_and_names_nobody(tmp_path: Path, pacs: FakePacs) -> None:
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs])
    image = make_cxr_dataset(study="one")
    rig.store(image)
    rig.store(make_report_dataset(study="one", image=image))
    rig.settle(seconds=6)
    rig.settle()
    assert rig.job(1)["state"] == "DELIVERED"
    look_after_rows(rig.resources)
    Reporter(rig.resources.recorder, rig.sessions, rig.clock, "worker gpu").report()
    found = scrape(rig.sessions, rig.clock, rig.settings)
    for stage in ("complete", "grounded", "written", "delivered"):
        assert found["knowmvg_stage_seconds_count", stage] == 1
    for step in ("ground", "write", "deliver"):
        assert found["knowmvg_step_seconds_count", step] == 1
    assert found["knowmvg_stage_seconds_sum", "complete"] == 6
    assert (found["knowmvg_batch_studies_sum",], found["knowmvg_batch_seconds_count",]) == (1, 1)
    assert found["knowmvg_deliveries_total", "query", "archive0"] == 1
    assert found["knowmvg_delivery_tries_total", "archive0", "delivered"] == 1
    assert found["knowmvg_store_answers_total", "archive0", "0x0000", "stored"] >= 2
    with rig.sessions() as session:
        body = render_metrics(session, rig.clock(), rig.settings)
    for value in (image.PatientID, image.AccessionNumber, image.StudyInstanceUID, str(image.PatientName)):
        assert value and value not in body


@pytest.mark.parametrize("commits", ["same", "new"])
def test_a_delivery_that_is_confirmed_by_a_report_is_counted_once(tmp_path: Path, pacs: FakePacs, commits: str) -> None:
    pacs.stop()
    pacs.commits = commits
    pacs.start()
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs])
    receiver = rig.settings.receiver.model_copy(update={"port": 0})
    settings = rig.settings.model_copy(update={"receiver": receiver})
    server = start_receiver(settings, rig.sessions, rig.storage, rig.clock, rig.resources.recorder)
    pacs.report_port = server.port
    image = make_cxr_dataset(study="one")
    rig.store(image)
    rig.store(make_report_dataset(study="one", image=image))
    rig.settle(seconds=6)

    def is_delivered() -> bool:
        rig.settle()
        return bool(rig.job(1)["state"] == "DELIVERED")

    wait_until(is_delivered, "the report")
    server.stop()
    counted = {key: values for key, values in rig.resources.recorder.samples().items() if "deliveries" in key[0]}
    assert counted == {("knowmvg_deliveries", "archive0", "commitment"): (1.0,)}
