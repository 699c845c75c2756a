"""The retention rule: inputs go only after every destination confirmed the results, and a time that is configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from dicom_node import queries
from dicom_node.config import Settings
from dicom_node.tables import InstanceRow, ReportReferenceRow
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.scheduler import apply_retention


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


def make_rig(folder: Path, pacs: FakePacs, days: float | None = 30, **destination: object) -> Rig:
    archive = {"name": "a", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port} | destination
    return Rig(folder, make_sqlite_sessions(folder), [], destinations=[archive], retention={"inputs_days": days})


def deliver(rig: Rig) -> int:
    image = make_cxr_dataset()
    rig.store(image)
    job_id = rig.store(make_report_dataset(image=image)).job_id
    assert job_id is not None
    rig.settle(seconds=QUIET_S)
    return job_id


def files(rig: Rig) -> int:
    return len([path for path in rig.storage.root.rglob("*.dcm") if "-result-" not in path.name])


def retain(rig: Rig, **later: float) -> int:
    rig.clock.move(**later)
    apply_retention(rig.resources)
    return files(rig)


def test_inputs_go_after_the_time_and_rows_and_results_stay(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    job_id = deliver(rig)
    assert retain(rig, days=29) == 2
    assert retain(rig, days=2) == 0
    job = rig.job(job_id)
    assert "inputs removed" in [one["event"] for one in job["timeline"]]
    assert len(job["instances"]) == 2
    assert all(rig.storage.exists(result["storage_key"]) for result in job["results"])


def test_by_default_nothing_is_ever_removed(tmp_path: Path, pacs: FakePacs) -> None:
    assert Settings().retention.inputs_days is None
    rig = make_rig(tmp_path, pacs, None)
    deliver(rig)
    assert retain(rig, days=10_000) == 2


@pytest.mark.parametrize("state", ["away", "store only", "received", "failed"])
def test_what_is_not_confirmed_stays(tmp_path: Path, pacs: FakePacs, state: str) -> None:
    rig = make_rig(tmp_path, pacs, commitment=state != "store only")
    if state == "away":
        pacs.stop()
    if state == "failed":
        pacs.status = 0xC000
    if state == "received":
        rig.store(make_cxr_dataset())
        rig.store(make_report_dataset(image=make_cxr_dataset()))
    else:
        deliver(rig)
    assert retain(rig, days=10_000) == 2


def test_a_study_that_something_new_came_for_stays(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    deliver(rig)
    rig.clock.move(days=40)
    rig.store(make_cxr_dataset(instance=2))
    assert retain(rig) == 3


def test_an_instance_that_comes_again_is_kept_again(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    deliver(rig)
    assert retain(rig, days=31) == 0
    image = make_cxr_dataset()
    assert rig.store(image).kind == "repeat"
    with rig.sessions() as session:
        row = session.get_one(InstanceRow, image.SOPInstanceUID)
        assert row.removed_at is None and rig.storage.exists(row.storage_key)


def test_an_instance_that_comes_again_is_kept_for_the_whole_time(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    deliver(rig)
    retain(rig, days=31)
    rig.store(make_cxr_dataset())
    assert retain(rig, days=29) == 1
    assert retain(rig, days=2) == 0


@pytest.mark.parametrize("delivered", [False, True])
def test_a_report_that_another_study_waits_for_stays(tmp_path: Path, pacs: FakePacs, delivered: bool) -> None:
    """The report's own study has an image, too, and is delivered; the image of the other one comes late."""
    rig = make_rig(tmp_path, pacs)
    own, other = make_cxr_dataset(), make_cxr_dataset(study="2")
    report = make_report_dataset(image=own)
    rig.store(own)
    rig.store(report)
    with rig.sessions.begin() as session:
        session.add(ReportReferenceRow(
            sop_instance_uid=report.SOPInstanceUID, study_instance_uid=other.StudyInstanceUID, revision=1
        ))  # fmt: skip
    rig.settle(seconds=QUIET_S)
    if delivered:
        rig.store(other)
        rig.store(make_report_dataset(study="2", image=other))
        rig.settle(seconds=QUIET_S)
    assert retain(rig, days=100) == (0 if delivered else 2)


def test_a_file_that_cannot_be_removed_keeps_nothing_else(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(tmp_path, pacs)
    deliver(rig)
    with rig.sessions() as session:
        stuck, _ = sorted(row.storage_key for row in session.scalars(select(InstanceRow)))
    remove = rig.storage.remove

    def refuse(key: str) -> None:
        if key == stuck:
            raise PermissionError(1, "Operation not permitted")
        remove(key)

    monkeypatch.setattr(rig.storage, "remove", refuse)
    assert retain(rig, days=31) == 1
    assert "input cannot be removed" in caplog.text
    with rig.sessions() as session:
        kept = {row.storage_key: row.removed_at is None for row in session.scalars(select(InstanceRow))}
    assert [key for key, is_kept in kept.items() if is_kept] == [stuck]
    monkeypatch.undo()
    assert retain(rig) == 0


def test_a_retry_that_needs_what_was_removed_says_so(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    deliver(rig)
    retain(rig, days=31)
    rig.store(make_report_dataset(image=make_cxr_dataset(), instance=2))
    rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        (job,) = queries.list_jobs(session, queries.JobFilter(limit=1))
    assert job.state == "FAILED"
    assert "was removed by the retention rule" in str(job.failure) and "have the study sent again" in str(job.failure)
