"""Associations that are shared by dispatches which follow one another: none harms the next, none is held for long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.events import Event
from sqlalchemy import select

from dicom_node import scu
from dicom_node.config import DestinationSettings
from dicom_node.errors import AbsentError
from dicom_node.tables import DestinationRow, JobRow
from tests.acceptance.peers import wait_until
from tests.fakes import FakePacs
from tests.integration.test_deliver import store_study
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers import deliver, lines
from workers.lanes import Lanes
from workers.lines import Lines

IDLE_S = lines.IDLE_S


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has much to do may take longer from one dispatch to the next than an association is kept."""
    monkeypatch.setattr(lines, "IDLE_S", 5.0)


class Lane:
    """A node whose deliveries share associations in this thread, and an archive that notes them."""

    def __init__(self, folder: Path, pacs: FakePacs) -> None:
        self.associations: list[Any] = []
        self.lines = Lines(scu.connect)
        pacs.misbehave = self.note
        self.rig = Rig(folder, make_sqlite_sessions(folder), [pacs.start()])

    def note(self, event: Event) -> int | None:
        """Note the association of a C-STORE."""
        if event.assoc not in self.associations:
            self.associations.append(event.assoc)
        return None

    def deliver(self, *studies: str) -> list[str]:
        """Have studies delivered one after the other; return the states of their jobs."""
        jobs = [store_study(self.rig, study) for study in studies]
        self.settle(seconds=QUIET_S)
        return [self.rig.job(job)["state"] for job in jobs]

    def settle(self, **later: float) -> None:
        """Sweep, and have done what is due."""
        self.rig.sweep(**later)
        while self.rig.rings:
            self.rig.run(*self.rig.rings.pop(0), connect=self.lines.connect)

    def confirmed_by(self) -> list[set[str | None]]:
        """Return of each job in turn how its results were confirmed."""
        with self.rig.sessions() as session:
            jobs = session.scalars(select(JobRow.job_id).order_by(JobRow.job_id)).all()
        return [{one["confirmed_by"] for one in self.rig.job(job)["deliveries"]} for job in jobs]


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    pacs = FakePacs()
    yield pacs
    pacs.stop()


@pytest.fixture
def lane(tmp_path: Path, pacs: FakePacs) -> Iterator[Lane]:
    lane = Lane(tmp_path, pacs)
    yield lane
    lane.lines.close()


def test_dispatches_that_follow_one_another_share_an_association_until_the_lane_rests(lane: Lane) -> None:
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3
    (association,) = lane.associations
    assert association.is_established
    lane.lines.close()
    wait_until(lambda: association.is_released, "the association to be released")
    assert lane.deliver("4") == ["DELIVERED"]
    assert len(lane.associations) == 2


def test_storage_commitment_confirms_on_a_shared_association(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "same"
    lane = Lane(tmp_path, pacs)
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3
    assert len(lane.associations) == 1
    lane.lines.close()


def test_the_second_of_two_reports_on_one_association_is_answered_and_counted(tmp_path: Path, pacs: FakePacs) -> None:
    pacs.commits = "same"
    lane = Lane(tmp_path, pacs)
    assert lane.deliver("1", "2") == ["DELIVERED"] * 2
    wait_until(lambda: len(pacs.reports) == 2, "the answers to both reports", 5)
    assert pacs.reports == [0x0000, 0x0000]
    assert len(lane.associations) == 1
    samples = lane.rig.resources.recorder.samples()
    assert samples["knowmvg_deliveries", "archive0", "commitment"] == (2.0,)
    lane.lines.close()


def test_an_association_is_not_shared_for_long(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_S", 0.0)
    assert lane.deliver("1", "2") == ["DELIVERED"] * 2
    assert len(lane.associations) == 2
    wait_until(lambda: all(one.is_released for one in lane.associations), "both to be released, with no further use", 3)


def test_an_association_whose_time_runs_out_between_two_uses_is_released_then(
    lane: Lane, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_S", 1.0)
    monkeypatch.setattr(lines, "IDLE_S", 60.0)
    with lane.lines.connect(_destination(pacs), [scu.COMPREHENSIVE_SR], "KNOWMVG") as archive:
        pass
    assert archive.is_open
    wait_until(lambda: not archive.is_open, "its time to run out", 5)


def test_an_association_that_nobody_uses_is_released_though_its_thread_is_busy(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a thread that waits for the database to keep what it did."""
    monkeypatch.setattr(lines, "IDLE_S", IDLE_S)
    assert lane.deliver("1") == ["DELIVERED"]
    wait_until(lambda: lane.associations[0].is_released, "the association to be released", 3)
    assert lane.deliver("2") == ["DELIVERED"]
    assert len(lane.associations) == 2


def test_an_association_that_nobody_uses_is_released_though_its_lane_is_rung_all_the_time(
    pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "IDLE_S", IDLE_S)
    kept, archives, stop = Lines(scu.connect), list[scu.Archive](), threading.Event()
    lanes = Lanes(60, lambda work: work(), kept.close)
    pacs.start()

    def work() -> None:
        with kept.connect(_destination(pacs), [scu.COMPREHENSIVE_SR], "KNOWMVG") as archive:
            archives.append(archive)

    def ring() -> None:
        while not stop.wait(IDLE_S / 5):
            lanes.submit("a", "not due", lambda: None)

    lanes.submit("a", "due", work)
    ringing = threading.Thread(target=ring)
    ringing.start()
    wait_until(lambda: archives and not archives[0].is_open, "the association to be released", 5)
    stop.set()
    ringing.join()
    lanes.stop(5)


def test_an_association_that_is_closed_as_it_is_wanted_is_followed_by_another(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "IDLE_S", 0.0)
    assert lane.deliver("1", "2", "3", "4", "5") == ["DELIVERED"] * 5


def test_an_archive_that_ends_associations_between_studies_is_delivered_to(lane: Lane, pacs: FakePacs) -> None:
    assert lane.deliver("1") == ["DELIVERED"]
    lane.associations[0].abort()
    assert lane.deliver("2") == ["DELIVERED"]
    assert len(lane.associations) == 2


def test_an_archive_that_takes_one_study_for_each_association_is_delivered_to(lane: Lane, pacs: FakePacs) -> None:
    studies: dict[Any, set[str]] = {}

    def drop(event: Event) -> int | None:
        seen = studies.setdefault(event.assoc, set())
        seen.add(event.dataset.StudyInstanceUID)
        if len(seen) == 1:
            return None
        event.assoc.abort()
        return 0xA700  # it keeps nothing of it

    pacs.misbehave = drop
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3
    assert [len(seen) for seen in studies.values()] == [2, 2, 1]
    assert set(pacs.stores.values()) == {1}


def test_an_archive_that_breaks_off_on_a_new_association_too_is_tried_again_later(lane: Lane, pacs: FakePacs) -> None:
    assert lane.deliver("1") == ["DELIVERED"]
    broken: list[Event] = []

    def drop(event: Event) -> int | None:
        broken.append(event)
        event.assoc.abort()
        return None

    pacs.misbehave = drop
    assert lane.deliver("2") == ["WRITTEN"]
    assert len(broken) == 2
    pacs.misbehave = lane.note
    lane.rig.settle(seconds=60)
    assert {lane.rig.job(job)["state"] for job in (1, 2)} == {"DELIVERED"}


def test_one_that_fails_harms_no_other(lane: Lane, pacs: FakePacs) -> None:
    studies: list[str] = []

    def refuse(event: Event) -> int | None:
        lane.note(event)
        study = str(event.dataset.StudyInstanceUID)
        if study not in studies:
            studies.append(study)
        return 0xA700 if studies.index(study) == 1 else None

    pacs.misbehave = refuse
    assert lane.deliver("1", "2", "3") == ["DELIVERED", "WRITTEN", "DELIVERED"]
    assert len(lane.associations) == 2  # what one that was used refuses is asked for on a new one
    pacs.misbehave = lane.note
    lane.rig.settle(seconds=60)
    assert {lane.rig.job(job)["state"] for job in (1, 2, 3)} == {"DELIVERED"}


def test_what_was_not_proposed_takes_another_association(pacs: FakePacs) -> None:
    with pacs:
        rig_lines, destination = Lines(scu.connect), _destination(pacs)
        with rig_lines.connect(destination, [scu.COMPREHENSIVE_SR], "KNOWMVG") as first:
            assert not first.is_used
        with rig_lines.connect(destination, [scu.COMPREHENSIVE_SR, scu.COMPREHENSIVE_3D_SR], "KNOWMVG") as second:
            assert second is not first and not first.is_open
        with rig_lines.connect(destination, [scu.COMPREHENSIVE_SR], "KNOWMVG") as third:
            assert third is second and third.is_used
        with pytest.raises(ValueError, match="a bug"), rig_lines.connect(destination, [], "KNOWMVG"):
            raise ValueError("a bug")
        assert not second.is_open


def test_a_lane_rests_when_nothing_more_comes_and_when_it_is_stopped() -> None:
    rested: list[int] = []
    lanes = Lanes(60, lambda work: work(), lambda: rested.append(threading.get_ident()))
    worked: list[int] = []
    for number in range(3):
        lanes.submit("a", str(number), lambda: worked.append(threading.get_ident()))
    wait_until(lambda: bool(rested), "the lane to rest")
    assert len(worked) == 3 and rested == worked[:1]
    lanes.submit("a", "4", lambda: worked.append(0))
    wait_until(lambda: len(worked) == 4, "the lane to work")
    lanes.stop(5)
    assert len(rested) == 2
    assert not lanes.is_busy


def _destination(pacs: FakePacs) -> DestinationSettings:
    values = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    return DestinationSettings.model_validate(values)


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0xA700])
def test_an_archive_that_takes_one_study_on_each_association_gets_them_all(
    lane: Lane, pacs: FakePacs, status: int
) -> None:
    first: dict[Any, str] = {}

    def refuse(event: Event) -> int | None:
        lane.note(event)
        study = str(event.dataset.StudyInstanceUID)
        return None if first.setdefault(event.assoc, study) == study else status

    pacs.misbehave = refuse
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3
    assert len(lane.associations) == 3


def refuse_once_used(lane: Lane, pacs: FakePacs, *, aborts: bool) -> None:
    """Have the archive refuse for good what comes on an association after its first study, and then abort it."""
    first: dict[Any, str] = {}
    refused: list[Any] = []

    def refuse(event: Event) -> int | None:
        lane.note(event)
        study = str(event.dataset.StudyInstanceUID)
        if first.setdefault(event.assoc, study) == study:
            return None
        if aborts and event.assoc in refused:
            event.assoc.abort()
        refused.append(event.assoc)
        return 0xC000

    pacs.misbehave = refuse


def test_what_is_refused_before_a_used_association_breaks_off_is_sent_again(lane: Lane, pacs: FakePacs) -> None:
    refuse_once_used(lane, pacs, aborts=True)
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3


def test_what_a_used_association_refuses_too_late_to_begin_anew_is_tried_later(
    lane: Lane, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "AGAIN_WITHIN_S", 0)
    refuse_once_used(lane, pacs, aborts=False)
    assert lane.deliver("1", "2") == ["DELIVERED", "WRITTEN"]


def test_what_a_used_association_breaks_off_at_too_late_to_begin_anew_is_tried_later(
    lane: Lane, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lane.deliver("1") == ["DELIVERED"]
    monkeypatch.setattr(deliver, "AGAIN_WITHIN_S", 0)

    def break_off(event: Event) -> None:
        lane.note(event)
        if event.assoc is lane.associations[0]:
            event.assoc.abort()

    pacs.misbehave = break_off  # type: ignore[assignment]
    assert lane.deliver("2") == ["WRITTEN"]
    assert len(lane.associations) == 1
    lane.rig.settle(seconds=60)
    assert lane.rig.job(2)["state"] == "DELIVERED"


def test_a_used_association_that_is_gone_is_no_contact_with_the_archive(lane: Lane, pacs: FakePacs) -> None:
    assert lane.deliver("1") == ["DELIVERED"]
    before = load_destination(lane)

    def away(*_: Any, **__: Any) -> Any:
        raise AbsentError("archive0 cannot be reached")

    pacs.misbehave = lambda event: event.assoc.abort()  # type: ignore[func-returns-value]
    lane.lines._connect = away
    assert lane.deliver("2") == ["WRITTEN"]
    after = load_destination(lane)
    assert before.last_contact_at is not None and after.last_contact_at == before.last_contact_at
    assert (before.failures, after.failures) == (0, 1)
    assert after.hold_until is not None


def load_destination(lane: Lane) -> DestinationRow:
    with lane.rig.sessions() as session:
        return session.get_one(DestinationRow, "archive0")


def test_what_is_refused_on_an_association_of_its_own_is_refused(lane: Lane, pacs: FakePacs) -> None:
    assert lane.deliver("1") == ["DELIVERED"]
    pacs.misbehave = lambda _: 0xC000
    assert lane.deliver("2") == ["FAILED"]


# ---- confirmations on an association that served others --------------------------------------------------------------


def is_first(event: Event, study: str, first: dict[Any, str]) -> bool:
    """Tell whether a study is the one that an association served first."""
    return first.setdefault(event.assoc, study) == study


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xA700, 0xC001])
def test_a_query_that_a_used_association_refuses_is_asked_on_a_new_one(lane: Lane, pacs: FakePacs, status: int) -> None:
    """Else its C-STORE response would count: it would pass for an archive that answers no query."""
    first: dict[Any, str] = {}

    def refuse(event: Event) -> None:
        pacs.find_status = 0x0000 if is_first(event, event.identifier.StudyInstanceUID, first) else status

    pacs.misread = refuse
    assert lane.deliver("1", "2", "3") == ["DELIVERED"] * 3
    assert lane.confirmed_by() == [{"query"}] * 3
    assert set(pacs.stores.values()) == {1}
    assert len(first) == 3


def test_what_a_used_association_refuses_too_late_to_ask_anew_is_not_confirmed_by_its_store_status(
    lane: Lane, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "AGAIN_WITHIN_S", 0)
    first: dict[Any, str] = {}

    def refuse(event: Event) -> None:
        pacs.find_status = 0x0000 if is_first(event, event.identifier.StudyInstanceUID, first) else 0x0122

    pacs.misread = refuse
    assert lane.deliver("1", "2") == ["DELIVERED", "WRITTEN"]
    assert lane.confirmed_by() == [{"query"}, {None}]
    assert "did not confirm" in lane.rig.job(2)["failure"]


def test_what_a_used_association_does_not_show_is_not_sent_again(lane: Lane, pacs: FakePacs) -> None:
    first: dict[Any, str] = {}

    def show_one(event: Event) -> None:
        pacs.shows = is_first(event, event.identifier.StudyInstanceUID, first)

    pacs.commits = "never"
    pacs.stop()
    pacs.start()
    assert lane.deliver("1", "2") == ["WRITTEN"] * 2
    lane.lines.close()
    pacs.misread = show_one
    lane.settle(seconds=lane.rig.settings.destinations[0].report_within_s)
    assert lane.confirmed_by() == [{"query"}] * 2
    assert set(pacs.stores.values()) == {1}


def test_an_archive_that_takes_a_while_to_show_what_came_is_still_sent_it_on_one_association(
    lane: Lane, pacs: FakePacs
) -> None:
    pacs.shows = False
    assert lane.deliver("1", "2", "3") == ["WRITTEN"] * 3
    assert len(lane.associations) == 1


def test_a_request_for_commitment_that_a_used_association_refuses_is_made_on_a_new_one(
    lane: Lane, pacs: FakePacs
) -> None:
    asked, handle = list[Any](), pacs._handle_action

    def refuse(event: Event) -> Any:
        pacs.commit_status = 0x0213 if event.assoc in asked else 0x0000
        asked.append(event.assoc)
        return handle(event)

    pacs._handle_action, pacs.commits = refuse, "same"  # type: ignore[method-assign]
    pacs.stop()
    pacs.start()
    assert lane.deliver("1", "2") == ["DELIVERED"] * 2
    assert lane.confirmed_by() == [{"commitment"}] * 2
    assert len(asked) == 3 and len(set(asked)) == 2
