"""A node between a sender that does what a PACS does and an archive, and what is counted when the faults are over."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy import select

from dicom_node import queries
from dicom_node.config import Settings, load_settings
from dicom_node.storage import FileStorage, dataset_digest
from dicom_node.tables import DispatchRow, InstanceRow
from tests.acceptance.peers import Node, wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import GSPS_STORAGE, FakePacs
from tests.senders import Sender

OUT = "KNOWMVG_FAULTS_OUT"
"""Environment: the file that rows of the table are appended to."""


@dataclass
class Tally:
    """A row of the table in docs/faults.md."""

    fault: str
    tried: str
    acknowledged_and_missing: int = 0
    results_missing: int = 0
    duplicate_results: int = 0
    needed_a_person: int = 0
    measured: dict[str, Any] = field(default_factory=dict)

    def publish(self, record: Callable[[str, object], None]) -> None:
        """Keep the row for the table, and with the test."""
        record("faults", json.dumps(asdict(self)))
        if path := os.environ.get(OUT):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """What must all be zero."""
        return (
            self.acknowledged_and_missing, self.results_missing, self.duplicate_results, self.needed_a_person,
        )  # fmt: skip


def make_study(name: str, images: int = 1) -> list[Dataset]:
    """Return a frontal film, `images` - 1 laterals, and the report of the film."""
    film = make_cxr_dataset(study=name)
    laterals = [make_cxr_dataset(study=name, instance=n, ViewPosition="LL") for n in range(2, images + 1)]
    return [film, *laterals, make_report_dataset(study=name, image=film)]


def associate(port: int, datasets: Iterable[Dataset], ae_title: str = "PACS") -> Any:
    """Open an association for these datasets."""
    ae = Sender(ae_title=ae_title)
    ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 2, 5, 45, 45
    for pair in {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets}:
        ae.add_requested_context(*pair)
    return ae.associate("127.0.0.1", port, ae_title="KNOWMVG")


def try_store(port: int, datasets: list[Dataset], acknowledged: set[str], statuses: set[int | None]) -> bool:
    """Send over one association what is not acknowledged yet; True when all is."""
    missing = [ds for ds in datasets if ds.SOPInstanceUID not in acknowledged]
    if not missing:
        return True
    association = associate(port, missing)
    if not association.is_established:
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            statuses.add(-answer.result)
        return False
    try:
        for ds in missing:
            status = association.send_c_store(ds).get("Status")
            statuses.add(status)
            if status == 0x0000:
                acknowledged.add(ds.SOPInstanceUID)
            elif status is None:
                return False
    except RuntimeError:  # the association is gone
        return False
    finally:
        if association.is_established:
            association.release()
    return all(ds.SOPInstanceUID in acknowledged for ds in datasets)


class Site:
    """A node, its archive, and what was sent and acknowledged."""

    def __init__(self, node: Node, pacs: FakePacs) -> None:
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
        self.node, self.pacs = node, pacs
        self.acknowledged: set[str] = set()
        self.statuses: set[int | None] = set()
        self.studies: dict[str, list[Dataset]] = {}

    @property
    def settings(self) -> Settings:
        """The configuration of the node."""
        return load_settings(self.node.config, {})

    def send(self, datasets: list[Dataset], seconds: float = 240) -> None:
        """Send a study until all of it is acknowledged."""
        self.studies[datasets[0].StudyInstanceUID] = datasets
        wait_until(
            lambda: try_store(self.node.port, datasets, self.acknowledged, self.statuses),
            "a study to be acknowledged", seconds,
        )  # fmt: skip

    def send_all(self, names: Iterable[str], images: int = 1, senders: int = 4, before: Any = None) -> None:
        """Send studies over several associations at once; `before` is called with the number of each."""

        def send_one(pair: tuple[int, str]) -> None:
            if before is not None:
                before(pair[0])
            self.send(make_study(pair[1], images))

        with ThreadPoolExecutor(senders) as pool:
            list(pool.map(send_one, enumerate(names)))

    def count(self, tally: Tally, seconds: float, states: tuple[str, ...] = ("DELIVERED",)) -> Tally:
        """Wait until every study has ended, and count what is missing, doubled, or waits for a person."""
        sessions = queries.make_sessions(engine := queries.make_engine(self.settings.database.url))
        try:
            self._wait_for_the_end(sessions, seconds)
            with sessions() as session:
                held = {row.sop_instance_uid: row for row in session.scalars(select(InstanceRow))}
                jobs = queries.list_jobs(session, queries.JobFilter(limit=100_000))
                dead = session.scalars(select(DispatchRow).where(DispatchRow.state == "DEAD")).all()
        finally:
            engine.dispose()
        storage = FileStorage(self.settings.storage.root)
        whole = {
            uid for uid, row in held.items() if dataset_digest_or_none(storage, row) == (row.sha256, row.size_bytes)
        }
        tally.acknowledged_and_missing += len(self.acknowledged - whole)
        current = {job.study_instance_uid: job for job in sorted(jobs, key=lambda job: job.revision)}
        tally.needed_a_person += len(dead) + sum(current[uid].state not in states for uid in self.studies)
        self._count_results(tally)
        return tally

    def _count_results(self, tally: Tally) -> None:
        for uid in self.studies:
            reports = self.pacs.structured_reports(uid)
            states = self.pacs.of_class(GSPS_STORAGE, study=uid)
            tally.results_missing += (not reports) + (not states)
            tally.duplicate_results += max(0, len(reports) - 1) + max(0, len(states) - 1)

    def _wait_for_the_end(self, sessions: Any, seconds: float) -> None:
        def open_jobs() -> dict[str, str]:
            with sessions() as session:
                jobs = queries.list_jobs(session, queries.JobFilter(limit=100_000))
            latest = {job.study_instance_uid: job for job in sorted(jobs, key=lambda job: job.revision)}
            ended = ("DELIVERED", "FAILED", "NOT_APPLICABLE", "CANCELLED")
            return {
                uid: latest[uid].state if uid in latest else "unknown"
                for uid in self.studies
                if uid not in latest or latest[uid].state not in ended
            }

        try:
            wait_until(lambda: not open_jobs(), "every study to end", seconds)
        except BaseException:
            print(open_jobs(), self.node.process.output()[-4000:] if self.node.process else "")  # noqa: T201
            raise


def dataset_digest_or_none(storage: FileStorage, row: InstanceRow) -> tuple[str, int] | None:
    """Return the digest and size of an instance's file, None where there is none."""
    try:
        with storage.open(row.storage_key) as file:
            return dataset_digest(file)
    except OSError:
        return None


def part_files(settings: Settings) -> list[Path]:
    """Return what lies half-written in the storage."""
    return [path for path in settings.storage.root.rglob("*") if path.suffix == ".part"]


def stray_files(settings: Settings) -> list[str]:
    """Return files of the storage whose bytes are not those that their name says."""
    strays = []
    for path in settings.storage.root.rglob("*.dcm"):
        if "-result-" in path.name:
            continue
        with path.open("rb") as file:
            sha256, _ = dataset_digest(file)
        if path.name.split(".")[1] != sha256[:16]:
            strays.append(str(path))
    return strays
