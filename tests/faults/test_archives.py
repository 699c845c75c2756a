"""Archives that misbehave: 500 deliveries over every fault, none falsely DELIVERED, none lost, no other archive slower.

Real rows, files, lanes and network. Studies are grounded by a fake, and their results are those of the first one under
UIDs of their own, so that the deliveries are what takes time.
"""

from __future__ import annotations

import copy
import logging
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom.events import Event
from sqlalchemy import select

from dicom_node import queries, requestor
from dicom_node.clock import derive_uid, utc_now
from dicom_node.config import Settings
from dicom_node.results.values import ResultInput
from dicom_node.tables import DeliveryRow, DispatchRow, JobRow
from tests.acceptance.peers import wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs
from tests.faults.site import Tally
from tests.rig import Rig, make_sqlite_sessions
from workers import steps
from workers.deliver import deliver_results
from workers.lanes import Lanes
from workers.lines import Lines
from workers.scheduler import ring_for_due_errands
from workers.tasks import run_errand

SEED = 20261127
FAULTS = (
    "none", "0xA700", "0x0111", "0xB000", "0xC000", "drops", "stalls", "keeps nothing", "commits half", "never reports",
    "refuses", "away",
)  # fmt: skip
STALL_S = 3.0


class Wayward(FakePacs):
    """An archive that does something else with every association, by dice."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__("WAYWARD")
        self.dice, self.fault, self.tried = dice, "none", dict.fromkeys(FAULTS, 0)
        self.commits, self.misbehave = "same", self.act
        self.is_good = False

    def throw(self) -> None:
        """Choose what it does from now on."""
        self.fault = "none" if self.is_good else self.dice.choice(FAULTS)
        self.tried[self.fault] += 1
        self.keeps = self.fault != "keeps nothing"
        self.loses = 1 if self.fault == "commits half" else 0
        self.commits = "never" if self.fault == "never reports" else "same"
        self.commit_status = 0x0213 if self.fault == "refuses" else 0x0000

    def act(self, event: Event) -> int | None:
        """Do it to a C-STORE."""
        if self.fault == "drops" and self.dice.random() < 0.5:
            event.assoc.abort()
        if self.fault == "stalls":
            time.sleep(STALL_S)
            event.assoc.abort()
        if self.fault == "0x0111":
            uid = getattr(event.request, "AffectedSOPInstanceUID", None)
            return 0x0111 if uid in self.datasets else None
        if self.fault == "0xB000":
            self.status = 0xB000
            return None
        self.status = 0x0000
        return {"0xA700": 0xA700, "0xC000": 0xC000}.get(self.fault)


class Copies:
    """Builds the results of the first study, and gives each study a copy: building them is not what is measured."""

    def __init__(self, build: Callable[..., Iterable[tuple[str, Dataset]]]) -> None:
        self._build = build
        self._first: list[Dataset] = []

    def __call__(self, result: ResultInput, settings: Settings) -> Iterator[tuple[str, Dataset]]:
        self._first = self._first or [ds for _, ds in self._build(result, settings)]
        (image,) = result.images
        for template in self._first:
            ds = copy.copy(template)
            ds.file_meta = copy.copy(template.file_meta)
            ds.StudyInstanceUID = image.StudyInstanceUID
            ds.SeriesInstanceUID = derive_uid("series", template.SeriesInstanceUID, image.StudyInstanceUID)
            ds.SOPInstanceUID = derive_uid("instance", template.SOPInstanceUID, image.StudyInstanceUID)
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            yield "sr" if ds.Modality == "SR" else f"gsps:{image.SOPInstanceUID}", ds


class Deliveries:
    """The delivering half of a node, alive: lanes, a scheduler that rings, and studies that are written by and by."""

    def __init__(self, folder: Path, archives: list[FakePacs], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requestor, "ANSWER_TIMEOUT_S", 2)
        monkeypatch.setattr("workers.confirming.REPORT_WAIT_S", 0.5)
        monkeypatch.setattr(steps, "build_results", Copies(steps.build_results))
        names = [
            {"name": p.ae_title.lower(), "ae_title": p.ae_title, "host": "127.0.0.1", "port": p.port,
             "report_within_s": 2}
            for p in archives
        ]  # fmt: skip
        self.rig = Rig(folder, make_sqlite_sessions(folder), archives, destinations=names)
        lines = Lines(self.rig.resources.connect)
        self.lanes = Lanes(300, run_errand, lines.close)
        self.resources = replace(self.rig.resources, clock=utc_now, ring=self.ring, connect=lines.connect)
        self.stop = threading.Event()
        self.scheduler = threading.Thread(target=self._sweep, daemon=True)
        self.scheduler.start()

    def ring(self, task: str, number: int) -> bool:
        if task == "deliver":
            with self.rig.sessions() as session:
                name = queries.destination_of(session, number)
            self.lanes.submit(str(name), str(number), lambda: deliver_results(number, self.resources))
        return True

    def _sweep(self) -> None:
        while not self.stop.wait(0.2):
            ring_for_due_errands(self.resources)

    def write_study(self, name: str) -> int:
        """Bring a study to WRITTEN; its dispatches are rung for."""
        image = make_cxr_dataset(study=name)
        self.rig.store(image)
        job_id = self.rig.store(make_report_dataset(study=name, image=image)).job_id
        assert job_id is not None
        with self.rig.sessions.begin() as session:
            session.get_one(JobRow, job_id).state = "COMPLETE"
        self.rig.run("ground", job_id, clock=utc_now, ring=lambda *_: True)
        self.rig.run("write", job_id, clock=utc_now, ring=self.ring)
        return job_id

    def close(self) -> None:
        self.stop.set()
        self.scheduler.join()
        self.lanes.stop(5)

    def rows(self, of: type[Any]) -> list[Any]:
        with self.rig.sessions() as session:
            return list(session.scalars(select(of)))

    def p95_s(self, destination: str, first: int, last: int) -> float:
        """Return the 95th percentile of the time from a dispatch's opening to its delivery, of some jobs."""
        seconds = [
            (row.updated_at - row.since).total_seconds()
            for row in self.rows(DispatchRow)
            if row.destination == destination and row.state == "DELIVERED" and first <= row.job_id <= last
        ]
        return statistics.quantiles(seconds, n=20)[-1]


@pytest.fixture
def archives() -> Iterator[tuple[FakePacs, Wayward]]:
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    good, wayward = FakePacs("GOOD"), Wayward(random.Random(SEED))
    good.commits = "same"
    good.start()
    wayward.start()
    yield good, wayward
    good.stop()
    wayward.stop()


@pytest.fixture
def deliveries(
    tmp_path: Path, archives: tuple[FakePacs, Wayward], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deliveries]:
    deliveries = Deliveries(tmp_path, list(archives), monkeypatch)
    yield deliveries
    deliveries.close()


@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_archive_that_misbehaves(
    deliveries: Deliveries, archives: tuple[FakePacs, Wayward], full: bool,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    good, wayward = archives
    count, pace_s = (500, 0.8) if full else (24, 0.6)
    wayward.is_good = True
    calm = send_studies(deliveries, wayward, "calm", (count // 3, pace_s))
    wait_until(lambda: no_open(deliveries), "the calm deliveries", 600)
    wayward.is_good = False
    stormy = send_studies(deliveries, wayward, "stormy", (count, pace_s))
    wait_until(lambda: no_open(deliveries, "good"), "the other archive's deliveries", 300)
    false = false_deliveries(deliveries, good, wayward)
    wayward.is_good = True
    wayward.throw()
    if wayward._server is None:
        wayward.start()
    wait_until(lambda: no_open(deliveries), "the deliveries to the archive that is well again", 900)
    before, after = deliveries.p95_s("good", *calm), deliveries.p95_s("good", *stormy)
    dead = replay(deliveries)
    wait_until(lambda: no_open(deliveries), "the dead letters", 300)
    false += false_deliveries(deliveries, good, wayward)
    lost = sum(row.state != "DELIVERED" for row in deliveries.rows(DispatchRow))
    measured = {
        "false DELIVERED": false, "p95 of the other archive, calm (s)": round(before, 3),
        "p95 of the other archive, stormy (s)": round(after, 3), "dead letters for 0xC000": dead,
        "faults": {name: number for name, number in wayward.tried.items() if number},
    }  # fmt: skip
    tally = Tally("archive that refuses, stalls, drops, forgets", f"{count} deliveries", results_missing=lost)
    tally.measured = measured
    tally.duplicate_results = duplicates(good) + duplicates(wayward)
    tally.publish(record_property)
    assert (false, lost, tally.duplicate_results) == (0, 0, 0)


def send_studies(deliveries: Deliveries, wayward: Wayward, kind: str, plan: tuple[int, float]) -> tuple[int, int]:
    """Write so many studies, one in so many seconds, with a new fault for each; return the first and the last job."""
    jobs = []
    for number in range(plan[0]):
        began = time.monotonic()
        wayward.throw()
        if wayward.fault == "away" and wayward._server is not None:
            wayward.stop()
        elif wayward.fault != "away" and wayward._server is None:
            wayward.start()
        jobs.append(deliveries.write_study(f"{kind} {number}"))
        time.sleep(max(0.0, plan[1] - (time.monotonic() - began)))
    return jobs[0], jobs[-1]


def no_open(deliveries: Deliveries, destination: str | None = None) -> bool:
    return not [
        row for row in deliveries.rows(DispatchRow)
        if row.state in ("PENDING", "CONFIRMING") and destination in (None, row.destination)
    ]  # fmt: skip


def false_deliveries(deliveries: Deliveries, good: FakePacs, wayward: Wayward) -> int:
    """Count what is called DELIVERED and is not in the archive."""
    held = {"good": good.datasets, "wayward": wayward.datasets}
    return sum(
        row.state == "DELIVERED" and row.sop_instance_uid not in held[row.destination]
        for row in deliveries.rows(DeliveryRow)
    )


def replay(deliveries: Deliveries) -> int:
    """Replay every dead letter, as an administrator does, and return how many there were."""
    dead = [row.dispatch_id for row in deliveries.rows(DispatchRow) if row.state == "DEAD"]
    for dispatch_id in dead:
        with deliveries.rig.sessions.begin() as session:
            queries.replay_dispatch(session, dispatch_id, utc_now())
    return len(dead)


def duplicates(pacs: FakePacs) -> int:
    studies = [ds.StudyInstanceUID for ds in pacs.structured_reports()]
    return len(studies) - len(set(studies))
