"""Results on their way to archives of every kind: what is sent, what counts as delivered, what is tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.events import Event
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from dicom_node import queries
from dicom_node.commitment import PUSH_MODEL, make_report
from dicom_node.confirmation import take_report
from dicom_node.errors import NodeError
from dicom_node.queries.destinations import LONGEST_HOLD
from dicom_node.study import MAX_DEATHS
from dicom_node.tables import CommitmentRow, DestinationRow, DispatchRow
from tests.builders import decode, make_cxr_dataset, make_report_dataset
from tests.fakes import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE, FakePacs
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers import deliver
from workers.resources import LEASE

DAY_S = 86400.0


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    pacs = FakePacs()
    yield pacs
    pacs.stop()


def make_rig(folder: Path, *archives: FakePacs, **destination: Any) -> Rig:
    """Start the archives and return a node that delivers to them; `destination` are further keys of each."""
    for pacs in archives:
        pacs.start()
    names = [
        {"name": f"archive{number}", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port} | destination
        for number, pacs in enumerate(archives)
    ]
    return Rig(folder, make_sqlite_sessions(folder), archives, destinations=names)


def store_study(rig: Rig, study: str = "1") -> int:
    image = make_cxr_dataset(study=study)
    rig.store(image)
    job_id = rig.store(make_report_dataset(study=study, image=image)).job_id
    assert job_id is not None
    return job_id


def run(rig: Rig, study: str = "1") -> dict[str, Any]:
    """Send a study all the way, as far as it goes at once."""
    job_id = store_study(rig, study)
    rig.settle(seconds=QUIET_S)
    return rig.job(job_id)


def states(job: dict[str, Any]) -> tuple[str, set[str], set[str | None]]:
    """Return the state of the job, of its parts, and how they were confirmed."""
    parts = job["deliveries"]
    return job["state"], {one["state"] for one in parts}, {one["confirmed_by"] for one in parts}


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_archive_gets_one_sr_of_the_preferred_class_and_the_presentation_state(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job) == ("DELIVERED", {"DELIVERED"}, {"query"})
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_3D_SR]
    assert pacs.stores == {one["sop_instance_uid"]: 1 for one in job["deliveries"]}
    for result in job["results"]:
        if result["sop_instance_uid"] in pacs.datasets:
            written = decode(rig.storage.path(result["storage_key"]).read_bytes())
            assert pacs.datasets[result["sop_instance_uid"]] == written


def test_archive_without_3d_gets_comprehensive(tmp_path: Path) -> None:
    with FakePacs(classes=(COMPREHENSIVE_SR, GSPS_STORAGE)) as pacs:
        assert run(make_rig(tmp_path, pacs))["state"] == "DELIVERED"
        assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_SR]


def test_archive_that_accepts_neither_sr_class_is_a_dead_letter_and_still_gets_the_rest(tmp_path: Path) -> None:
    with FakePacs(classes=(GSPS_STORAGE,)) as pacs:
        job = run(make_rig(tmp_path, pacs))
        assert job["state"] == "FAILED"
        assert "sr_class" in job["failure"] and "deliveries replay" in job["failure"]
        assert len(pacs.of_class(GSPS_STORAGE)) == 1


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xC000, 0x0110])
def test_archive_that_accepts_3d_but_refuses_to_store_it_gets_comprehensive(
    tmp_path: Path, pacs: FakePacs, status: int
) -> None:
    pacs.refused = {COMPREHENSIVE_3D_SR: status}
    assert run(make_rig(tmp_path, pacs))["state"] == "DELIVERED"
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_SR]


def test_archive_that_is_full_is_not_tried_with_the_other_class(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.refused = {COMPREHENSIVE_3D_SR: 0xA700}
    assert run(make_rig(tmp_path, pacs))["state"] == "WRITTEN"
    assert pacs.structured_reports() == []


# ---- what counts as delivered ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", ["same", "new"])
def test_storage_commitment_confirms(tmp_path: Path, pacs: FakePacs, commits: str) -> None:
    """On the association that asked; and on another, which the rig takes in the place of a receiver."""
    pacs.commits = commits
    rig = make_rig(tmp_path, pacs)
    report: dict[str, Any] = {}
    pacs.report = lambda event_type, ds, ae_title=None: report.update(ds=ds)  # type: ignore[method-assign, return-value]
    job = run(rig)
    if commits == "new":
        assert states(job) == ("WRITTEN", {"STORED"}, {None})
        take_report(report["ds"], pacs.ae_title, rig.settings, rig.sessions, rig.clock)
        job = rig.job(job["job_id"])
    assert states(job) == ("DELIVERED", {"DELIVERED"}, {"commitment"})
    assert len(pacs.transactions) == 1


def test_what_an_archive_did_not_commit_to_is_sent_again_under_a_new_transaction(
    tmp_path: Path, pacs: FakePacs
) -> None:
    pacs.commits, pacs.loses = "same", 1
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job) == ("WRITTEN", {"DELIVERED", "PENDING"}, {"commitment", None})
    assert "does not have the instance" in str([one["detail"] for one in job["deliveries"]])
    pacs.loses = 0
    rig.settle(seconds=60)
    assert states(rig.job(job["job_id"])) == ("DELIVERED", {"DELIVERED"}, {"commitment"})
    assert sorted(pacs.stores.values()) == [1, 2]
    assert len(set(pacs.transactions)) == 2


def test_archive_that_says_success_and_keeps_nothing_is_never_delivered_to(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits, pacs.keeps = "same", False
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    for _ in range(5):
        rig.settle(seconds=1200)
    assert states(rig.job(job["job_id"]))[:2] == ("WRITTEN", {"PENDING"})


def test_report_that_never_comes_is_replaced_by_a_query(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "never"
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job) == ("WRITTEN", {"STORED"}, {None})
    assert job["dispatches"][0]["state"] == "CONFIRMING"
    rig.settle(seconds=rig.settings.destinations[0].report_within_s)
    assert states(rig.job(job["job_id"])) == ("DELIVERED", {"DELIVERED"}, {"query"})
    assert set(pacs.stores.values()) == {1}


def test_what_an_archive_lost_before_it_reported_is_sent_again(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "never"
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    pacs.datasets.clear()
    rig.settle(seconds=rig.settings.destinations[0].report_within_s)
    pacs.commits = "same"
    rig.settle(seconds=1200)
    rig.settle(seconds=1200)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"
    assert set(pacs.stores.values()) == {2}


def test_archive_that_never_confirms_anything_is_a_dead_letter_in_the_end(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits, pacs.queryable = "never", False
    rig = make_rig(tmp_path, pacs, patience_s=DAY_S)
    job = run(rig)
    for _ in range(40):
        rig.settle(hours=1)
    job = rig.job(job["job_id"])
    assert (job["state"], job["dispatches"][0]["state"]) == ("FAILED", "DEAD")
    assert "has not confirmed them" in job["failure"]
    assert len(set(pacs.transactions)) == len(pacs.transactions) > 10


def test_report_of_somebody_else_delivers_nothing(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "never"
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    references = [("1.2.840.10008.5.1.4.1.1.88.34", one["sop_instance_uid"]) for one in job["deliveries"]]
    _, known = make_report(pacs.transactions[0], references, {})
    _, unknown = make_report("1.2.3", references, {})
    assert take_report(known, "STRANGER", rig.settings, rig.sessions, rig.clock) == 0x0112
    assert take_report(unknown, pacs.ae_title, rig.settings, rig.sessions, rig.clock) == 0x0112
    assert rig.job(job["job_id"])["state"] == "WRITTEN"
    assert take_report(known, pacs.ae_title, rig.settings, rig.sessions, rig.clock) == 0x0000
    assert rig.job(job["job_id"])["state"] == "DELIVERED"


def test_an_old_report_confirms_but_sends_nothing_again(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits, pacs.queryable = "never", False
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    rig.settle(seconds=rig.settings.destinations[0].report_within_s)
    first, second = pacs.transactions
    uids = [one["sop_instance_uid"] for one in job["deliveries"]]
    _, old = make_report(first, [("1.2", uids[0])], {("1.2", uids[1]): 0x0110})
    take_report(old, pacs.ae_title, rig.settings, rig.sessions, rig.clock)
    assert sorted(one["state"] for one in rig.job(job["job_id"])["deliveries"]) == ["DELIVERED", "STORED"]
    _, new = make_report(second, [("1.2", uids[1])], {})
    take_report(new, pacs.ae_title, rig.settings, rig.sessions, rig.clock)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"


def test_archive_that_offers_nothing_confirms_by_its_store_status(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.queryable = False
    assert states(run(make_rig(tmp_path, pacs))) == ("DELIVERED", {"DELIVERED"}, {"store"})


def test_archive_that_refuses_the_query_confirms_by_its_store_status(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.find_status = 0x0122  # SOP class not supported
    assert states(run(make_rig(tmp_path, pacs))) == ("DELIVERED", {"DELIVERED"}, {"store"})


@pytest.mark.parametrize("confirmation", ["commitment", "query"])
def test_a_confirmation_that_is_insisted_on_is_not_replaced(tmp_path: Path, pacs: FakePacs, confirmation: str) -> None:
    pacs.queryable = False
    job = run(make_rig(tmp_path, pacs, confirmation=confirmation))
    assert states(job)[:2] == ("WRITTEN", {"STORED"})
    assert f"no confirmation by {confirmation}" in job["failure"]


def test_without_commitment_nothing_is_asked(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.shows, pacs.commits = False, "same"
    assert states(run(make_rig(tmp_path, pacs, commitment=False))) == ("DELIVERED", {"DELIVERED"}, {"store"})
    assert pacs.transactions == []


def test_archive_that_does_not_show_it_yet_is_asked_again_and_not_sent_it_again(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.shows = False
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job)[:2] == ("WRITTEN", {"STORED"})
    pacs.shows = True
    rig.settle(seconds=rig.settings.destinations[0].report_within_s)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"
    assert set(pacs.stores.values()) == {1}


@pytest.mark.parametrize("status", [0xA700, 0xC001])  # out of resources, unable to process
def test_archive_that_cannot_answer_the_query_now_is_asked_again(tmp_path: Path, pacs: FakePacs, status: int) -> None:
    pacs.find_status = status
    job = run(make_rig(tmp_path, pacs))
    assert states(job) == ("WRITTEN", {"STORED"}, {None})
    assert "did not answer the query" in job["failure"]


def test_archive_that_breaks_off_at_the_query_is_asked_again(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.requestor.ANSWER_TIMEOUT_S", 2)
    pacs.misread = lambda event: event.assoc.abort()
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job) == ("WRITTEN", {"STORED"}, {None})
    assert "broke off" in job["failure"] or "did not answer" in job["failure"]
    pacs.misread = lambda event: None
    rig.settle(seconds=1200)
    assert states(rig.job(job["job_id"])) == ("DELIVERED", {"DELIVERED"}, {"query"})


def test_archive_that_stalls_at_the_query_is_asked_again(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.requestor.ANSWER_TIMEOUT_S", 0.5)
    go_on = threading.Event()

    def stall(event: Event) -> None:
        go_on.wait(20)

    pacs.misread = stall
    job = run(make_rig(tmp_path, pacs))
    go_on.set()
    assert states(job) == ("WRITTEN", {"STORED"}, {None})


def test_what_is_overdue_is_not_lost_where_the_archive_breaks_off_at_the_query(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "never"
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    pacs.misread = lambda event: event.assoc.abort()
    rig.settle(seconds=rig.settings.destinations[0].report_within_s)
    assert states(rig.job(job["job_id"])) == ("WRITTEN", {"STORED"}, {None})
    assert set(pacs.stores.values()) == {1}


def test_warning_counts_as_taken_and_is_told(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.status = 0xB000
    job = run(make_rig(tmp_path, pacs))
    assert job["state"] == "DELIVERED"
    assert {one["detail"] for one in job["deliveries"]} == {"0xB000 stored, with coercion of data elements"}
    assert "with coercion of data elements" in str(job["timeline"])


@pytest.mark.parametrize(("queryable", "state"), [(True, "DELIVERED"), (False, "WRITTEN")])
def test_a_duplicate_is_believed_only_where_it_is_confirmed(
    tmp_path: Path, pacs: FakePacs, queryable: bool, state: str
) -> None:
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    pacs.stop()
    pacs.status, pacs.queryable = 0x0111, queryable
    pacs.start()
    with rig.sessions.begin() as session:
        queries.retry_job(session, job["job_id"], rig.clock())
    rig.settle(seconds=1)
    assert rig.job(job["job_id"])["state"] == state


# ---- what is tried again, and given up -------------------------------------------------------------------------------


def test_archive_that_is_away_is_waited_for_and_held(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    pacs.stop()
    store_study(rig, "2")
    job = run(rig)
    assert (job["state"], job["attempts"]) == ("WRITTEN", 0)
    assert "cannot be reached" in rig.job(1)["failure"]  # for the second nobody even tries: it is held
    assert [row.failures for row in rows(rig, DestinationRow)] == [1]
    for _ in range(10):
        rig.settle(seconds=1200)
    assert rig.job(job["job_id"])["state"] == "WRITTEN"
    pacs.start()
    rig.settle(seconds=LONGEST_HOLD.total_seconds())
    rig.settle(seconds=1200)
    assert {row.state for row in rows(rig, DispatchRow)} == {"DELIVERED"}
    assert set(pacs.stores.values()) == {1}


def rows(rig: Rig, of: type[Any]) -> list[Any]:
    with rig.sessions() as session:
        return list(session.scalars(select(of)))


def test_archive_that_stays_away_is_a_dead_letter_and_a_replay_delivers(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    pacs.stop()
    job = run(rig)
    rig.settle(days=8)
    job = rig.job(job["job_id"])
    assert (job["state"], job["dispatches"][0]["state"]) == ("FAILED", "DEAD")
    assert "cannot be reached" in job["failure"] and "given up after" in job["failure"]
    assert "deliveries replay 1" in job["failure"]
    pacs.start()
    with rig.sessions.begin() as session:
        queries.replay_dispatch(session, job["dispatches"][0]["dispatch_id"], rig.clock())
    rig.settle(minutes=2)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"
    with rig.sessions.begin() as session, pytest.raises(NodeError, match="no dead letter"):
        queries.replay_dispatch(session, job["dispatches"][0]["dispatch_id"], rig.clock())


def test_archive_that_refuses_is_a_dead_letter_and_a_retry_delivers(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.status = 0xC000
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert states(job)[:2] == ("FAILED", {"FAILED"})
    assert "0xC000 (cannot understand)" in job["failure"]
    pacs.status = 0x0000
    with rig.sessions.begin() as session:
        queries.retry_job(session, job["job_id"], rig.clock())
    rig.settle(seconds=1)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"


def test_no_destination_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    job = run(Rig(tmp_path, make_sqlite_sessions(tmp_path), []))
    assert job["state"] == "FAILED"
    assert "destinations" in job["failure"] and "jobs retry" in job["failure"]


def test_destination_that_is_no_longer_configured_is_a_dead_letter(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(0))
    rig.run(*rig.rings.pop(0))
    rig.resources = replace(rig.resources, settings=rig.settings.model_copy(update={"destinations": ()}))
    rig.answer()
    assert "archive0 is no longer configured" in rig.job(job_id)["failure"]


def test_destination_that_is_new_gets_what_is_under_way(tmp_path: Path, pacs: FakePacs) -> None:
    with FakePacs("SECOND") as second:
        rig = make_rig(tmp_path, pacs)
        pacs.stop()
        job_id = run(rig)["job_id"]
        both = [*rig.settings.destinations, rig.settings.destinations[0].model_copy(
            update={"name": "second", "ae_title": "SECOND", "port": second.port}
        )]  # fmt: skip
        rig.resources = replace(rig.resources, settings=rig.settings.model_copy(update={"destinations": tuple(both)}))
        rig.settle(seconds=deliver.OPEN_AGAIN.total_seconds())
        rig.settle(seconds=1)
        assert len(second.structured_reports()) == 1
        pacs.start()
        rig.settle(hours=1)
        assert rig.job(job_id)["state"] == "DELIVERED"


def test_each_destination_has_its_own_schedule(tmp_path: Path, pacs: FakePacs) -> None:
    second = FakePacs("SECOND", classes=(COMPREHENSIVE_SR, GSPS_STORAGE))
    rig = make_rig(tmp_path, pacs, second)
    second.stop()
    job = run(rig)
    assert job["state"] == "WRITTEN"
    assert {one["destination"]: one["state"] for one in job["dispatches"]} == {
        "archive0": "DELIVERED", "archive1": "PENDING",
    }  # fmt: skip
    second.start()
    rig.settle(seconds=60)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"
    second.stop()
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_3D_SR]
    assert [ds.SOPClassUID for ds in second.structured_reports()] == [COMPREHENSIVE_SR]
    assert {*pacs.stores.values(), *second.stores.values()} == {1}


@pytest.mark.parametrize("after", [1, 2])
def test_archive_that_drops_the_association_is_tried_again(tmp_path: Path, pacs: FakePacs, after: int) -> None:
    seen: list[Event] = []

    def drop(event: Event) -> int | None:
        seen.append(event)
        if len(seen) == after:
            event.assoc.abort()
        return None

    pacs.misbehave = drop
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert job["state"] == "WRITTEN"
    rig.settle(seconds=60)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"


def test_an_archive_that_may_have_kept_an_sr_is_given_no_other(tmp_path: Path, pacs: FakePacs) -> None:
    """It kept the first one and broke off before it said so; then it refuses that class."""
    seen: list[str] = []

    def drop(event: Event) -> int | None:
        uid = str(getattr(event.request, "AffectedSOPClassUID", ""))
        seen.append(uid)
        if uid == COMPREHENSIVE_3D_SR and seen.count(uid) == 1:
            event.assoc.abort()
        return None

    pacs.misbehave = drop
    rig = make_rig(tmp_path, pacs)
    job = run(rig)
    assert len(pacs.structured_reports()) == 1  # and the node does not know
    pacs.refused = {COMPREHENSIVE_3D_SR: 0xC000}
    for _ in range(3):
        rig.settle(seconds=1200)
    assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_3D_SR]
    assert rig.job(job["job_id"])["state"] == "FAILED"


def test_a_dead_letter_of_a_class_that_is_no_longer_accepted_is_replayed_as_the_other(tmp_path: Path) -> None:
    with FakePacs() as pacs:
        pacs.misbehave = lambda event: event.assoc.abort()  # type: ignore[func-returns-value]
        rig = make_rig(tmp_path, pacs)
        job_id = run(rig)["job_id"]
        pacs.stop()
        pacs.misbehave, pacs.classes = lambda event: None, (COMPREHENSIVE_SR, GSPS_STORAGE)
        pacs.start()
        rig.settle(seconds=1200)
        assert rig.job(job_id)["state"] == "FAILED"
        with rig.sessions.begin() as session:
            queries.replay_dispatch(session, 1, rig.clock())
        rig.settle(seconds=1)
        assert rig.job(job_id)["state"] == "DELIVERED"
        assert [ds.SOPClassUID for ds in pacs.structured_reports()] == [COMPREHENSIVE_SR]


def test_a_retry_after_the_destinations_came_back_has_all_its_patience(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    pacs.stop()
    job_id = run(rig)["job_id"]
    settings = rig.settings
    rig.resources = replace(rig.resources, settings=settings.model_copy(update={"destinations": ()}))
    rig.settle(days=30)
    assert rig.job(job_id)["state"] == "FAILED"
    rig.resources = replace(rig.resources, settings=settings)
    with rig.sessions.begin() as session:
        queries.retry_job(session, job_id, rig.clock())
    rig.settle(seconds=1)
    assert rig.job(job_id)["state"] == "WRITTEN"


def test_a_database_that_is_away_at_the_end_of_a_try_is_waited_for(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.resources.KEEP_AGAIN_S", 0.01)
    rig = make_rig(tmp_path, pacs)
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(0))
    rig.run(*rig.rings.pop(0))
    failures, end_try = iter(range(3)), queries.end_try

    def fail_at_first(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise OperationalError("UPDATE", None, Exception("the database system is shutting down"))
        return end_try(*arguments)

    monkeypatch.setattr("workers.deliver.queries.end_try", fail_at_first)
    rig.run("deliver", 1)
    assert rig.job(job_id)["state"] == "DELIVERED"
    assert set(pacs.stores.values()) == {1}


# ---- workers that die, messages that come twice ----------------------------------------------------------------------


class WorkerDiedError(BaseException):
    """Ends a try as a kill does."""


def test_a_dispatch_that_kills_its_worker_three_times_is_quarantined(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(0))
    rig.run(*rig.rings.pop(0))

    def die(*_: Any) -> Any:
        raise WorkerDiedError

    for _ in range(MAX_DEATHS):
        with pytest.raises(WorkerDiedError):
            rig.run("deliver", 1, connect=die)
        rig.sweep(seconds=LEASE.total_seconds() + 1)
    rig.answer()
    job = rig.job(job_id)
    assert job["state"] == "FAILED"
    assert job["failure"].startswith("quarantined: the worker died or hung 3 times while it tried to deliver")


def test_a_worker_that_died_after_sending_is_followed_by_one_that_sends_again_and_confirms(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(tmp_path, pacs)
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(0))
    rig.run(*rig.rings.pop(0))
    with monkeypatch.context() as patch, pytest.raises(WorkerDiedError):
        patch.setattr(deliver, "confirm", lambda *_: (_ for _ in ()).throw(WorkerDiedError()))
        rig.run("deliver", 1)
    assert {one["state"] for one in rig.job(job_id)["deliveries"]} == {"STORED"}
    rig.rings.clear()
    rig.settle(seconds=LEASE.total_seconds() + 1)
    assert states(rig.job(job_id)) == ("DELIVERED", {"DELIVERED"}, {"query"})
    assert set(pacs.stores.values()) == {1}  # what it took was known: it was only asked


def test_what_an_archive_took_is_kept_though_the_next_part_cannot_be_read(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    taken: list[Path] = []

    def lose_the_rest(_: Event) -> None:
        """Once the first part is there, the files are gone."""
        if not taken:
            taken.extend(rig.storage.root.rglob("*-result-*.dcm"))
            for path in taken:
                path.rename(path.with_suffix(".away"))

    pacs.misbehave = lose_the_rest  # type: ignore[assignment]
    job = run(rig)
    assert sorted(one["state"] for one in job["deliveries"]) == ["PENDING", "STORED"]
    assert "cannot be read" in job["failure"]
    for path in taken:
        path.with_suffix(".away").rename(path)
    rig.settle(seconds=1200)
    assert rig.job(job["job_id"])["state"] == "DELIVERED"
    assert set(pacs.stores.values()) == {1}


def test_two_rings_for_one_dispatch_at_once_send_it_once(tmp_path: Path, pacs: FakePacs) -> None:
    rig = make_rig(tmp_path, pacs)
    job_id = store_study(rig)
    rig.sweep(seconds=QUIET_S)
    rig.run(*rig.rings.pop(0))
    rig.run(*rig.rings.pop(0))
    both = [threading.Thread(target=rig.run, args=("deliver", 1), kwargs={"token": f"w{n}"}) for n in range(4)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert rig.job(job_id)["state"] == "DELIVERED"
    assert set(pacs.stores.values()) == {1}


def test_transactions_are_kept_before_the_archive_is_asked(tmp_path: Path, pacs: FakePacs) -> None:
    """Else a report on another association would find nothing that it is about."""
    pacs.commits = "never"
    rig = make_rig(tmp_path, pacs)
    known: list[bool] = []
    handle = pacs._handle_action

    def look(event: Event) -> Any:
        uid = event.action_information.TransactionUID
        known.append(any(row.transaction_uid == uid for row in rows(rig, CommitmentRow)))
        return handle(event)

    pacs._handle_action = look  # type: ignore[method-assign]
    pacs.stop()
    pacs.start()
    run(rig)
    assert known == [True]
    assert PUSH_MODEL.startswith("1.2.840.10008")
