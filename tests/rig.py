"""The node without its processes: real rows, files, steps and sweep; a fake grounder, PACS, and clock that is moved.

Rings are kept in a list, so that a test may answer them, answer them twice, or lose them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries, scu
from dicom_node.config import Settings, load_settings
from dicom_node.instance import read_instance
from dicom_node.queries import Arrival, Recorded, make_engine, make_sessions
from dicom_node.recorder import Recorder
from dicom_node.storage import FileStorage, StoredFile, dataset_digest, instance_key
from tests.builders import encode
from tests.fakes import FakeGrounder, FakePacs, FrozenClock
from workers.batches import Batches
from workers.resources import Resources
from workers.scheduler import sweep
from workers.steps import GROUND, STEPS, run_step
from workers.tasks import ERRANDS

QUIET_S = 5.0
MAX_AGE_S = 600.0


class Rig:
    """All parts of one node, in this process."""

    def __init__(self, folder: Path, sessions: sessionmaker[Session], archives: Sequence[FakePacs], **sections: Any):
        """`sections` replace or add to the sections of the configuration."""
        self.settings = make_settings(folder, archives, sections)
        self.sessions = sessions
        self.storage = FileStorage(folder / "dicom")
        self.clock = FrozenClock()
        self.grounder = FakeGrounder()
        self.rings: list[tuple[str, int]] = []
        self.resources = Resources(
            settings=self.settings,
            sessions=sessions,
            storage=self.storage,
            clock=self.clock,
            load_grounder=lambda: self.grounder,
            connect=scu.connect,
            ring=self.ring,
            token="worker",
            recorder=Recorder.of(self.settings),
        )

    def ring(self, task: str, number: int) -> bool:
        """Keep a ring for `answer`."""
        self.rings.append((task, number))
        return True

    def store(self, ds: Dataset) -> Recorded:
        """File an instance as the receiver does."""
        content = encode(ds)
        instance = read_instance(content)
        digest = hashlib.sha256(content).hexdigest()
        key = instance_key(instance.study_instance_uid, instance.sop_instance_uid, digest)
        self.storage.put(key, content)
        with self.storage.open(key) as kept:
            file = StoredFile(key, *dataset_digest(kept))
        quiet = timedelta(seconds=self.settings.assembly.quiet_period_s)
        with self.sessions.begin() as session:
            return queries.record_instance(session, Arrival(instance, file, "PACS", self.clock()), quiet)

    def sweep(self, **later: float) -> None:
        """Move the clock, then sweep once."""
        self.clock.move(**later)
        sweep(self.resources)

    def answer(self) -> None:
        """Answer the rings that are there, and those that these lead to."""
        while self.rings:
            self.run(*self.rings.pop(0))

    def run(self, step: str, job_id: int, **changes: Any) -> None:
        """Do what a ring asks for, with some of the resources changed."""
        resources = replace(self.resources, **changes)
        if errand := next((one for one in ERRANDS if one.name == step), None):
            errand.work(job_id, resources)
        elif step == GROUND.name:
            Batches(resources).run(job_id)
        else:
            run_step(next(one for one in STEPS if one.name == step), job_id, resources)

    def settle(self, **later: float) -> None:
        """Sweep and answer."""
        self.sweep(**later)
        self.answer()

    def job(self, job_id: int) -> dict[str, Any]:
        """Return the job as `knowmvg jobs show --json` prints it."""
        with self.sessions() as session:
            detail = queries.show_job(session, job_id)
        assert detail is not None
        return detail.to_json()


def make_settings(folder: Path, archives: Sequence[FakePacs], sections: dict[str, Any]) -> Settings:
    """Return the settings of a node in `folder` with `archives` as destinations."""
    destinations = [
        {"name": f"archive{number}", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        for number, pacs in enumerate(archives)
    ]
    values = {
        "node": {"data_dir": "var"},
        "assembly": {"quiet_period_s": QUIET_S, "max_age_s": MAX_AGE_S},
        "destinations": destinations,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return load_settings(path, {})


def make_sqlite_sessions(folder: Path) -> sessionmaker[Session]:
    """Return sessions on a new SQLite database with the schema of the migrations."""
    url = f"sqlite:///{folder / 'knowmvg.db'}"
    queries.upgrade_schema(url)
    return make_sessions(make_engine(url))
