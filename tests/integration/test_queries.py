"""The job database on both engines: filing instances, revisions, claims, deliveries, and what people see and change."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.delivery import PartState
from dicom_node.errors import NodeError, SchemaError
from dicom_node.instance import Instance, read_instance
from dicom_node.queries import (
    Arrival,
    Delivery,
    Ending,
    JobFilter,
    JobSummary,
    Recorded,
    StoredResult,
    check_schema,
    current_revision,
    make_engine,
    upgrade_schema,
)
from dicom_node.queries.engine import _switch_to_wal
from dicom_node.queries.schema import SCHEMA_REVISION, make_config
from dicom_node.storage import StoredFile
from dicom_node.study import Complete, JobFacts, NotApplicable, State, Waiting
from dicom_node.tables import JobRow, StudyRow
from grounding.types import Box, Concept, Finding, Grounding, ModelIdentity, ScoredBox, Site, Span
from tests.builders import COMPREHENSIVE_SR, DX_PROCESSING_STORAGE, encode, make_cxr_dataset, make_report_dataset

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
QUIET = timedelta(seconds=5)
LEASE = timedelta(minutes=5)
SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"

Sessions = sessionmaker[Session]


def make_image(study: str = "1", instance: int = 1, **attributes: Any) -> Instance:
    return read_instance(encode(make_cxr_dataset(study=study, instance=instance, **attributes)))


def make_report(study: str = "1", instance: int = 1, **attributes: Any) -> Instance:
    return read_instance(encode(make_report_dataset("Effusion.", study=study, instance=instance, **attributes)))


def record(sessions: Sessions, instance: Instance, at: datetime = NOW, content: str = "a") -> Recorded:
    stored = StoredFile(f"{instance.sop_instance_uid}.{content}", content * 64, 10)
    with sessions.begin() as session:
        return queries.record_instance(session, Arrival(instance, stored, "PACS", at), QUIET)


def make_complete_job(sessions: Sessions, study: str = "1", at: datetime = NOW) -> int:
    """Return a job in COMPLETE."""
    record(sessions, make_image(study), at)
    job_id = record(sessions, make_report(study), at).job_id
    assert job_id is not None
    with sessions.begin() as session:
        assert queries.close_job(session, job_id, Complete(at), at)
    return job_id


def claim(sessions: Sessions, job_id: int, state: State, token: str = "me", at: datetime = NOW) -> JobFacts | None:
    with sessions.begin() as session:
        return queries.claim(session, job_id, state, token, at, LEASE)


def move_to(sessions: Sessions, job_id: int, state: State, token: str = "me", at: datetime = NOW) -> None:
    """Take a job in COMPLETE the straight way to `state`."""
    path: Sequence[State] = ("COMPLETE", "GROUNDED", "WRITTEN", "DELIVERED")
    for from_state, to_state in pairwise(path[: path.index(state) + 1]):
        assert claim(sessions, job_id, from_state, token, at)
        with sessions.begin() as session:
            assert queries.advance(session, job_id, token, from_state, to_state, at)


def show_in(session: Session, job_id: int) -> str:
    """Return the state of a job as the present transaction sees it."""
    detail = queries.show_job(session, job_id)
    assert detail is not None
    return detail.summary.state


def show(sessions: Sessions, job_id: int | None) -> dict[str, Any]:
    assert job_id is not None
    with sessions.begin() as session:
        detail = queries.show_job(session, job_id)
    assert detail is not None
    return detail.to_json()


def listed(sessions: Sessions, **wanted: Any) -> tuple[JobSummary, ...]:
    with sessions.begin() as session:
        return queries.list_jobs(session, JobFilter(**wanted))


# ---- schema ----------------------------------------------------------------------------------------------------------


def test_migrations_make_what_the_tables_say(engine: Engine) -> None:
    with engine.begin() as connection:
        command.check(make_config(connection))


def test_the_newest_migration_is_the_one_the_code_works_with(engine: Engine) -> None:
    with engine.begin() as connection:
        assert ScriptDirectory.from_config(make_config(connection)).get_current_head() == SCHEMA_REVISION
    assert current_revision(engine) == SCHEMA_REVISION


def test_migrations_can_be_taken_back(engine: Engine) -> None:
    with engine.begin() as connection:
        command.downgrade(make_config(connection), "base")
        command.upgrade(make_config(connection), "head")
    check_schema(engine)


def test_deliveries_of_the_schema_before_dispatches_go_on_and_can_be_replayed(
    sessions: Sessions, engine: Engine
) -> None:
    under_way, (first, _) = make_written_job(sessions, "a", "b")
    assert end_dispatch(sessions, first, "DELIVERED") == "DELIVERED"
    failed, (dead,) = make_written_job(sessions, "a", study="2")
    assert end_dispatch(sessions, dead, "FAILED") == "DEAD"
    done, (delivered,) = make_written_job(sessions, "a", study="3")
    assert end_dispatch(sessions, delivered, "DELIVERED") == "DELIVERED"
    with engine.begin() as connection:
        command.downgrade(make_config(connection), "0002")
        command.upgrade(make_config(connection), "head")
    states = {
        (job_id, one["destination"]): one["state"]
        for job_id in (under_way, failed, done)
        for one in show(sessions, job_id)["dispatches"]
    }
    assert states == {
        (under_way, "a"): "DELIVERED", (under_way, "b"): "PENDING", (failed, "a"): "DEAD", (done, "a"): "DELIVERED",
    }  # fmt: skip
    with sessions.begin() as session:
        (dead_letter,) = queries.list_dispatches(session, queries.DispatchFilter(state="DEAD"))
        queries.replay_dispatch(session, dead_letter.dispatch_id, NOW)
        waiting = queries.dispatches_to_ring(session, NOW, 10)
    assert [end_dispatch(sessions, dispatch_id, "DELIVERED") for dispatch_id in waiting] == ["DELIVERED"] * 2
    assert {show(sessions, job_id)["state"] for job_id in (under_way, failed, done)} == {"DELIVERED"}


def test_an_empty_database_is_refused_with_the_command_to_run(database_url: str) -> None:
    engine = make_engine(database_url)
    with pytest.raises(SchemaError, match="knowmvg db upgrade"):
        check_schema(engine)
    engine.dispose()


def test_a_newer_schema_is_refused_and_left_alone(engine: Engine, database_url: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="newer version"):
        upgrade_schema(database_url)
    assert current_revision(engine) == "9999"


def test_processes_that_upgrade_at_once_do_not_disturb_each_other(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_schema, [database_url] * 4))
    engine = make_engine(database_url)
    check_schema(engine)
    engine.dispose()


# ---- filing ----------------------------------------------------------------------------------------------------------


def test_an_image_and_its_report_share_a_job(sessions: Sessions) -> None:
    first = record(sessions, make_image())
    second = record(sessions, make_report(), NOW + timedelta(seconds=1))
    assert (first.kind, second.kind) == ("new", "new")
    assert first.job_id == second.job_id
    assert first.revision == second.revision == 1
    shown = show(sessions, first.job_id)
    assert shown["state"] == "RECEIVING"
    assert [i["modality"] for i in shown["instances"]] == ["DX", "SR"]


def test_the_same_bytes_again_change_nothing(sessions: Sessions) -> None:
    job_id = record(sessions, make_image()).job_id
    before = show(sessions, job_id)
    again = record(sessions, make_image(), NOW + timedelta(seconds=4))
    assert (again.kind, again.job_id, again.revision) == ("repeat", None, 1)
    assert show(sessions, job_id) == before
    with sessions.begin() as session:
        assert [j.job_id for j in queries.due_receiving(session, NOW + QUIET, 10)] == [job_id]


def test_other_bytes_under_the_same_uid_are_kept_aside(sessions: Sessions) -> None:
    job_id = record(sessions, make_image()).job_id
    assert record(sessions, make_image(), content="b").kind == "conflict"
    assert record(sessions, make_image(), content="b").kind == "conflict"
    conflicts = show(sessions, job_id)["conflicts"]
    assert [c["sha256"] for c in conflicts] == ["b" * 64]
    assert [e["event"] for e in show(sessions, job_id)["timeline"]].count("conflict") == 1
    with sessions.begin() as session:
        assert queries.count_instances(session) == 1


def test_an_own_result_leaves_no_trace(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    with sessions.begin() as session:
        queries.save_results(session, job_id, [StoredResult("sr", SR_CLASS, "1.2.3", "1.2", "key", "0" * 64)], NOW)
    by_marker = replace(make_report(study="2"), is_own_result=True)
    by_uid = replace(make_report(), sop_instance_uid="1.2.3")
    assert record(sessions, by_marker).kind == "own"
    assert record(sessions, by_uid).kind == "own"
    assert listed(sessions)[0].job_id == job_id
    with sessions.begin() as session:
        assert queries.count_instances(session) == 2


def test_an_object_that_is_neither_image_nor_report_opens_no_job(sessions: Sessions) -> None:
    recorded = record(sessions, make_image(sop_class_uid=DX_PROCESSING_STORAGE))
    assert (recorded.kind, recorded.job_id) == ("new", None)
    assert listed(sessions) == ()
    job_id = record(sessions, make_image(instance=2), NOW + timedelta(minutes=5)).job_id
    assert len(show(sessions, job_id)["instances"]) == 2


def test_texts_longer_than_their_columns_are_filed(sessions: Sessions) -> None:
    image = replace(make_image(), patient_id="P" * 200, accession_number="A" * 200, modality="M" * 40)
    record(sessions, image)
    assert listed(sessions, patient="P" * 64)
    with sessions.begin() as session:
        assert queries.instances_of(session, image.study_instance_uid)[0].instance == image


def test_patient_and_accession_number_are_filled_in_by_who_knows_them(sessions: Sessions) -> None:
    record(sessions, make_image(PatientID="", AccessionNumber=""))
    record(sessions, make_report(PatientID="late", AccessionNumber="7"))
    assert listed(sessions, patient="late", accession="7")


# ---- quiet period, late instances ------------------------------------------------------------------------------------


def test_each_arrival_starts_the_quiet_period_anew(sessions: Sessions) -> None:
    record(sessions, make_image())
    record(sessions, make_report(), NOW + timedelta(seconds=4))
    with sessions.begin() as session:
        assert queries.due_receiving(session, NOW + timedelta(seconds=8), 10) == ()
        (job,) = queries.due_receiving(session, NOW + timedelta(seconds=9), 10)
    assert job.first_instance_at == NOW
    assert job.last_instance_at == NOW + timedelta(seconds=4)


def test_a_verdict_is_void_once_something_new_came(sessions: Sessions) -> None:
    job_id = record(sessions, make_image()).job_id
    assert job_id is not None
    record(sessions, make_report(), NOW + timedelta(seconds=1))
    with sessions.begin() as session:
        assert not queries.close_job(session, job_id, NotApplicable(NOW, "no report"), NOW)
        assert queries.close_job(session, job_id, Complete(NOW + timedelta(seconds=1)), NOW)
    assert show(sessions, job_id)["state"] == "COMPLETE"


def test_a_study_that_waits_is_looked_at_again_only_then(sessions: Sessions) -> None:
    job_id = record(sessions, make_image()).job_id
    assert job_id is not None
    until = NOW + timedelta(hours=1)
    with sessions.begin() as session:
        assert queries.close_job(session, job_id, Waiting(NOW, until), NOW)
        assert queries.due_receiving(session, until - timedelta(seconds=1), 10) == ()
        assert len(queries.due_receiving(session, until, 10)) == 1


@pytest.mark.parametrize("state", ["COMPLETE", "GROUNDED", "WRITTEN"])
def test_a_late_report_supersedes_what_is_under_way(sessions: Sessions, state: State) -> None:
    older = make_complete_job(sessions)
    move_to(sessions, older, state)
    recorded = record(sessions, make_report(instance=2), NOW + timedelta(minutes=1))
    assert recorded.revision == 2
    assert recorded.job_id != older
    assert show(sessions, recorded.job_id)["state"] == "RECEIVING"
    assert len(show(sessions, recorded.job_id)["instances"]) == 3
    cancelled = show(sessions, older)
    assert cancelled["state"] == "CANCELLED"
    assert "revision 2" in cancelled["failure"]
    assert len(cancelled["instances"]) == 2
    assert claim(sessions, older, state) is None


def test_a_late_image_reopens_a_delivered_study_and_leaves_its_job_alone(sessions: Sessions) -> None:
    older = make_complete_job(sessions)
    move_to(sessions, older, "DELIVERED")
    recorded = record(sessions, make_image(instance=2), NOW + timedelta(days=1))
    assert recorded.revision == 2
    assert show(sessions, older)["state"] == "DELIVERED"


def test_a_report_after_the_end_reopens_the_study(sessions: Sessions) -> None:
    job_id = record(sessions, make_image()).job_id
    assert job_id is not None
    with sessions.begin() as session:
        queries.close_job(session, job_id, NotApplicable(NOW, "no report arrived"), NOW)
    assert show(sessions, job_id)["failure"] == "no report arrived"
    recorded = record(sessions, make_report(), NOW + timedelta(hours=3))
    assert recorded.revision == 2
    with sessions.begin() as session:
        stored = queries.instances_of(session, make_image().study_instance_uid)
    assert [one.revision for one in stored] == [1, 2]


def test_a_worker_whose_job_was_superseded_cannot_move_it(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    assert claim(sessions, job_id, "COMPLETE")
    record(sessions, make_report(instance=2), NOW + timedelta(seconds=1))
    with sessions.begin() as session:
        assert not queries.advance(session, job_id, "me", "COMPLETE", "GROUNDED", NOW)
        assert not queries.retry_later(session, job_id, "me", "why", NOW, NOW)
        assert not queries.end_job(session, job_id, "me", "FAILED", "why", NOW)
    assert show(sessions, job_id)["state"] == "CANCELLED"


def test_a_newer_revision_is_not_written_while_an_older_one_is_being_delivered(sessions: Sessions) -> None:
    older = make_complete_job(sessions)
    move_to(sessions, older, "WRITTEN")
    (dispatch_id,) = write_sr(sessions, older, "1.2.1", "a")
    held = claim_dispatch(sessions, dispatch_id, "slow")
    assert held is not None
    newer = record(sessions, make_report(instance=2), NOW).job_id
    assert newer is not None
    with sessions.begin() as session:
        assert queries.close_job(session, newer, Complete(NOW), NOW)
    move_to(sessions, newer, "GROUNDED")
    assert claim(sessions, newer, "GROUNDED") is None
    with sessions.begin() as session:
        queries.mark_delivery(session, older, Delivery("a", "sr", "DELIVERED", "1.2.1", 0, "query"), NOW)
        assert queries.end_try(session, held, "slow", Ending(NOW, NOW, ""), NOW) == "DELIVERED"
    assert show(sessions, older)["state"] == "CANCELLED"
    assert claim(sessions, newer, "GROUNDED")


# ---- claims ----------------------------------------------------------------------------------------------------------


def test_a_claim_holds_until_its_lease_ends(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    first = claim(sessions, job_id, "COMPLETE", "a")
    assert first is not None
    assert first.attempts == 1
    assert claim(sessions, job_id, "COMPLETE", "b", NOW + LEASE - timedelta(seconds=1)) is None
    second = claim(sessions, job_id, "COMPLETE", "b", NOW + LEASE)
    assert second is not None
    assert second.attempts == 2
    with sessions.begin() as session:
        assert not queries.advance(session, job_id, "a", "COMPLETE", "GROUNDED", NOW)
        assert queries.advance(session, job_id, "b", "COMPLETE", "GROUNDED", NOW)


def test_a_claim_for_another_state_is_refused(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    assert claim(sessions, job_id, "GROUNDED") is None
    assert claim(sessions, job_id + 1, "COMPLETE") is None


def test_a_step_may_not_be_skipped(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE")
    with sessions.begin() as session, pytest.raises(ValueError, match="does not follow"):
        queries.advance(session, job_id, "me", "COMPLETE", "WRITTEN", NOW)


def test_jobs_are_rung_for_when_due_and_then_not_for_a_while(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    later = NOW + timedelta(seconds=20)
    with sessions.begin() as session:
        assert queries.jobs_to_ring(session, NOW, 10) == ((job_id, "COMPLETE"),)
        queries.rung(session, [job_id], NOW, later)
        assert queries.jobs_to_ring(session, NOW, 10) == ()
        assert queries.jobs_to_ring(session, later, 10) == ((job_id, "COMPLETE"),)
    claim(sessions, job_id, "COMPLETE", at=later)
    with sessions.begin() as session:
        assert queries.jobs_to_ring(session, later, 10) == ()
        assert queries.jobs_to_ring(session, later + LEASE, 10) == ((job_id, "COMPLETE"),)


def test_a_step_that_failed_waits_for_its_time(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE")
    later = NOW + timedelta(minutes=1)
    with sessions.begin() as session:
        assert queries.retry_later(session, job_id, "me", "the archive is away", later, NOW)
        assert queries.jobs_to_ring(session, later - timedelta(seconds=1), 10) == ()
        assert queries.jobs_to_ring(session, later, 10) == ((job_id, "COMPLETE"),)
    shown = show(sessions, job_id)
    assert (shown["state"], shown["attempts"], shown["failure"]) == ("COMPLETE", 1, "the archive is away")
    move_to(sessions, job_id, "GROUNDED", at=later)
    assert (show(sessions, job_id)["attempts"], show(sessions, job_id)["failure"]) == (0, None)


def test_an_ended_job_says_why(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE")
    with sessions.begin() as session:
        assert queries.end_job(session, job_id, "me", "FAILED", "the model is missing", NOW)
    shown = show(sessions, job_id)
    assert (shown["state"], shown["outcome"], shown["failure"]) == ("FAILED", "FAILED", "the model is missing")
    assert shown["timeline"][-1]["detail"] == "the model is missing"


def test_leases_of_the_dead_are_freed(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE", "dead")
    with sessions.begin() as session:
        assert queries.lease_tokens(session) == ("dead",)
        assert queries.free_leases(session, "dead", NOW) == 1
        assert queries.lease_tokens(session) == ()
        assert queries.jobs_to_ring(session, NOW, 10) == ((job_id, "COMPLETE"),)


def test_a_death_is_counted_and_a_clean_end_is_none(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    for deaths, free in ((1, queries.free_leases), (1, queries.give_back_leases), (2, queries.free_leases)):
        assert claim(sessions, job_id, "COMPLETE", "worker")
        with sessions.begin() as session:
            free(session, "worker", NOW)
            assert session.get_one(JobRow, job_id).deaths == deaths
    late = NOW + LEASE
    assert claim(sessions, job_id, "COMPLETE", "hangs", NOW)
    taken = claim(sessions, job_id, "COMPLETE", "next", late)
    assert taken is not None and taken.deaths == 3


# ---- concurrency -----------------------------------------------------------------------------------------------------


def run_at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0..count-1)` on so many threads that begin together; raises what any of them raises."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_800_stores_from_16_threads_all_succeed(sessions: Sessions) -> None:
    template = make_image()

    def store(thread: int) -> None:
        for n in range(50):
            # four threads meet in each study
            study = f"1.2.{thread // 4}.{n}"
            image = replace(template, study_instance_uid=study, sop_instance_uid=f"1.3.{thread}.{n}")
            assert record(sessions, image).kind == "new"

    run_at_once(16, store)
    with sessions.begin() as session:
        assert queries.count_instances(session) == 800
        assert queries.count_jobs(session) == {"RECEIVING": 200}


def test_stores_and_closing_studies_at_once_lose_nothing(sessions: Sessions) -> None:
    template = make_image()

    def work(thread: int) -> None:
        for n in range(20):
            at = NOW + timedelta(seconds=n)
            if thread % 2:
                record(sessions, replace(template, sop_instance_uid=f"1.3.{thread}.{n}"), at)
                continue
            with sessions.begin() as session:
                due = queries.due_receiving(session, at + timedelta(minutes=1), 10)
            for job in due:
                with sessions.begin() as session:
                    queries.close_job(session, job.job_id, Complete(job.last_instance_at), at)

    run_at_once(8, work)
    jobs = listed(sessions, limit=1000)
    assert sorted(job.revision for job in jobs) == list(range(1, len(jobs) + 1))
    unfinished = {job.state for job in jobs if job.revision < len(jobs)}
    assert unfinished <= {"CANCELLED"}
    assert len(show(sessions, jobs[0].job_id)["instances"]) == 80


def test_of_64_claims_one_wins(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)

    def claim_four_times(thread: int) -> int:
        return sum(claim(sessions, job_id, "COMPLETE", f"{thread}-{n}") is not None for n in range(4))

    assert sum(run_at_once(16, claim_four_times)) == 1


# ---- what the steps keep ---------------------------------------------------------------------------------------------


def make_grounding() -> Grounding:
    effusion = Finding(
        phrase="small left effusion",
        source=Span(3, 22),
        image=1,
        boxes=(ScoredBox(Box(1.25, 2.5, 30.1, 40.7), 0.875),),
        localized=True,
        negated=False,
        finding=Concept("60046008", "SCT", "Pleural effusion"),
        site=Site(Concept("39607008", "SCT", "Lung"), "left"),
        uncertainty=0.1,
    )
    return Grounding(
        ModelIdentity("m", "1", "0" * 64), (effusion, Finding("no nodule", None, 0, (), False, True), effusion)
    )


def test_a_grounding_comes_back_as_it_was(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    grounding, images = make_grounding(), ("1.1", "1.2")
    claim(sessions, job_id, "COMPLETE")
    selection = {"report": "1.9", "images": list(images), "why": {}}
    with sessions.begin() as session:
        queries.save_grounding(session, job_id, grounding, images)
        queries.save_grounding(session, job_id, grounding, images)
        queries.advance(
            session, job_id, "me", "COMPLETE", "GROUNDED", NOW,
            selection=selection, outcome="RESULT", timings={"ground": 1.5}, detail="3 phrases",
        )  # fmt: skip
    with sessions.begin() as session:
        assert queries.load_grounding(session, job_id) == (grounding, images)
    shown = show(sessions, job_id)
    assert shown["outcome"] == "RESULT"
    assert shown["timings"] == {"ground": 1.5}
    assert shown["report"] == {"sop_instance_uid": "1.9"}
    assert shown["model"]["name"] == "m"
    assert shown["timeline"][-1] | {"at": None} == {"at": None, "event": "study grounded", "detail": "3 phrases"}
    first, second, _ = shown["findings"]
    assert first["source"] == {"start": 3, "end": 22}
    assert first["boxes"] == [{"xyxy": [1.25, 2.5, 30.1, 40.7], "score": 0.875}]
    assert first["site"] == {"code": "39607008", "scheme": "SCT", "meaning": "Lung", "laterality": "left"}
    assert (first["image"], first["sop_instance_uid"], second["source"]) == (1, "1.2", None)


def write_sr(sessions: Sessions, job_id: int, sop_instance_uid: str, *destinations: str) -> tuple[int, ...]:
    """Give a job an SR and open its dispatches."""
    result = StoredResult("sr", SR_CLASS, sop_instance_uid, "1.2", "key", "0" * 64)
    with sessions.begin() as session:
        queries.save_results(session, job_id, [result], NOW)
        return queries.open_dispatches(session, job_id, destinations, NOW)


def claim_dispatch(sessions: Sessions, dispatch_id: int, token: str = "me") -> queries.DispatchFacts | None:
    with sessions.begin() as session:
        return queries.claim_dispatch(session, dispatch_id, token, NOW, LEASE)


def make_written_job(sessions: Sessions, *destinations: str, study: str = "1") -> tuple[int, tuple[int, ...]]:
    job_id = make_complete_job(sessions, study)
    move_to(sessions, job_id, "WRITTEN")
    return job_id, write_sr(sessions, job_id, f"1.2.{study}", *destinations)


def end_dispatch(sessions: Sessions, dispatch_id: int, state: PartState) -> str | None:
    """Claim a dispatch of an SR and end it with its part in `state`."""
    held = claim_dispatch(sessions, dispatch_id)
    assert held is not None
    with sessions.begin() as session:
        done = Delivery(held.destination, "sr", state, "1.2.3", 0, "query" if state == "DELIVERED" else None)
        queries.mark_delivery(session, held.job_id, done, NOW)
        return queries.end_try(session, held, "me", Ending(NOW, NOW, f"why {held.destination}"), NOW)


def test_dispatches_are_opened_once_and_the_last_to_end_ends_the_job(sessions: Sessions) -> None:
    job_id, (first, second) = make_written_job(sessions, "a", "b")
    assert end_dispatch(sessions, first, "DELIVERED") == "DELIVERED"
    assert show(sessions, job_id)["state"] == "WRITTEN"
    assert write_sr(sessions, job_id, "1.2.3", "a", "b") == (second,)
    assert end_dispatch(sessions, second, "DELIVERED") == "DELIVERED"
    shown = show(sessions, job_id)
    assert (shown["state"], shown["failure"]) == ("DELIVERED", None)
    assert {one["state"] for one in shown["deliveries"]} == {"DELIVERED"}


def test_a_job_with_a_dead_letter_fails_when_the_others_have_ended(sessions: Sessions) -> None:
    job_id, (first, second) = make_written_job(sessions, "a", "b")
    assert end_dispatch(sessions, first, "FAILED") == "DEAD"
    assert show(sessions, job_id)["state"] == "WRITTEN"
    assert end_dispatch(sessions, second, "DELIVERED") == "DELIVERED"
    shown = show(sessions, job_id)
    assert (shown["state"], shown["outcome"], shown["failure"]) == ("FAILED", "FAILED", "why a")
    with sessions.begin() as session:
        (dead,) = queries.list_dispatches(session, queries.DispatchFilter(state="DEAD"))
        assert (dead.destination, dead.failure) == ("a", "why a")
        queries.replay_dispatch(session, dead.dispatch_id, NOW)
    assert show(sessions, job_id)["state"] == "WRITTEN"
    assert end_dispatch(sessions, first, "DELIVERED") == "DELIVERED"
    assert show(sessions, job_id)["state"] == "DELIVERED"


def test_two_dispatches_that_end_at_once_end_the_job(sessions: Sessions) -> None:
    for number in range(10):
        job_id, dispatches = make_written_job(sessions, "a", "b", "c", "d", study=str(number))
        with ThreadPoolExecutor(4) as pool:
            ended = list(pool.map(lambda number: end_dispatch(sessions, number, "DELIVERED"), dispatches))
        assert ended == ["DELIVERED"] * 4
        assert show(sessions, job_id)["state"] == "DELIVERED"


def test_a_held_destination_is_neither_rung_for_nor_claimed_and_no_other_waits(sessions: Sessions) -> None:
    _, (first, second) = make_written_job(sessions, "a", "b")
    with sessions.begin() as session:
        until = queries.hold_destination(session, "a", "nobody there", NOW)
        assert queries.dispatches_to_ring(session, NOW, 10) == (second,)
        assert queries.dispatches_to_ring(session, until, 10) == (first, second)
    assert claim_dispatch(sessions, first) is None
    with sessions.begin() as session:
        queries.note_contact(session, "a", NOW)
    assert claim_dispatch(sessions, first) is not None


def test_a_report_ends_a_dispatch_that_nobody_works_on_and_leaves_one_that_somebody_does(sessions: Sessions) -> None:
    job_id, (dispatch_id,) = make_written_job(sessions, "a")
    held = claim_dispatch(sessions, dispatch_id)
    assert held is not None
    with sessions.begin() as session:
        queries.mark_delivery(session, job_id, Delivery("a", "sr", "STORED", "1.2.3", 0), NOW)
        queries.note_asked(session, dispatch_id, "2.25.1", NOW)
    with sessions.begin() as session:
        reported = queries.note_report(session, "2.25.1", ["1.2.3"], {}, NOW)
        assert reported is not None and reported.state == "PENDING"
        assert queries.is_answered(session, "2.25.1")
    with sessions.begin() as session:
        assert queries.end_try(session, held, "me", Ending(NOW, NOW, ""), NOW) == "DELIVERED"
    assert show(sessions, job_id)["deliveries"][0]["confirmed_by"] == "commitment"


def ask_commitment(sessions: Sessions, dispatch_id: int, job_id: int) -> None:
    """Have an archive take the SR of a dispatch, ask it for storage commitment, and end the try without a report."""
    held = claim_dispatch(sessions, dispatch_id)
    assert held is not None
    with sessions.begin() as session:
        queries.mark_delivery(session, job_id, Delivery("a", "sr", "STORED", "1.2.3", 0), NOW)
        queries.note_asked(session, dispatch_id, "2.25.1", NOW)
        queries.end_try(session, held, "me", Ending(NOW, NOW, "no report"), NOW)


def report(sessions: Sessions) -> str:
    with sessions.begin() as session:
        reported = queries.note_report(session, "2.25.1", ["1.2.3"], {}, NOW)
    assert reported is not None
    return reported.state


def test_a_report_that_comes_twice_is_told_once(sessions: Sessions) -> None:
    job_id, (dispatch_id,) = make_written_job(sessions, "a")
    ask_commitment(sessions, dispatch_id, job_id)
    assert [report(sessions) for _ in range(3)] == ["DELIVERED"] * 3
    events = [one["event"] for one in show(sessions, job_id)["timeline"]]
    assert events.count("destination has results") == events.count("results delivered") == 1
    with sessions.begin() as session:
        assert len(queries.list_audit(session, 10, "results exported")) == 1


def test_a_report_that_comes_after_all_delivers_what_was_given_up(sessions: Sessions) -> None:
    job_id, (dispatch_id,) = make_written_job(sessions, "a")
    with sessions.begin() as session:
        session.get_one(JobRow, job_id).selection = {"report": "1.9", "outcome": "RESULT"}
    ask_commitment(sessions, dispatch_id, job_id)
    held = claim_dispatch(sessions, dispatch_id)
    assert held is not None
    with sessions.begin() as session:
        assert queries.end_try(session, held, "me", Ending(NOW, NOW, "why", give_up=True), NOW) == "DEAD"
    assert (show(sessions, job_id)["state"], show(sessions, job_id)["outcome"]) == ("FAILED", "FAILED")
    assert report(sessions) == "DELIVERED"
    shown = show(sessions, job_id)
    assert (shown["state"], shown["outcome"], shown["failure"]) == ("DELIVERED", "RESULT", None)


def test_an_old_report_delivers_nothing_of_what_is_sent_again(sessions: Sessions) -> None:
    job_id, (dispatch_id,) = make_written_job(sessions, "a")
    ask_commitment(sessions, dispatch_id, job_id)
    assert report(sessions) == "DELIVERED"
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
    with sessions.begin() as session:
        assert queries.note_report(session, "2.25.1", ["1.2.3"], {}, NOW) is None
    assert show(sessions, job_id)["state"] == "WRITTEN"


def test_a_try_that_ends_forgets_the_deaths_before_it(sessions: Sessions) -> None:
    _, (dispatch_id,) = make_written_job(sessions, "a")
    for _ in range(2):
        assert claim_dispatch(sessions, dispatch_id, "dies")
        with sessions.begin() as session:
            assert queries.free_leases(session, "dies", NOW) == 1
    held = claim_dispatch(sessions, dispatch_id)
    assert held is not None and held.deaths == 2
    with sessions.begin() as session:
        queries.end_try(session, held, "me", Ending(NOW, NOW, "refused"), NOW)
    again = claim_dispatch(sessions, dispatch_id)
    assert again is not None and again.deaths == 0


def deliver_sr(sessions: Sessions, job_id: int, sop_instance_uid: str) -> None:
    write_sr(sessions, job_id, sop_instance_uid, "a")
    with sessions.begin() as session:
        queries.mark_delivery(session, job_id, Delivery("a", "sr", "DELIVERED", sop_instance_uid, 0, "query"), NOW)


def test_the_predecessor_is_the_last_sr_that_an_archive_took(sessions: Sessions) -> None:
    study = make_image().study_instance_uid
    first = make_complete_job(sessions)
    with sessions.begin() as session:
        assert queries.previous_results(session, study, 2) == ()
    move_to(sessions, first, "WRITTEN")
    deliver_sr(sessions, first, "1.2.1")
    # superseded after the archive had taken its SR, but not its presentation state
    second = record(sessions, make_report(instance=2), NOW + QUIET).job_id
    third = record(sessions, make_report(instance=3), NOW + QUIET).job_id
    assert second == third
    with sessions.begin() as session:
        (previous,) = queries.previous_results(session, study, 2)
        assert queries.previous_results(session, study, 1) == ()
    assert (previous.sop_instance_uid, previous.revision, previous.study_instance_uid) == ("1.2.1", 1, study)


def test_the_predecessor_is_named_in_every_class_that_archives_took(sessions: Sessions) -> None:
    study, job_id = make_image().study_instance_uid, make_complete_job(sessions)
    comprehensive = StoredResult("sr", COMPREHENSIVE_SR, "1.2.1", "1.2", "key", "0" * 64)
    preferred = replace(comprehensive, sop_class_uid=SR_CLASS, sop_instance_uid="1.2.2")
    with sessions.begin() as session:
        queries.save_results(session, job_id, [comprehensive, preferred], NOW)
        queries.open_dispatches(session, job_id, ["a", "b", "c"], NOW)
        assert queries.accepted_sr_class(session, "a") is None
        for name, uid in (("a", "1.2.1"), ("b", "1.2.2"), ("c", "1.2.1")):
            queries.mark_delivery(session, job_id, Delivery(name, "sr", "DELIVERED", uid, 0, "query"), NOW)
        previous = queries.previous_results(session, study, 2)
        assert [one.sop_class_uid for one in previous] == [SR_CLASS, COMPREHENSIVE_SR]
        assert queries.accepted_sr_class(session, "a") == COMPREHENSIVE_SR
        assert queries.accepted_sr_class(session, "b") == SR_CLASS


def test_results_are_replaced_when_they_are_written_again(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    result = StoredResult("sr", SR_CLASS, "1.2.3", "1.2", "key", "0" * 64)
    with sessions.begin() as session:
        queries.save_results(session, job_id, [result, replace(result, part="gsps:1", sop_instance_uid="1.2.4")], NOW)
        queries.save_results(session, job_id, [result], NOW)
        assert queries.load_results(session, job_id) == (result,)
    assert show(sessions, job_id)["results"][0]["sop_class"] == SR_CLASS


# ---- people ----------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_latest_first_and_filtered(sessions: Sessions) -> None:
    first = make_complete_job(sessions, "1")
    second = make_complete_job(sessions, "2", NOW + timedelta(hours=1))
    move_to(sessions, second, "DELIVERED", at=NOW + timedelta(hours=2))
    assert [job.job_id for job in listed(sessions)] == [second, first]
    for wanted in (
        {"state": "COMPLETE"},
        {"study": make_image("1").study_instance_uid},
        {"patient": "PID-1"},
        {"accession": "ACC-1"},
    ):
        assert [job.job_id for job in listed(sessions, **wanted)] == [first], wanted
    assert [job.job_id for job in listed(sessions, since=NOW + timedelta(minutes=1))] == [second]
    assert [job.job_id for job in listed(sessions, limit=1)] == [second]
    assert listed(sessions, patient="nobody") == ()
    summary = listed(sessions)[0].to_json()
    assert summary["updated_at"] == "2026-01-02T14:00:00.000+00:00"


def test_counts_and_the_oldest_job_that_waits(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert queries.oldest_due(session, NOW) is None
    first = make_complete_job(sessions, "1")
    make_complete_job(sessions, "2", NOW + timedelta(minutes=1))
    record(sessions, make_image("3"))
    with sessions.begin() as session:
        assert queries.count_jobs(session) == {"COMPLETE": 2, "RECEIVING": 1}
        assert queries.count_instances(session) == 5
        assert queries.oldest_due(session, NOW) == NOW
    claim(sessions, first, "COMPLETE")
    with sessions.begin() as session:
        assert queries.oldest_due(session, NOW) == NOW + timedelta(minutes=1)


def fail(sessions: Sessions, job_id: int, state: State) -> None:
    claim(sessions, job_id, state)
    with sessions.begin() as session:
        assert queries.end_job(session, job_id, "me", "FAILED", "why", NOW)


def test_a_failed_job_is_taken_up_from_the_step_that_failed(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    fail(sessions, job_id, "COMPLETE")
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
        assert show_in(session, job_id) == "COMPLETE"
        queries.save_grounding(session, job_id, make_grounding(), ("1.1", "1.2"))
    move_to(sessions, job_id, "GROUNDED")
    fail(sessions, job_id, "GROUNDED")
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
        assert show_in(session, job_id) == "GROUNDED"
        result = StoredResult("sr", SR_CLASS, "1.2.3", "1.2", "key", "0" * 64)
        queries.save_results(session, job_id, [result], NOW)
    claim(sessions, job_id, "GROUNDED")
    with sessions.begin() as session:
        queries.advance(session, job_id, "me", "GROUNDED", "WRITTEN", NOW)
        (dispatch_id,) = queries.open_dispatches(session, job_id, ["a"], NOW)
    assert end_dispatch(sessions, dispatch_id, "FAILED") == "DEAD"
    assert show(sessions, job_id)["state"] == "FAILED"
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
        assert show_in(session, job_id) == "WRITTEN"
        assert [d.state for d in queries.load_deliveries(session, job_id)] == ["PENDING"]
        assert queries.undispatched_jobs(session, NOW, 10) == (job_id,)
        assert queries.dispatches_to_ring(session, NOW, 10) == (dispatch_id,)


def test_a_retried_delivery_has_the_outcome_that_grounding_gave_it(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE")
    with sessions.begin() as session:
        selection = {"report": "1.9", "images": ["1.1", "1.2"], "outcome": "RESULT"}
        queries.advance(session, job_id, "me", "COMPLETE", "GROUNDED", NOW, outcome="RESULT", selection=selection)
        queries.save_grounding(session, job_id, make_grounding(), ("1.1", "1.2"))
    fail(sessions, job_id, "GROUNDED")
    assert show(sessions, job_id)["outcome"] == "FAILED"
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
        assert show_in(session, job_id) == "GROUNDED"
    assert show(sessions, job_id)["outcome"] == "RESULT"


def test_a_job_under_way_a_superseded_one_and_no_job_cannot_be_retried(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    with sessions.begin() as session, pytest.raises(NodeError, match="under way"):
        queries.retry_job(session, job_id, NOW)
    record(sessions, make_report(instance=2), NOW)
    with sessions.begin() as session, pytest.raises(NodeError, match="revision 2 by now"):
        queries.retry_job(session, job_id, NOW)
    with sessions.begin() as session, pytest.raises(NodeError, match="no job 99"):
        queries.retry_job(session, 99, NOW)


@pytest.mark.parametrize("change", ["retry", "replay"])
def test_what_an_administrator_changes_waits_for_an_instance_that_is_being_filed(
    sessions: Sessions, change: str
) -> None:
    """Else the job would be taken up again that its study's next revision has just replaced, and never end."""
    job_id, (dispatch_id,) = make_written_job(sessions, "a")
    assert end_dispatch(sessions, dispatch_id, "FAILED") == "DEAD"
    begun = threading.Event()

    def take_up_again() -> str:
        with sessions.begin() as session:
            begun.set()
            if change == "retry":
                return queries.retry_job(session, job_id, NOW)
            return queries.replay_dispatch(session, dispatch_id, NOW)

    late = make_report(instance=2)
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            queries.record_instance(session, Arrival(late, StoredFile("late", "b" * 64, 10), "PACS", NOW), QUIET)
            taken_up = pool.submit(take_up_again)
            if session.get_bind().dialect.name == "postgresql":
                assert begun.wait(10)
                threading.Event().wait(0.3)
        with pytest.raises(NodeError, match="revision 2 by now"):
            taken_up.result(30)
    assert show(sessions, job_id)["state"] == "FAILED"


def test_a_cancelled_job_stops_and_can_be_taken_up_again(sessions: Sessions) -> None:
    job_id = make_complete_job(sessions)
    claim(sessions, job_id, "COMPLETE")
    with sessions.begin() as session:
        queries.cancel_job(session, job_id, NOW)
        assert not queries.advance(session, job_id, "me", "COMPLETE", "GROUNDED", NOW)
    shown = show(sessions, job_id)
    assert (shown["state"], shown["outcome"]) == ("CANCELLED", None)
    assert "jobs retry" in shown["failure"]
    with sessions.begin() as session, pytest.raises(NodeError, match="ended already"):
        queries.cancel_job(session, job_id, NOW)
    with sessions.begin() as session, pytest.raises(NodeError, match="no job 99"):
        queries.cancel_job(session, 99, NOW)
    with sessions.begin() as session:
        queries.retry_job(session, job_id, NOW)
    assert claim(sessions, job_id, "COMPLETE")


def test_a_job_that_does_not_exist_is_not_shown(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert queries.show_job(session, 99) is None


# ---- what a database says --------------------------------------------------------------------------------------------


def test_no_value_of_a_row_is_told_by_an_error(sessions: Sessions) -> None:
    """Statements, values and the details of the server are for nobody's log."""
    with pytest.raises(DBAPIError) as refused, sessions.begin() as session:
        for _ in range(2):
            values = {"study_instance_uid": "1.2", "revision": 1, "accession_number": "", "created_at": NOW}
            session.execute(insert(StudyRow).values(patient_id="SECRET", **values))
    assert "SECRET" not in str(refused.value)
    assert "1.2" not in queries.explain(refused.value) and len(queries.explain(refused.value)) > 5


# ---- durability ------------------------------------------------------------------------------------------------------


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/knowmvg.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    engine.dispose()


def test_who_reads_waits_for_no_writer_and_sees_what_is_committed(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/knowmvg.db")
    sessions = queries.make_sessions(engine)

    def read() -> list[int]:
        with sessions() as session:
            return list(session.scalars(text("SELECT value FROM filled")))

    with sessions.begin() as session:
        session.execute(text("CREATE TABLE filled (value INTEGER)"))
    with sessions.begin() as session:
        session.execute(text("INSERT INTO filled VALUES (1)"))
        assert read() == []  # and not an error, after a wait for this transaction
    assert read() == [1]
    engine.dispose()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT])
def test_whoever_is_in_the_way_of_a_connection_is_waited_for(code: int) -> None:
    """Also one that recovers SQLite's log after a crash."""
    tried: list[str] = []

    class Driver:
        def execute(self, statement: str) -> None:
            tried.append(statement)
            if len(tried) == 1:
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = code
                raise error

    connection: Any = Driver()
    _switch_to_wal(connection)
    assert tried == ["PRAGMA journal_mode=WAL"] * 2


def test_what_a_session_that_reads_has_written_is_not_kept(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/knowmvg.db")
    sessions = queries.make_sessions(engine)
    with sessions() as session:
        session.execute(text("CREATE TABLE filled (value INTEGER)"))
    with sessions() as session, pytest.raises(OperationalError, match="no such table"):
        session.execute(text("SELECT value FROM filled"))
    engine.dispose()


def test_the_sweep_copies_sqlites_log_into_the_database(tmp_path: Path) -> None:
    """A commit does so only where no scheduler has for long: it would wait for pages all over the database."""
    engine = make_engine(f"sqlite:///{tmp_path}/knowmvg.db")
    sessions = queries.make_sessions(engine)

    def is_copied(text: str) -> bool:
        return text.encode() in (tmp_path / "knowmvg.db").read_bytes()

    with sessions.begin() as session:
        session.execute(text("CREATE TABLE filled (value TEXT)"))
    for number in range(30):  # pages of 4 KiB, more than a log of SQLite's own length holds
        with sessions.begin() as session:
            session.execute(text("INSERT INTO filled VALUES (:value)"), {"value": f"-{number}-" + "x" * 200_000})
    assert not is_copied("-29-xxx")
    queries.copy_log(sessions)
    assert is_copied("-29-xxx")
    engine.dispose()


def test_postgresql_syncs_every_commit(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
    engine.dispose()
