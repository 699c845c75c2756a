"""Ground, write, deliver: on real rows and files, with a fake model and a fake archive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.clock import derive_uid
from dicom_node.errors import PermanentError, TransientError
from dicom_node.results.reading import read_boxes
from dicom_node.study import MAX_ATTEMPTS, MAX_DEATHS
from dicom_node.tables import JobRow
from grounding.types import Grounding
from tests.builders import make_cda_dataset, make_cxr_dataset, make_default_sections, make_report_dataset, make_section
from tests.fakes import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE, FakeGrounder, FakePacs
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.ownership import Owner
from workers.resources import LEASE, RING_AGAIN, LazyGrounder
from workers.scheduler import sweep
from workers.steps import STEPS, write_results

GROUND, WRITE, DELIVER = *(step.name for step in STEPS), "deliver"


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture
def rig(tmp_path: Path, pacs: FakePacs) -> Rig:
    return Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs])


def store_study(rig: Rig, study: str = "1") -> int:
    """Store an image and its report; return the job."""
    image = make_cxr_dataset(study=study)
    rig.store(image)
    job_id = rig.store(make_report_dataset(study=study, image=image)).job_id
    assert job_id is not None
    return job_id


def events(job: dict[str, Any]) -> list[str]:
    return [one["event"] for one in job["timeline"]]


# ---- the straight path -----------------------------------------------------------------------------------------------


@pytest.fixture
def delivered(tmp_path: Path, sessions: sessionmaker[Session], pacs: FakePacs) -> tuple[Rig, int]:
    """A study that went all the way, on each database."""
    rig = Rig(tmp_path, sessions, [pacs])
    job_id = store_study(rig)
    rig.settle(seconds=QUIET_S)
    return rig, job_id


def test_study_goes_all_the_way(delivered: tuple[Rig, int], pacs: FakePacs) -> None:
    rig, job_id = delivered
    job = rig.job(job_id)
    assert (job["state"], job["outcome"], job["failure"]) == ("DELIVERED", "RESULT", None)
    assert [event for event in events(job) if event != "instance filed"] == [
        "study complete",
        "study grounded",
        "results written",
        "destination has results",
        "results delivered",
    ]
    assert set(job["timings"]) >= {GROUND, WRITE, DELIVER}
    assert {one["confirmed_by"] for one in job["deliveries"]} == {"query"}
    held = {ds.SOPClassUID for ds in pacs.datasets.values()}
    assert held == {COMPREHENSIVE_3D_SR, GSPS_STORAGE}


def test_archive_holds_what_the_node_filed(delivered: tuple[Rig, int], pacs: FakePacs) -> None:
    rig, job_id = delivered
    with rig.sessions() as session:
        results = queries.load_results(session, job_id)
    assert [one.sop_class_uid for one in results if one.part == "sr"] == [COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR]
    for one in results:
        if one.sop_instance_uid in pacs.datasets:
            assert pacs.datasets[one.sop_instance_uid] == dcmread(rig.storage.path(one.key))


def test_boxes_of_a_film_stored_mirrored_are_written_where_it_is_stored(rig: Rig, pacs: FakePacs) -> None:
    image = make_cxr_dataset(PatientOrientation=["R", "F"])
    rig.store(image)
    rig.store(make_report_dataset(image=image))
    rig.settle(seconds=QUIET_S)
    sr = next(ds for ds in pacs.datasets.values() if ds.SOPClassUID == COMPREHENSIVE_3D_SR)
    # The fake finds the patient's lower left, which is the lower right of a film as it hangs.
    rows, columns = image.Rows, image.Columns
    assert {box.box.xyxy for box in read_boxes(sr)} == {(0, rows / 2, columns / 2, rows)}


@pytest.mark.parametrize(
    ("orientation", "is_told"), [(["L", "F"], True), (None, False), ("", False), (["L", ""], False)]
)
def test_a_film_that_does_not_tell_how_it_is_stored_is_a_warning_of_the_job(
    rig: Rig, orientation: Any, is_told: bool
) -> None:
    image = make_cxr_dataset(PatientOrientation=orientation)
    rig.store(image)
    job_id = rig.store(make_report_dataset(image=image)).job_id
    rig.settle(seconds=QUIET_S)
    assert job_id is not None
    warnings = [warning for warning in rig.job(job_id)["warnings"] if image.SOPInstanceUID in warning]
    assert (warnings == []) == is_told


def test_a_box_on_the_other_side_than_its_phrase_says_is_a_warning_of_the_job(rig: Rig) -> None:
    image = make_cxr_dataset(PatientOrientation=["L", "F"])
    rig.store(image)
    job_id = rig.store(make_report_dataset(image=image)).job_id
    assert job_id is not None
    rig.grounder.corner = 0.0
    rig.settle(seconds=QUIET_S)
    job = rig.job(job_id)
    assert job["state"] == "DELIVERED" and len(job["warnings"]) == sum(len(f["boxes"]) for f in job["findings"]) > 0
    assert job["warnings"][0].startswith("box 1 lies on the other side of the patient")


def test_a_cda_document_is_grounded_as_a_report(rig: Rig, pacs: FakePacs) -> None:
    image = make_cxr_dataset()
    rig.store(image)
    document = make_cda_dataset(
        "<ClinicalDocument><component><structuredBody><component><section><title>Findings</title><text>Small left "
        "pleural effusion.</text></section></component></structuredBody></component></ClinicalDocument>",
        image=image,
    )
    job_id = rig.store(document).job_id
    assert job_id is not None
    rig.settle(seconds=QUIET_S)
    assert (rig.job(job_id)["state"], rig.job(job_id)["outcome"]) == ("DELIVERED", "RESULT")
    sr = next(ds for ds in pacs.datasets.values() if ds.SOPClassUID == COMPREHENSIVE_3D_SR)
    (source,) = sr.ReferencedInstanceSequence
    assert source.ReferencedSOPInstanceUID == document.SOPInstanceUID


@pytest.mark.parametrize("report_first", [False, True])
def test_a_report_in_another_study_is_grounded_on_the_images_that_it_names(
    tmp_path: Path, sessions: sessionmaker[Session], pacs: FakePacs, report_first: bool
) -> None:
    rig = Rig(tmp_path, sessions, [pacs])
    image = make_cxr_dataset(study="images")
    report = make_report_dataset(image=image, StudyInstanceUID=derive_uid("study", "reports"))
    for ds in (report, image) if report_first else (image, report):
        rig.store(ds)
        rig.settle(seconds=1)
    rig.settle(seconds=QUIET_S)
    jobs = {job["study_instance_uid"]: job for job in map(rig.job, (1, 2))}
    job = jobs[image.StudyInstanceUID]
    assert (job["state"], job["outcome"]) == ("DELIVERED", "RESULT")
    assert {one["sop_instance_uid"]: one["use"] for one in job["instances"]} == {
        image.SOPInstanceUID: "used",
        report.SOPInstanceUID: "used",
    }
    assert jobs[report.StudyInstanceUID]["state"] == "RECEIVING"  # it may still get images of its own
    sr = next(ds for ds in pacs.datasets.values() if ds.SOPClassUID == COMPREHENSIVE_3D_SR)
    assert sr.StudyInstanceUID == image.StudyInstanceUID
    assert sr.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == report.SOPInstanceUID


def other_study(name: str) -> dict[str, Any]:
    return {"StudyInstanceUID": derive_uid("study", name), "SeriesInstanceUID": derive_uid("series", name)}


def test_an_amended_report_in_another_study_opens_the_next_revision(rig: Rig, pacs: FakePacs) -> None:
    image = make_cxr_dataset(study="images")
    for ds in (image, make_report_dataset(image=image, **other_study("reports"))):
        rig.store(ds)
    rig.settle(seconds=QUIET_S)
    rig.store(
        make_report_dataset(
            "Right effusion.", instance=2, image=image, ContentDate="20260103", **other_study("reports")
        )
    )
    rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        jobs = queries.list_jobs(session, queries.JobFilter(study=image.StudyInstanceUID))
    assert [(job.revision, job.state) for job in jobs] == [(2, "DELIVERED"), (1, "DELIVERED")]
    assert {f["phrase"] for f in rig.job(jobs[0].job_id)["findings"]} == {"Right effusion."}
    assert "report referred" in events(rig.job(jobs[0].job_id))


@pytest.mark.parametrize(("first", "names_own"), [("report", False), ("image", False), ("image", True)])
def test_a_report_never_takes_the_place_of_a_studys_own(rig: Rig, first: str, names_own: bool) -> None:
    """A follow-up's report names the older film, alone or beside its own; its own image comes before it, or after."""
    older, own = make_cxr_dataset(study="older"), make_cxr_dataset(study="own")
    older_job = store_study(rig, "older")
    rig.settle(seconds=QUIET_S)
    report = make_report_dataset("Right effusion.", study="own", image=own)
    report.CurrentRequestedProcedureEvidenceSequence = [
        *make_report_dataset(image=older).CurrentRequestedProcedureEvidenceSequence,
        *(report.CurrentRequestedProcedureEvidenceSequence if names_own else []),
    ]
    for ds in (report, own) if first == "report" else (own, report):
        rig.store(ds)
        rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        jobs = queries.list_jobs(session, queries.JobFilter())
    assert {(job.study_instance_uid, job.revision, job.state) for job in jobs} == {
        (older.StudyInstanceUID, 1, "DELIVERED"),
        (own.StudyInstanceUID, 1, "DELIVERED"),
    }
    assert {f["phrase"] for f in rig.job(older_job)["findings"]}.isdisjoint({"Right effusion."})


def test_an_image_that_is_corrected_finds_the_report_that_named_its_study(rig: Rig) -> None:
    image = make_cxr_dataset(study="images")
    wrong = make_cxr_dataset(study="images", instance=2, PatientID="WRONG")
    report = make_report_dataset(image=image, **other_study("reports"))
    for ds in (wrong, report, image):
        rig.store(ds)
        rig.settle(seconds=1)
    rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        (job,) = queries.list_jobs(session, queries.JobFilter(study=image.StudyInstanceUID))
    assert (job.state, job.outcome) == ("DELIVERED", "RESULT")


@pytest.mark.parametrize("stranger_first", [False, True])
def test_a_strangers_report_neither_opens_nor_closes_a_study(rig: Rig, stranger_first: bool) -> None:
    image = make_cxr_dataset(study="images")
    stranger = make_report_dataset("Left mass.", instance=2, image=image, PatientID="ANOTHER", **other_study("reports"))
    for ds in (stranger, image) if stranger_first else (image, stranger):
        rig.store(ds)
    rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        (job,) = queries.list_jobs(session, queries.JobFilter(study=image.StudyInstanceUID))
    assert (job.state, job.revision) == ("RECEIVING", 1)
    rig.store(make_report_dataset(study="images", image=image))
    rig.settle(seconds=QUIET_S)
    with rig.sessions() as session:
        (job,) = queries.list_jobs(session, queries.JobFilter(study=image.StudyInstanceUID))
    assert (job.state, job.revision) == ("DELIVERED", 1)


def test_a_report_in_another_language_ends_the_job_with_the_reason(rig: Rig) -> None:
    image = make_cxr_dataset()
    rig.store(image)
    job_id = rig.store(make_report_dataset("Kein Pneumothorax. Kleiner Erguss links.", image=image)).job_id
    assert job_id is not None
    rig.settle(seconds=QUIET_S)
    job = rig.job(job_id)
    assert job["state"] == "NOT_APPLICABLE" and "in German, and the model reads English only" in job["failure"]
    assert rig.grounder.calls == 0


def test_each_step_run_again_does_nothing(delivered: tuple[Rig, int], pacs: FakePacs) -> None:
    rig, job_id = delivered
    before, stores = rig.job(job_id), dict(pacs.stores)
    for step in (GROUND, WRITE, DELIVER):
        rig.run(step, job_id)
    assert rig.job(job_id) == before
    assert (dict(pacs.stores), rig.grounder.calls) == (stores, 1)


def test_step_out_of_turn_does_nothing(rig: Rig) -> None:
    job_id = store_study(rig)
    for step in (GROUND, WRITE, DELIVER):
        rig.run(step, job_id)
    rig.run(GROUND, job_id + 1)
    assert rig.job(job_id)["state"] == "RECEIVING"
    assert rig.grounder.calls == 0


def test_study_is_not_closed_before_its_quiet_period(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.settle(seconds=QUIET_S - 1)
    assert rig.job(job_id)["state"] == "RECEIVING"


# ---- lost rings, dead workers ----------------------------------------------------------------------------------------


def test_lost_ring_is_rung_again(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    assert rig.rings == [(GROUND, job_id)]
    rig.rings.clear()
    rig.sweep(seconds=1)
    assert rig.rings == []
    rig.sweep(seconds=RING_AGAIN.total_seconds())
    assert rig.rings == [(GROUND, job_id)]


def test_ring_that_the_broker_did_not_take_is_rung_again_soon(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.resources = replace(rig.resources, ring=lambda *_: False)
    rig.sweep(seconds=QUIET_S)
    rig.resources = replace(rig.resources, ring=rig.ring)
    rig.sweep(seconds=2)
    assert rig.rings == [(GROUND, job_id)]


def test_steps_ring_for_the_next_and_the_sweep_does_not_repeat_them_at_once(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop())
    assert rig.rings == [(WRITE, job_id)]
    rig.sweep(seconds=1)
    assert rig.rings == [(WRITE, job_id)]


class WorkerDiedError(BaseException):
    """Ends a worker as a kill does: nothing after it is run."""


class DeadlyGrounder(FakeGrounder):
    """A model that takes its worker with it."""

    def ground(self, *_: Any) -> Grounding:
        raise WorkerDiedError


def test_job_of_a_worker_that_died_is_taken_up_after_its_lease(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    with pytest.raises(WorkerDiedError):
        rig.run(*rig.rings.pop(), load_grounder=DeadlyGrounder)
    rig.settle(seconds=LEASE.total_seconds() - 1)
    assert rig.grounder.calls == 0
    rig.settle(seconds=2)
    assert rig.job(job_id)["state"] == "DELIVERED"


def test_job_of_a_worker_of_this_host_that_died_is_taken_up_at_once(rig: Rig, tmp_path: Path) -> None:
    rig.resources = replace(rig.resources, owners=tmp_path / "owners")
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    owner = Owner(tmp_path / "owners", "worker")
    with pytest.raises(WorkerDiedError):
        rig.run(*rig.rings.pop(), load_grounder=DeadlyGrounder)
    rig.sweep(seconds=1)
    assert rig.rings == []  # it lives, as far as anybody knows
    owner.release()
    rig.settle(seconds=1)
    assert rig.job(job_id)["state"] == "DELIVERED"


def test_study_that_kills_its_worker_three_times_is_quarantined(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    for _ in range(MAX_DEATHS):
        with pytest.raises(WorkerDiedError):
            rig.run(GROUND, job_id, load_grounder=DeadlyGrounder)
        rig.sweep(seconds=LEASE.total_seconds() + 1)
    rig.answer()
    job = rig.job(job_id)
    assert (job["state"], job["outcome"]) == ("FAILED", "FAILED")
    assert job["failure"].startswith("quarantined: the worker died or hung 3 times while it tried to ground")
    retry(rig, job_id)
    assert rig.job(job_id)["state"] == "DELIVERED"


def test_deaths_of_workers_of_this_host_are_counted_without_waiting_for_the_lease(rig: Rig, tmp_path: Path) -> None:
    rig.resources = replace(rig.resources, owners=tmp_path / "owners")
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    for _ in range(MAX_DEATHS):
        with pytest.raises(WorkerDiedError):
            rig.run(GROUND, job_id, load_grounder=DeadlyGrounder)
        rig.sweep(seconds=1)
    rig.answer()
    assert rig.job(job_id)["failure"].startswith("quarantined")


def test_a_try_that_ends_well_forgets_the_deaths_before_it(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    for _ in range(MAX_DEATHS - 1):
        with pytest.raises(WorkerDiedError):
            rig.run(GROUND, job_id, load_grounder=DeadlyGrounder)
        rig.sweep(seconds=LEASE.total_seconds() + 1)
    rig.run(GROUND, job_id)
    with rig.sessions() as session:
        assert session.get_one(JobRow, job_id).deaths == 0


def test_worker_whose_lease_ran_out_cannot_commit(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)

    class LateGrounder(FakeGrounder):
        def ground(self, *study: Any) -> Grounding:
            rig.clock.move(seconds=LEASE.total_seconds() + 1)
            rig.run(GROUND, job_id, token="another")
            return super().ground(*study)

    rig.run(GROUND, job_id, load_grounder=lambda: LateGrounder(localizes=False))
    assert rig.job(job_id)["outcome"] == "RESULT"
    assert events(rig.job(job_id)).count("study grounded") == 1


def fail_commit(engine: Engine, number: int) -> Callable[[], bool]:
    """Let the commit of this number fail, once; return a function that tells whether it has."""
    seen = 0

    def count(_: Connection) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise OperationalError("COMMIT", None, Exception("disk full"))

    event.listen(engine, "commit", count)
    return lambda: seen >= number


def test_whichever_commit_fails_the_end_is_the_same(rig: Rig, pacs: FakePacs) -> None:
    engine = rig.sessions.kw["bind"]
    for number in itertools.count(1):
        job_id = store_study(rig, study=f"fault {number}")
        has_failed = fail_commit(engine, number)
        for _ in range(3):
            with suppress(OperationalError):
                rig.sweep(seconds=LEASE.total_seconds() + 1)
            while rig.rings:
                with suppress(OperationalError):
                    rig.run(*rig.rings.pop())
        job = rig.job(job_id)
        assert (job["state"], job["outcome"]) == ("DELIVERED", "RESULT")
        assert len(pacs.structured_reports(job["study_instance_uid"])) == 1
        if not has_failed():
            assert number > 3 * 2  # every claim and every commit of a step had its turn
            return


# ---- failures --------------------------------------------------------------------------------------------------------


def run_to_end(rig: Rig, job_id: int) -> dict[str, Any]:
    rig.settle(seconds=QUIET_S)
    return rig.job(job_id)


def test_report_without_text_is_not_applicable(rig: Rig) -> None:
    image = make_cxr_dataset()
    rig.store(image)
    job_id = rig.store(make_report_dataset([], image=image)).job_id
    assert job_id is not None
    job = run_to_end(rig, job_id)
    assert (job["state"], job["outcome"]) == ("NOT_APPLICABLE", "NOT_APPLICABLE")
    assert "no text" in job["failure"]


def test_report_for_another_patient_is_not_applicable(rig: Rig) -> None:
    image = make_cxr_dataset()
    rig.store(image)
    job_id = rig.store(make_report_dataset(image=image, PatientID="somebody else")).job_id
    assert job_id is not None
    job = run_to_end(rig, job_id)
    assert job["state"] == "NOT_APPLICABLE"
    assert "another patient" in job["failure"]


@pytest.mark.parametrize("changes", [{"PixelData": None}, {"PixelData": b"\0\0"}])
def test_image_without_usable_pixels_is_not_applicable(rig: Rig, changes: dict[str, Any]) -> None:
    image = make_cxr_dataset(**changes)
    rig.store(image)
    job_id = rig.store(make_report_dataset(image=image)).job_id
    assert job_id is not None
    job = run_to_end(rig, job_id)
    assert job["state"] == "NOT_APPLICABLE"
    assert image.SOPInstanceUID in job["failure"]


def test_model_that_is_missing_fails_the_job_with_its_path_and_a_retry_works(rig: Rig, tmp_path: Path) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(), load_grounder=LazyGrounder(str(tmp_path / "no model"), "cpu"))
    job = rig.job(job_id)
    assert job["state"] == "FAILED"
    assert str(tmp_path / "no model") in job["failure"]
    assert "model.path" in job["failure"]
    retry(rig, job_id)
    assert rig.job(job_id)["state"] == "DELIVERED"


def retry(rig: Rig, job_id: int) -> None:
    with rig.sessions.begin() as session:
        queries.retry_job(session, job_id, rig.clock())
    rig.settle(seconds=1)


def test_bytes_that_are_missing_from_the_storage_fail_the_job(rig: Rig) -> None:
    job_id = store_study(rig)
    for path in rig.storage.root.rglob("*.dcm"):
        path.unlink()
    job = run_to_end(rig, job_id)
    assert job["state"] == "FAILED"
    assert "missing from the storage" in job["failure"]


def test_a_storage_that_is_away_is_waited_for(rig: Rig) -> None:
    job_id = store_study(rig)
    away = rig.storage.root.rename(rig.storage.root.with_name("elsewhere"))
    rig.settle(seconds=QUIET_S)
    assert rig.job(job_id)["state"] == "COMPLETE"
    away.rename(rig.storage.root)
    assert run_to_end(rig, job_id)["state"] == "DELIVERED"


def test_bug_is_raised_and_counted_and_fails_the_job_in_the_end(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.grounder.error = ZeroDivisionError("a bug")
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(ZeroDivisionError):
            rig.answer()
        rig.sweep(seconds=3600)
    job = rig.job(job_id)
    assert job["state"] == "FAILED"
    assert "ZeroDivisionError" in job["failure"]
    rig.grounder.error = None
    retry(rig, job_id)
    assert rig.job(job_id)["state"] == "DELIVERED"


def test_transient_error_of_the_model_is_tried_again_after_a_pause(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.grounder.error = TransientError("out of memory")
    rig.settle(seconds=QUIET_S)
    job = rig.job(job_id)
    assert (job["state"], job["attempts"], job["failure"]) == ("COMPLETE", 1, "out of memory")
    rig.grounder.error = None
    rig.settle(seconds=1)
    assert rig.job(job_id)["state"] == "COMPLETE"
    rig.settle(seconds=60)
    assert rig.job(job_id)["state"] == "DELIVERED"


def test_permanent_error_ends_the_job_at_once(rig: Rig) -> None:
    rig.grounder.error = PermanentError("this cannot work")
    job = run_to_end(rig, store_study(rig))
    assert (job["state"], job["failure"]) == ("FAILED", "this cannot work")


# ---- results ---------------------------------------------------------------------------------------------------------


def test_nothing_localized_is_delivered_as_a_text(rig: Rig, pacs: FakePacs) -> None:
    rig.grounder.localizes = False
    job = run_to_end(rig, store_study(rig))
    assert (job["state"], job["outcome"]) == ("DELIVERED", "NO_FINDING")
    assert [ds.SOPClassUID for ds in pacs.datasets.values()] == [COMPREHENSIVE_3D_SR]


@pytest.mark.parametrize(
    "results", [{"when_nothing_localized": "none"}, {"sr": False, "gsps": False}], ids=["none", "nothing wanted"]
)
def test_nothing_to_deliver_is_said_in_the_timeline(tmp_path: Path, pacs: FakePacs, results: dict[str, Any]) -> None:
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs], results=results)
    rig.grounder.localizes = False
    job = run_to_end(rig, store_study(rig))
    assert job["state"] == "DELIVERED"
    assert job["timeline"][-1]["detail"] == "nothing to deliver"
    assert pacs.datasets == {}


def test_boxes_below_the_confidence_that_is_asked_for_are_no_result(tmp_path: Path, pacs: FakePacs) -> None:
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs], results={"min_confidence": 0.95})
    assert run_to_end(rig, store_study(rig))["outcome"] == "NO_FINDING"


def test_late_image_gives_a_second_sr_that_names_the_first(rig: Rig, pacs: FakePacs) -> None:
    first = run_to_end(rig, store_study(rig))
    second_id = rig.store(make_cxr_dataset(instance=2)).job_id
    assert second_id is not None
    second = run_to_end(rig, second_id)
    assert (second["revision"], second["state"]) == (2, "DELIVERED")
    by_instance = {int(ds.InstanceNumber): ds for ds in pacs.structured_reports()}
    (study,) = by_instance[2].PredecessorDocumentsSequence
    referenced = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert referenced == by_instance[1].SOPInstanceUID
    assert first["job_id"] != second["job_id"]


def test_amended_report_gives_a_new_sr_in_the_same_series_and_a_new_presentation_state(
    rig: Rig, pacs: FakePacs
) -> None:
    first = run_to_end(rig, store_study(rig))
    second_id = rig.store(make_report_dataset(instance=2, ContentTime="180000")).job_id
    assert second_id is not None
    second = run_to_end(rig, second_id)
    assert first["report"] != second["report"]
    old, new = sorted(pacs.structured_reports(), key=lambda ds: int(ds.InstanceNumber))
    assert (old.SeriesInstanceUID, old.SOPInstanceUID != new.SOPInstanceUID) == (new.SeriesInstanceUID, True)
    states = pacs.of_class(GSPS_STORAGE)
    assert len({state.SOPInstanceUID for state in states}) == 2
    assert len({state.SeriesInstanceUID for state in states}) == 1
    for job_id in (first["job_id"], second_id):
        shown = rig.job(job_id)["revisions"]
        assert [(one["revision"], one["job_id"], one["state"]) for one in shown] == [
            (1, first["job_id"], "DELIVERED"),
            (2, second_id, "DELIVERED"),
        ]
        held = [{d["sop_instance_uid"] for d in one["delivered"]} for one in shown]
        assert held == [
            {old.SOPInstanceUID, states[0].SOPInstanceUID},
            {new.SOPInstanceUID, states[1].SOPInstanceUID},
        ]


ADDENDUM = ("55107-7", "LN", "Addendum")


def test_an_addendum_alone_does_not_take_the_place_of_its_report(rig: Rig, pacs: FakePacs) -> None:
    first = run_to_end(rig, store_study(rig))
    addition = make_section(ADDENDUM, ["There is also a nodule in the right upper zone."])
    addendum = make_report_dataset([addition], instance=2, ContentTime="180000", image=make_cxr_dataset())
    second_id = rig.store(addendum).job_id
    assert second_id is not None
    second = run_to_end(rig, second_id)
    assert second["report"] == first["report"]
    assert [one["phrase"] for one in second["findings"]] == [one["phrase"] for one in first["findings"]]
    (warning,) = (one for one in second["warnings"] if addendum.SOPInstanceUID in one)
    assert "addendum alone" in warning
    (use,) = (one["use"] for one in second["instances"] if one["sop_instance_uid"] == addendum.SOPInstanceUID)
    assert use.startswith("not used: an addendum alone")
    whole = make_report_dataset(
        [*make_default_sections(), addition], instance=3, ContentTime="190000", image=make_cxr_dataset()
    )
    third_id = rig.store(whole).job_id
    assert third_id is not None
    third = run_to_end(rig, third_id)
    assert third["report"] == {"sop_instance_uid": whole.SOPInstanceUID}
    assert third["findings"][-1]["phrase"] == "There is also a nodule in the right upper zone."


def test_an_addendum_that_comes_without_its_report_is_read(rig: Rig) -> None:
    image = make_cxr_dataset()
    rig.store(image)
    addition = make_section(ADDENDUM, ["There is a nodule in the right upper zone."])
    job_id = rig.store(make_report_dataset([addition], image=image)).job_id
    assert job_id is not None
    job = run_to_end(rig, job_id)
    assert (job["state"], len(job["findings"]), job["warnings"]) == ("DELIVERED", 1, [])


def test_what_an_archive_took_is_remembered_for_the_next_study(rig: Rig, pacs: FakePacs) -> None:
    """It accepts the 3D class, and then refuses to store an instance of it: it is asked once, not for every study."""
    pacs.refused = {COMPREHENSIVE_3D_SR: 0xA900}
    for study in ("1", "2", "3"):
        image = make_cxr_dataset(study=study)
        rig.store(image)
        rig.store(make_report_dataset(study=study, image=image))
        rig.settle(seconds=QUIET_S)
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_SR] * 3
    assert pacs.refusals == {COMPREHENSIVE_3D_SR: 1}


def test_results_are_written_as_the_configuration_asks(tmp_path: Path, pacs: FakePacs) -> None:
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [pacs], results={"window": "reader", "tracking": "plain"})
    run_to_end(rig, store_study(rig))
    (state,) = pacs.of_class(GSPS_STORAGE)
    assert "SoftcopyVOILUTSequence" not in state
    graphics = state.GraphicAnnotationSequence[0].GraphicObjectSequence
    assert [graphic.TrackingID for graphic in graphics] == [f"Finding {n}" for n in range(1, len(graphics) + 1)]


def test_revision_that_is_overtaken_is_not_delivered(rig: Rig, pacs: FakePacs) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop())
    rig.run(*rig.rings.pop())
    rig.store(make_cxr_dataset(instance=2))
    rig.answer()
    assert pacs.datasets == {}
    assert rig.job(job_id)["state"] == "CANCELLED"
    rig.settle(seconds=QUIET_S)
    assert len(pacs.structured_reports()) == 1


def test_writing_again_gives_the_same_bytes(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop())
    with rig.sessions.begin() as session:
        job = queries.claim(session, job_id, "GROUNDED", "worker", rig.clock(), LEASE)
    assert job is not None
    written = []
    for _ in range(2):
        write_results(job, rig.resources)
        written.append({path.name: path.read_bytes() for path in rig.storage.root.rglob("*-result-1-*.dcm")})
        rig.clock.move(hours=1)
    assert written[0] == written[1] != {}


# ---- the sweep -------------------------------------------------------------------------------------------------------


def test_image_without_a_report_ends_after_the_maximum_age_and_is_taken_up_when_it_comes(rig: Rig) -> None:
    image = make_cxr_dataset()
    first = rig.store(image).job_id
    assert first is not None
    rig.settle(seconds=QUIET_S)
    assert rig.job(first)["state"] == "RECEIVING"
    rig.settle(seconds=rig.settings.assembly.max_age_s)
    assert rig.job(first)["state"] == "NOT_APPLICABLE"
    second = rig.store(make_report_dataset(image=image)).job_id
    assert second is not None
    assert run_to_end(rig, second)["state"] == "DELIVERED"


def test_report_may_come_first(rig: Rig) -> None:
    image = make_cxr_dataset()
    rig.store(make_report_dataset(image=image))
    rig.settle(seconds=QUIET_S + 1)
    job_id = rig.store(image).job_id
    assert job_id is not None
    assert run_to_end(rig, job_id)["state"] == "DELIVERED"


def test_two_schedulers_do_no_harm(rig: Rig) -> None:
    job_id = store_study(rig)
    rig.clock.move(seconds=QUIET_S)
    sweep(rig.resources)
    sweep(replace(rig.resources, token="another"))
    assert rig.rings == [(GROUND, job_id)]
    rig.answer()
    assert rig.job(job_id)["state"] == "DELIVERED"
