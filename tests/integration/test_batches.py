"""Studies grounded together: which jobs a batch takes, and that each keeps its own lease, row and end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.cli.demo_study import make_image_dataset
from dicom_node.cli.demo_study import make_report_dataset as make_phantom_report
from dicom_node.errors import TransientError
from dicom_node.study import MAX_DEATHS
from dicom_node.tables import JobRow
from grounding.phantoms.study import make_study
from grounding.types import DeviceLostError, Grounding, OutOfMemoryError
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakeGrounder
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.batches import Batches
from workers.resources import LEASE, LazyGrounder, Resources
from workers.steps import GROUND

BAD = "There is a bad left effusion."

Many = Sequence[Any]


class WorkerDiedError(BaseException):
    """Ends a worker as a kill does: nothing after it is run."""


@dataclass
class ChoosyGrounder(FakeGrounder):
    """A fake model that raises `bad` of a batch in which a report has the sentence BAD. `meanwhile` is called in it."""

    bad: BaseException | None = None
    meanwhile: Callable[[], None] = lambda: None
    asked: list[int] = field(default_factory=list)

    def ground_prepared(self, studies: Many) -> list[Grounding]:
        self.meanwhile()
        self.asked.append(len(studies))
        if self.bad is not None and any(BAD in report.text for _, report in studies):
            raise self.bad
        return super().ground_prepared(studies)


@pytest.fixture
def grounder() -> ChoosyGrounder:
    return ChoosyGrounder()


@pytest.fixture
def rig(tmp_path: Path, grounder: ChoosyGrounder) -> Rig:
    return make_rig(tmp_path, make_sqlite_sessions(tmp_path), grounder)


def make_rig(folder: Path, sessions: sessionmaker[Session], grounder: FakeGrounder, **model: Any) -> Rig:
    rig = Rig(folder, sessions, [], model={"batch_size": 4, "max_wait_ms": 0} | model)
    rig.grounder = grounder
    return rig


def store(rig: Rig, *studies: str, text: str = "There is a small left effusion.", **attributes: Any) -> list[int]:
    """Store a study of each name; return the jobs."""
    jobs = []
    for study in studies:
        image = make_cxr_dataset(study=study, **attributes)
        rig.store(image)
        job_id = rig.store(make_report_dataset(text, study=study, image=image)).job_id
        assert job_id is not None
        jobs.append(job_id)
        rig.clock.move(seconds=0.1)
    return jobs


def states(rig: Rig, jobs: Sequence[int]) -> list[str]:
    return [rig.job(job)["state"] for job in jobs]


def row(rig: Rig, job_id: int) -> JobRow:
    with rig.sessions() as session:
        return session.get_one(JobRow, job_id)


def rung(rig: Rig, step: str = GROUND.name) -> list[int]:
    """Take the rings for a step."""
    numbers = [number for name, number in rig.rings if name == step]
    rig.rings.clear()
    return numbers


def await_grounded(rig: Rig, jobs: Sequence[int], count: int) -> list[str]:
    """Return the states as soon as so many are GROUNDED: what a batch found is kept while the next is computed."""
    pause = threading.Event()
    for _ in range(1000):
        if (found := states(rig, jobs)).count("GROUNDED") == count:
            return found
        pause.wait(0.01)
    pytest.fail(f"not {count} jobs were kept meanwhile: {found}")


def test_no_study_is_claimed_while_the_model_is_loaded(rig: Rig, grounder: ChoosyGrounder) -> None:
    """A worker that is killed then, three times over, was not killed by the study."""
    (job,) = store(rig, "a")
    rig.sweep(seconds=QUIET_S)
    held: list[str | None] = []

    def load() -> ChoosyGrounder:
        held.append(row(rig, job).lease_token)
        return grounder

    Batches(replace(rig.resources, load_grounder=load)).run(job)
    assert held[0] is None
    assert states(rig, [job]) == ["GROUNDED"]


# ---- which jobs --------------------------------------------------------------------------------------------------


def test_one_ring_grounds_what_waits_and_each_job_has_its_own_end(
    tmp_path: Path, sessions: sessionmaker[Session], grounder: ChoosyGrounder
) -> None:
    rig = make_rig(tmp_path, sessions, grounder)
    jobs = store(rig, "a", "b", "c")
    rig.sweep(seconds=QUIET_S)
    first, *others = rung(rig)
    rig.run(GROUND.name, first)
    assert (states(rig, jobs), grounder.asked) == (["GROUNDED"] * 3, [3])
    assert sorted(rung(rig, "write")) == jobs
    for job in map(rig.job, jobs):
        assert job["timeline"][-1]["event"] == "study grounded"
        assert job["timeline"][-1]["detail"] == "1 phrases, 1 boxes, 0 warnings, in a batch of 3"
        assert job["timings"][GROUND.name] > 0 and job["attempts"] == 0
        assert row(rig, job["job_id"]).lease_token is None
    for job_id in others:  # these rings come too late
        rig.run(GROUND.name, job_id)
    assert grounder.calls == 3


def test_what_waits_longest_comes_first_in_batches_of_the_size_that_is_wanted(
    rig: Rig, grounder: ChoosyGrounder
) -> None:
    jobs = store(rig, *"abcdefghij")
    rig.sweep(seconds=QUIET_S)
    ended: list[list[str]] = []
    grounder.meanwhile = lambda: ended.append(await_grounded(rig, jobs, sum(grounder.asked)))
    rig.run(GROUND.name, jobs[-1])
    assert grounder.asked == [4, 4, 2]
    # The job that was rung for is in the first batch, whatever its age.
    assert [i for i, state in enumerate(ended[1]) if state == "GROUNDED"] == [0, 1, 2, 9]
    assert [i for i, state in enumerate(ended[2]) if state == "GROUNDED"] == [0, 1, 2, 3, 4, 5, 6, 9]
    assert states(rig, jobs) == ["GROUNDED"] * 10


def test_a_batch_waits_a_little_for_what_comes(tmp_path: Path) -> None:
    @dataclass
    class Awaited(FakeGrounder):
        arrive: Callable[[], None] = lambda: None

        def prepare(self, *study: Any) -> Any:
            self.arrive()
            return super().prepare(*study)

    grounder = Awaited()
    rig = make_rig(tmp_path, make_sqlite_sessions(tmp_path), grounder, max_wait_ms=10_000, batch_size=2)
    (job_id,) = store(rig, "a")
    rig.sweep(seconds=QUIET_S)
    later: list[int] = []

    def arrive() -> None:
        grounder.arrive = lambda: None
        later.extend(store(rig, "b"))
        rig.sweep(seconds=QUIET_S)

    grounder.arrive = arrive
    rig.run(GROUND.name, job_id)
    assert (grounder.batches, states(rig, [job_id, *later])) == ([2], ["GROUNDED"] * 2)


def test_what_comes_while_a_batch_is_computed_is_grounded_next(rig: Rig, grounder: ChoosyGrounder) -> None:
    (job_id,) = store(rig, "a")
    rig.sweep(seconds=QUIET_S)

    def arrive() -> None:
        if len(grounder.asked) == 0:
            store(rig, "b", "c")
            rig.sweep(seconds=QUIET_S)

    grounder.meanwhile = arrive
    rig.run(GROUND.name, job_id)
    assert grounder.asked == [1, 2]


def test_the_next_batch_is_prepared_while_one_is_computed(tmp_path: Path) -> None:
    @dataclass
    class Watched(FakeGrounder):
        prepared: list[int] = field(default_factory=list)
        overlapped: threading.Event = field(default_factory=threading.Event)

        def prepare(self, *study: Any) -> Any:
            self.prepared.append(1)
            if len(self.prepared) == 2 and self.batches == []:
                self.overlapped.set()
            return super().prepare(*study)

        def ground_prepared(self, studies: Many) -> list[Grounding]:
            assert self.overlapped.wait(60)
            return super().ground_prepared(studies)

    grounder = Watched()
    rig = make_rig(tmp_path, make_sqlite_sessions(tmp_path), grounder, batch_size=1)
    jobs = store(rig, "a", "b")
    rig.sweep(seconds=QUIET_S)
    rig.run(GROUND.name, jobs[0])
    assert (grounder.batches, states(rig, jobs)) == ([1, 1], ["GROUNDED"] * 2)


def test_a_ring_of_a_job_that_an_earlier_batch_took_waits_for_no_writer(rig: Rig, grounder: ChoosyGrounder) -> None:
    jobs = store(rig, "a", "b")
    rig.sweep(seconds=QUIET_S)
    rig.run(GROUND.name, jobs[0])
    with rig.sessions.begin() as session:
        session.connection()  # which holds the write lock
        rig.run(GROUND.name, jobs[1])
    assert grounder.asked == [2]


def test_a_job_that_is_to_be_tried_later_waits_for_its_time(rig: Rig, grounder: ChoosyGrounder) -> None:
    jobs = store(rig, "a", "b")
    rig.sweep(seconds=QUIET_S)
    grounder.error = TransientError("away")
    rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["COMPLETE"] * 2
    grounder.error = None
    (fresh,) = store(rig, "c")
    with rig.sessions() as session:
        assert row(rig, jobs[1]).due_at > rig.clock()
    rig.clock.move(seconds=0.5)
    with rig.sessions.begin() as session:
        session.get_one(JobRow, fresh).state = "COMPLETE"
    rig.run(GROUND.name, fresh)
    assert states(rig, [*jobs, fresh]) == ["COMPLETE", "COMPLETE", "GROUNDED"]
    rig.clock.move(seconds=60)
    rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["GROUNDED"] * 2


def test_workers_that_share_the_jobs_ground_each_once(
    tmp_path: Path, sessions: sessionmaker[Session], grounder: ChoosyGrounder
) -> None:
    rig = make_rig(tmp_path, sessions, grounder, batch_size=3)
    jobs = store(rig, *(str(number) for number in range(20)))
    rig.sweep(seconds=QUIET_S)
    rings = iter(rung(rig))
    lock = threading.Lock()

    def work(token: str) -> None:
        batches = Batches(replace(rig.resources, token=token))
        while True:
            with lock:
                job_id = next(rings, None)
            if job_id is None:
                return
            batches.run(job_id)

    workers = [threading.Thread(target=work, args=(f"worker {number}",)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert states(rig, jobs) == ["GROUNDED"] * 20
    assert grounder.calls == sum(grounder.asked) == 20
    assert sorted(rung(rig, "write")) == jobs


# ---- one bad study -----------------------------------------------------------------------------------------------


def test_a_study_that_cannot_be_read_fails_alone(rig: Rig, grounder: ChoosyGrounder) -> None:
    good = store(rig, "a", "b")
    bad = store(rig, "c", PixelData=b"\0\0")
    rig.sweep(seconds=QUIET_S)
    rig.run(GROUND.name, bad[0])
    assert states(rig, [*good, *bad]) == ["GROUNDED", "GROUNDED", "NOT_APPLICABLE"]
    assert grounder.asked == [2]


@pytest.mark.parametrize(
    ("error", "state", "failure"),
    [
        (OutOfMemoryError("it does not fit"), "FAILED", "quarantined: it does not fit"),
        (TransientError("try later"), "COMPLETE", "try later"),
    ],
)
def test_a_study_that_the_model_refuses_fails_alone(
    rig: Rig, grounder: ChoosyGrounder, error: Exception, state: str, failure: str
) -> None:
    grounder.bad = error
    jobs = [*store(rig, "a"), *store(rig, "b", text=BAD), *store(rig, "c")]
    rig.sweep(seconds=QUIET_S)
    rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["GROUNDED", state, "GROUNDED"]
    assert rig.job(jobs[1])["failure"].startswith(failure)
    assert grounder.asked == [3, 1, 1, 1]
    assert "in a batch" not in rig.job(jobs[0])["timeline"][-1]["detail"]


def test_a_bug_counts_as_a_try_of_its_own_study_and_is_raised_when_the_others_are_kept(
    rig: Rig, grounder: ChoosyGrounder
) -> None:
    grounder.bad = ZeroDivisionError("a bug")
    jobs = [*store(rig, "a", text=BAD), *store(rig, "b"), *store(rig, "c", text=BAD), *store(rig, "d", "e")]
    rig.sweep(seconds=QUIET_S)
    with pytest.raises(ZeroDivisionError):
        rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["COMPLETE", "GROUNDED", "COMPLETE", "GROUNDED", "GROUNDED"]
    assert [row(rig, job).attempts for job in jobs] == [1, 0, 1, 0, 0]
    assert all("ZeroDivisionError" in rig.job(jobs[number])["failure"] for number in (0, 2))


# ---- workers that die, stop or hang ------------------------------------------------------------------------------


def test_a_study_that_kills_its_worker_takes_others_with_it_once_at_most(rig: Rig, grounder: ChoosyGrounder) -> None:
    grounder.bad = WorkerDiedError()
    jobs = [*store(rig, "a"), *store(rig, "b", text=BAD), *store(rig, "c")]
    rig.sweep(seconds=QUIET_S)
    rig.rings.clear()
    with pytest.raises(WorkerDiedError):
        rig.run(GROUND.name, jobs[0])
    assert grounder.asked == [3]
    for _ in range(MAX_DEATHS):
        rig.sweep(seconds=LEASE.total_seconds() + 1)
        for job_id in rung(rig):
            try:
                rig.run(GROUND.name, job_id)
            except WorkerDiedError:
                assert job_id == jobs[1]
    assert states(rig, jobs) == ["GROUNDED", "FAILED", "GROUNDED"]
    assert rig.job(jobs[1])["failure"].startswith("quarantined: the worker died or hung 3 times")
    assert grounder.asked == [3, *[1] * (MAX_DEATHS + 1)]  # each alone: two innocents, and two more deaths


def test_a_job_that_is_cancelled_while_its_batch_is_computed_stays_so(rig: Rig, grounder: ChoosyGrounder) -> None:
    jobs = store(rig, "a", "b")
    rig.sweep(seconds=QUIET_S)

    def cancel() -> None:
        with rig.sessions.begin() as session:
            queries.cancel_job(session, jobs[1], rig.clock())

    grounder.meanwhile = cancel
    rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["GROUNDED", "CANCELLED"]
    assert rig.job(jobs[1])["findings"] == []
    assert row(rig, jobs[1]).lease_token is None


def test_a_worker_that_is_to_stop_ends_its_batch_and_gives_the_next_one_back(
    rig: Rig, grounder: ChoosyGrounder
) -> None:
    jobs = store(rig, *"abcdef")
    rig.sweep(seconds=QUIET_S)
    Batches(rig.resources, is_stopping=lambda: grounder.asked != []).run(jobs[0])
    assert states(rig, jobs) == ["GROUNDED"] * 4 + ["COMPLETE"] * 2
    for job_id in jobs[4:]:
        left = row(rig, job_id)
        assert (left.lease_token, left.attempts, left.deaths, left.due_at) == (None, 0, 0, rig.clock())
    rig.run(GROUND.name, jobs[4])
    assert states(rig, jobs) == ["GROUNDED"] * 6


def test_a_worker_is_given_what_is_left_of_the_lease_for_each_batch(rig: Rig) -> None:
    jobs = store(rig, *"abcdef")
    rig.sweep(seconds=QUIET_S)
    limits: list[float] = []
    Batches(rig.resources, end_after=limits.append).run(jobs[0])
    assert len(limits) == 2
    assert all(0 < limit < LEASE.total_seconds() for limit in limits)


def test_jobs_are_given_back_where_the_database_is_away_when_they_are_to_be_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = store(rig, *"abcdef")
    rig.sweep(seconds=QUIET_S)
    error = OperationalError("COMMIT", None, Exception("disk full"))

    def keep(self: Resources, write: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Resources, "keep", keep)
        with pytest.raises(OperationalError):
            rig.run(GROUND.name, jobs[0])
    assert [(row(rig, job).lease_token, row(rig, job).deaths) for job in jobs] == [(None, 0)] * 6
    rig.run(GROUND.name, jobs[0])
    assert states(rig, jobs) == ["GROUNDED"] * 6


# ---- the shipped model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LazyGrounder:
    return LazyGrounder("default", "cpu")


def test_a_device_that_is_lost_is_told_of_also_where_the_batch_before_could_not_be_kept(
    rig: Rig, grounder: ChoosyGrounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = store(rig, *"abcdef")
    rig.sweep(seconds=QUIET_S)

    def fail(*_: object) -> list[Exception]:
        raise OperationalError("COMMIT", {}, Exception("away"))

    def lose() -> None:
        if grounder.asked:
            raise DeviceLostError("no kernel image")

    monkeypatch.setattr("workers.batches.run_each", fail)
    grounder.meanwhile = lose
    with pytest.raises(DeviceLostError):
        Batches(rig.resources).run(jobs[0])
    assert grounder.asked == [4]


def test_a_batch_says_what_each_study_alone_is_told_and_its_results_have_the_same_uids(
    tmp_path: Path, model: LazyGrounder
) -> None:
    told = []
    for size in (1, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        rig = make_rig(folder, make_sqlite_sessions(folder), FakeGrounder(), batch_size=size)
        rig.resources = replace(rig.resources, load_grounder=model)
        jobs = []
        for seed in range(4):
            phantom = make_study(seed, 300)
            image = make_image_dataset(phantom.image, str(seed), rig.clock())
            rig.store(image)
            jobs.append(rig.store(make_phantom_report(phantom, image, str(seed), rig.clock())).job_id)
        rig.settle(seconds=QUIET_S)
        told.append(
            [(rig.job(job)["findings"], [one["sop_instance_uid"] for one in rig.job(job)["results"]]) for job in jobs]
        )
        batched = ["in a batch of 4" in str(rig.job(job)["timeline"]) for job in jobs]
        assert batched == [size == 4] * 4
    assert told[0] == told[1]
    assert all(findings and uids for findings, uids in told[0])


# ---- priority ------------------------------------------------------------------------------------------------------


def test_stat_studies_come_before_routine_ones_that_wait_longer(
    tmp_path: Path, sessions: sessionmaker[Session], grounder: ChoosyGrounder
) -> None:
    rig = make_rig(tmp_path, sessions, grounder, batch_size=2)
    routine = store(rig, "a", "b", "c")
    stat = store(rig, "d", "e", RequestedProcedurePriority="STAT")
    rig.sweep(seconds=QUIET_S)
    rings = rung(rig)
    assert (rings[:2], sorted(rings)) == (stat, [*routine, *stat])
    ended: list[list[str]] = []
    grounder.meanwhile = lambda: ended.append(await_grounded(rig, [*routine, *stat], sum(grounder.asked)))
    rig.run(GROUND.name, routine[0])  # a ring of long ago
    assert ended[1] == ["GROUNDED", "COMPLETE", "COMPLETE", "GROUNDED", "COMPLETE"]
    assert ended[2] == ["GROUNDED", "GROUNDED", "COMPLETE", "GROUNDED", "GROUNDED"]
    assert [rig.job(job)["priority"] for job in (routine[0], stat[0])] == ["ROUTINE", "STAT"]


def test_a_routine_study_that_waited_too_long_is_not_passed_over_for_ever(
    tmp_path: Path, grounder: ChoosyGrounder
) -> None:
    rig = make_rig(tmp_path, make_sqlite_sessions(tmp_path), grounder, batch_size=1)
    (routine,) = store(rig, "routine")
    rig.sweep(seconds=QUIET_S)
    rig.clock.move(seconds=rig.settings.priority.longest_wait_s + 1)
    stat = store(rig, *(str(number) for number in range(6)), RequestedProcedurePriority="STAT")
    rig.sweep(seconds=QUIET_S)
    ended: list[list[str]] = []
    grounder.meanwhile = lambda: ended.append(states(rig, [routine]))
    rig.run(GROUND.name, stat[0])
    assert ended.index(["GROUNDED"]) == 4  # the fourth place was its


def test_a_rule_for_a_sender_makes_its_studies_stat_and_the_timeline_says_so(tmp_path: Path) -> None:
    rules = [{"calling_ae_title": "PACS", "priority": "STAT"}]
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [], priority={"rules": rules})
    (job_id,) = store(rig, "a")
    assert rig.job(job_id)["priority"] == "ROUTINE"  # not known before the study is complete
    rig.sweep(seconds=QUIET_S)
    job = rig.job(job_id)
    assert (job["priority"], job["timeline"][-1]["detail"]) == ("STAT", "STAT: rule for PACS")
