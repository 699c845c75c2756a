"""The life of a study as a state machine: any order of arrivals, rings, losses, crashes and outages ends well.

Real rows, files, steps, sweep and network; the model, the archive and the clock are fakes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydicom.dataset import Dataset
from sqlalchemy import select

from dicom_node import queries, scu
from dicom_node.commitment import make_report
from dicom_node.confirmation import take_report
from dicom_node.queries import JobFilter, make_engine, make_sessions
from dicom_node.study import END_STATES
from dicom_node.tables import DeliveryRow
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs
from tests.rig import Rig, make_sqlite_sessions
from workers.resources import LEASE

STUDIES = ("a", "b")
RESTING_ROUNDS = 12
"""Enough for the longest pause and every lease: each is longer than both."""


class WorkerDiedError(BaseException):
    """Ends a step as a kill does: nothing after it is run."""


class LifeOfStudy(RuleBasedStateMachine):
    """Two studies, one node, one archive."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        shutil.copyfile(self.template, self.folder / "knowmvg.db")
        self.engine = make_engine(f"sqlite:///{self.folder / 'knowmvg.db'}")
        self.pacs = FakePacs()
        self.pacs.commits = "never"
        self.pacs.start()
        self.rig = Rig(self.folder, make_sessions(self.engine), [self.pacs])
        self.acknowledged: dict[str, Dataset] = {}
        self.seen: set[str] = set()

    # ---- what may happen ---------------------------------------------------------------------------------------------

    @rule(study=st.sampled_from(STUDIES), instance=st.integers(1, 2), is_image=st.booleans())
    def store(self, study: str, instance: int, is_image: bool) -> None:
        """An image or a report arrives, for the first time, late, or again."""
        ds = make_cxr_dataset(study=study, instance=instance)
        if not is_image:
            ds = make_report_dataset(study=study, instance=instance, image=make_cxr_dataset(study=study))
        recorded = self.rig.store(ds)
        assert recorded.kind == ("repeat" if ds.SOPInstanceUID in self.acknowledged else "new")
        self.acknowledged[ds.SOPInstanceUID] = ds

    @rule(seconds=st.sampled_from((1, 6, 30, 2 * LEASE.total_seconds())))
    def tick(self, seconds: float) -> None:
        """Time passes, and a scheduler looks."""
        self.rig.sweep(seconds=seconds)

    @rule(hours=st.sampled_from((-2, -0.1, 3)))
    def jump(self, hours: float) -> None:
        """The clock of the host jumps, and a scheduler looks."""
        self.rig.sweep(hours=hours)

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99), times=st.sampled_from((1, 1, 1, 2)))
    def answer(self, dice: int, times: int) -> None:
        """A worker answers a ring, perhaps one that comes twice."""
        ring = self.take_ring(dice)
        for _ in range(times):
            self.rig.run(*ring)

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99))
    def lose(self, dice: int) -> None:
        """A ring is lost."""
        self.take_ring(dice)

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99), moment=st.integers(1, 5))
    def die_at_a_look_at_the_clock(self, dice: int, moment: int) -> None:
        """A worker dies before or after one of its commits."""
        self.die(dice, clock=dying_clock(self.rig.clock, moment))

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99))
    def die_in_the_model(self, dice: int) -> None:
        """A worker dies while it grounds."""
        self.die(dice, load_grounder=die)

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99))
    def die_after_sending(self, dice: int) -> None:
        """A worker dies between the archive's answer and its commit."""

        @contextmanager
        def connect(*arguments: Any) -> Iterator[scu.Archive]:
            with scu.connect(*arguments) as archive:
                yield archive
            die()

        self.die(dice, connect=connect)

    @precondition(lambda self: self.rig.rings)
    @rule(dice=st.integers(0, 99))
    def die_before_ringing(self, dice: int) -> None:
        """A worker dies between its commit and the ring for the next step."""
        self.die(dice, ring=lambda *_: die())

    @rule(commits=st.sampled_from(("same", "never")))
    def switch_commitment(self, commits: str) -> None:
        """The archive reports at once what it holds, or not at all."""
        self.pacs.commits = commits

    @precondition(lambda self: self.pacs.transactions)
    @rule(dice=st.integers(0, 99), title=st.sampled_from(("ARCHIVE", "ARCHIVE", "STRANGER")))
    def report(self, dice: int, title: str) -> None:
        """A report comes: late, again, of an old transaction, or of somebody who was not asked."""
        transaction_uid = self.pacs.transactions[dice % len(self.pacs.transactions)]
        with self.rig.sessions() as session:
            uids = list(session.scalars(select(DeliveryRow.sop_instance_uid).where(DeliveryRow.sop_instance_uid != "")))
        kept = [("1.2", uid) for uid in uids if uid in self.pacs.datasets and title == "ARCHIVE"]
        failed = {("1.2", uid): 0x0112 for uid in uids if uid not in self.pacs.datasets}
        _, report = make_report(transaction_uid, kept, failed)
        take_report(report, title, self.rig.settings, self.rig.sessions, self.rig.clock)

    @precondition(lambda self: self.pacs.datasets)
    @rule(dice=st.integers(0, 99))
    def lose_at_the_archive(self, dice: int) -> None:
        """The archive loses something that it took and has not confirmed."""
        uid = sorted(self.pacs.datasets)[dice % len(self.pacs.datasets)]
        if uid not in self.confirmed():
            del self.pacs.datasets[uid]

    def confirmed(self) -> set[str]:
        with self.rig.sessions() as session:
            statement = select(DeliveryRow.sop_instance_uid).where(DeliveryRow.state == "DELIVERED")
            return {uid for uid in session.scalars(statement) if uid}

    @invariant()
    def what_is_delivered_is_in_the_archive(self) -> None:
        assert self.confirmed() <= set(self.pacs.datasets)

    @rule(is_up=st.booleans())
    def switch_archive(self, is_up: bool) -> None:
        """The archive runs out of space, or has some again."""
        self.pacs.status = 0x0000 if is_up else 0xA700

    def take_ring(self, dice: int) -> tuple[str, int]:
        return self.rig.rings.pop(dice % len(self.rig.rings))

    def die(self, dice: int, **changes: Any) -> None:
        try:
            self.rig.run(*self.take_ring(dice), **changes)
        except WorkerDiedError:
            return

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_on_disk_and_in_a_row(self) -> None:
        held = set()
        with self.rig.sessions() as session:
            for ds in self.acknowledged.values():
                for one in queries.instances_of(session, ds.StudyInstanceUID):
                    assert self.rig.storage.exists(one.key)
                    held.add(one.instance.sop_instance_uid)
        assert held == set(self.acknowledged)

    @invariant()
    def one_sr_per_revision_and_none_of_a_stale_one(self) -> None:
        by_revision: dict[tuple[str, int], set[str]] = defaultdict(set)
        for ds in self.pacs.structured_reports():
            by_revision[ds.StudyInstanceUID, int(ds.InstanceNumber)].add(ds.SOPInstanceUID)
            if ds.SOPInstanceUID not in self.seen:
                self.seen.add(ds.SOPInstanceUID)
                assert int(ds.InstanceNumber) == self.current_revision(ds.StudyInstanceUID)
        assert all(len(uids) == 1 for uids in by_revision.values())

    def current_revision(self, study_instance_uid: str) -> int:
        with self.rig.sessions() as session:
            jobs = queries.list_jobs(session, JobFilter(study=study_instance_uid))
        return max(job.revision for job in jobs)

    def teardown(self) -> None:
        """After enough time every study has ended, and what was not given up is in the archive."""
        try:
            self.pacs.status, self.pacs.commits = 0x0000, "same"
            self.rig.clock.move(days=1)  # past whatever the clock was ahead
            for _ in range(RESTING_ROUNDS):
                self.rig.settle(minutes=16)
                self.one_sr_per_revision_and_none_of_a_stale_one()
            self.check_the_end()
        finally:
            self.pacs.stop()
            self.engine.dispose()
            shutil.rmtree(self.folder)

    def check_the_end(self) -> None:
        with self.rig.sessions() as session:
            jobs = queries.list_jobs(session, JobFilter(limit=1000))
        delivered = {(ds.StudyInstanceUID, int(ds.InstanceNumber)) for ds in self.pacs.structured_reports()}
        for job in jobs:
            assert job.state in END_STATES, job
            assert job.state == "DELIVERED" or job.failure
            if job.state == "DELIVERED":
                assert (job.study_instance_uid, job.revision) in delivered


def die(*_: object) -> Any:
    raise WorkerDiedError


def dying_clock(clock: Callable[[], datetime], moment: int) -> Callable[[], datetime]:
    """Return a clock that ends the process when it is looked at for the `moment`th time."""
    looks = 0

    def look() -> datetime:
        nonlocal looks
        looks += 1
        return die() if looks == moment else clock()

    return look


@pytest.fixture(autouse=True, scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the schema once: each example starts on a copy."""
    folder = tmp_path_factory.mktemp("template")
    make_sqlite_sessions(folder)
    LifeOfStudy.template = folder / "knowmvg.db"


TestLifeOfStudy = LifeOfStudy.TestCase
TestLifeOfStudy.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # an example takes seconds: shrinking one would take an hour
    suppress_health_check=list(HealthCheck),
)
TestLifeOfStudy = pytest.mark.timeout(600)(TestLifeOfStudy)
