"""A `gpu` worker as a process: it ends in good time when it is told to, and by itself when its device is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from sqlalchemy import select

from dicom_node.tables import JobRow
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.app import make_app, make_ring
from workers.lanes import HUNG

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0

WORKER = """
import sys, time
from pathlib import Path
from dicom_node.config import load_settings
from grounding.types import DeviceLostError
from tests.fakes import FakeGrounder
from workers import main

class Slow(FakeGrounder):
    def ground_prepared(self, studies):
        Path(sys.argv[2]).touch()
        if sys.argv[3] == "lost":
            raise DeviceLostError("CUDA error: an illegal memory access")
        time.sleep(1.0)
        return super().ground_prepared(studies)

main.LazyGrounder = lambda path, device, grounder=Slow(): lambda: grounder
main.run_worker(load_settings(Path(sys.argv[1]), {}), ("gpu",))
"""


class Site:
    """Studies that wait on a host, and a worker for them."""

    def __init__(self, folder: Path) -> None:
        self.begun = folder / "begun"
        self.config = folder / "config.yaml"
        url = f"sqlite:///{folder / 'knowmvg.db'}"
        model = {"batch_size": 2, "max_wait_ms": 0}
        sections = {"database": {"url": url}, "storage": {"url": f"file://{folder / 'dicom'}"}, "model": model}
        self.rig = Rig(folder, make_sqlite_sessions(folder), [], **sections)
        self.config.write_text(yaml.safe_dump({"node": {"data_dir": str(folder / "var")}} | sections))
        for study in "abcdef":
            image = make_cxr_dataset(study=study)
            self.rig.store(image)
            self.rig.store(make_report_dataset(study=study, image=image))
        self.rig.sweep(seconds=QUIET_S)
        ring = make_ring(make_app(self.rig.settings))
        for name, number in self.rig.rings:
            ring(name, number)
        self.process: subprocess.Popen[str] | None = None

    def start(self, how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(self.config), str(self.begun), how]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        return self.process

    def jobs(self) -> list[JobRow]:
        with self.rig.sessions() as session:
            return list(session.scalars(select(JobRow).order_by(JobRow.job_id)))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    if site.process is not None:
        site.process.kill()
        site.process.communicate()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def test_a_worker_that_is_told_to_stop_ends_its_batch_and_holds_nothing_more(site: Site) -> None:
    process = site.start("slow")
    wait_until(site.begun.exists, "a batch is computed")
    process.terminate()
    _, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, log
    jobs = site.jobs()
    assert [job.state for job in jobs] == ["GROUNDED", "GROUNDED", *["COMPLETE"] * 4]
    assert [(job.lease_token, job.attempts, job.deaths) for job in jobs] == [(None, 0, 0)] * 6


def test_a_worker_whose_device_is_lost_ends_as_one_that_died(site: Site) -> None:
    process = site.start("lost")
    _, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == HUNG, log
    assert "device lost" in log
    held = [job for job in site.jobs() if job.lease_token is not None]
    assert 2 <= len(held) <= 4  # the batch, and the one that was prepared
    assert all(job.state == "COMPLETE" and job.failure is None for job in site.jobs())
