"""Two of every part at once, on one PostgreSQL, Redis and storage folder: all the work is done, none of it twice.

The instances of a study come at the same time to both receivers, both schedulers close studies and ring for the same
jobs, and the workers of a queue share what is rung. Somebody else rings all the time for whatever there may be.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import select

from dicom_node.config import Settings
from dicom_node.queries import make_engine, make_sessions
from dicom_node.tables import DispatchRow, EventRow, JobRow
from tests.acceptance.peers import ROOT, Node, Process, wait_until
from tests.fakes import FakePacs
from tests.faults.site import Site, Tally, make_study, part_files, stray_files
from tests.servers import Redis
from workers.app import make_app, make_ring
from workers.tasks import TASK_QUEUES

STUDIES, INSTANCES = 12, 3
QUIET_S = 8
"""The instances of a study come within milliseconds; on a busy machine within this."""

PARTS = {
    "receiver": ("receiver",),
    "scheduler": ("scheduler",),
    "gpu": ("worker", "--queues", "gpu"),
    "io": ("worker", "--queues", "io"),
}
READY = {"receiver": "receiver listening", "scheduler": "", "gpu": "worker ready", "io": "worker ready"}
ONCE = ("study complete", "study grounded", "results written", "destination has results", "results delivered")
"""Events of a job's timeline; each is there once, and no other tells of a second try."""


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs, postgres_url: str, redis_server: Redis) -> Node:
    """The configuration that all parts share; the schema is there, and nothing runs."""
    node = Node(
        tmp_path / "node",
        destinations=[{"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}],
        broker={"url": redis_server.url},
        database={"url": postgres_url},
        storage={"url": f"file://{tmp_path}/shared"},
        receiver={"processes": 2, "max_associations": 64},
        assembly={"quiet_period_s": QUIET_S},
    )
    node.run("db", "upgrade")
    return node


@pytest.fixture
def parts(node: Node) -> Iterator[dict[str, list[Process]]]:
    """Two processes of each part, ready."""
    running: dict[str, list[Process]] = {}
    with ExitStack() as stack:
        for name, words in PARTS.items():
            command = [sys.executable, "-m", "dicom_node.cli", *words, "--config", str(node.config)]
            running[name] = [Process(command, node.folder / f"{name}-{number}.log", ROOT) for number in (1, 2)]
            for process in running[name]:
                stack.callback(process.stop)
        for name, processes in running.items():
            for process in processes:
                wait_until(partial(is_ready, name, process), f"a {name} to be ready", 90)
        yield running


def is_ready(name: str, process: Process) -> bool:
    """Tell whether a process says that it is ready."""
    assert process.runs, process.output()
    return READY[name] in process.output()


def send_apart(site: Site, study: list[Dataset]) -> None:
    """Send each instance of a study on an association of its own, all at the same time."""
    with ThreadPoolExecutor(len(study)) as pool:
        list(pool.map(lambda ds: site.send([ds]), study))


@contextmanager
def ringing(settings: Settings) -> Iterator[None]:
    """Ring for all jobs and dispatches that there may be, again and again: two workers are at each at once."""
    ring, stop = make_ring(make_app(settings)), threading.Event()

    def run() -> None:
        while not stop.wait(0.5):
            for number in range(1, 2 * STUDIES):
                for task in TASK_QUEUES:
                    ring(task, number)
                    ring(task, number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def told(processes: list[Process], event: str) -> list[int]:
    """Return how often each process logged an event."""
    return [process.output().count(f" {event} ") for process in processes]


def check_rows(node: Node, site: Site) -> None:
    """Every job in its first revision, each step and dispatch done once."""
    engine = make_engine(site.settings.database.url)
    with make_sessions(engine)() as session:
        jobs = list(session.scalars(select(JobRow)))
        dispatches = list(session.scalars(select(DispatchRow)))
        events = Counter((row.job_id, row.event) for row in session.scalars(select(EventRow)) if row.event in ONCE)
        others = {row.event for row in session.scalars(select(EventRow))} - set(ONCE) - {"instance filed"}
    engine.dispose()
    assert sorted(job.study_instance_uid for job in jobs) == sorted(site.studies)
    assert {(job.revision, job.state, job.attempts, job.deaths) for job in jobs} == {(1, "DELIVERED", 0, 0)}
    assert {(one.state, one.attempts, one.deaths) for one in dispatches} == {("DELIVERED", 1, 0)}
    assert len(dispatches) == len(jobs)
    assert events == Counter({(job.job_id, event): 1 for job in jobs for event in ONCE})
    assert others == set()


@pytest.mark.timeout(600)
def test_two_of_every_part_do_everything_once(node: Node, pacs: FakePacs, parts: dict[str, list[Process]]) -> None:
    site = Site(node, pacs)
    studies = [make_study(f"scale out {number}", INSTANCES - 1) for number in range(STUDIES)]
    with ringing(site.settings):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda study: send_apart(site, study), studies))
        tally = site.count(Tally("two of every part", f"{STUDIES} studies"), 300)
    assert tally.counts == (0, 0, 0, 0)
    check_rows(node, site)
    assert set(pacs.stores.values()) == {1}
    assert len(pacs.stores) == 2 * STUDIES  # an SR and a presentation state of each
    assert (part_files(site.settings), stray_files(site.settings)) == ([], [])
    processes = [process for of_part in parts.values() for process in of_part]
    assert all(process.runs for process in processes)
    for fault in ("Traceback", "step superseded", "delivery superseded", "database unavailable", "step failed"):
        assert not [process.log.name for process in processes if fault in process.output()], fault
    assert sum(told(parts["scheduler"], "study complete")) == STUDIES
    for name, event in (("receiver", "instance filed"), ("gpu", "study grounded"), ("io", "results written")):
        counts = told(parts[name], event)
        assert sum(counts) == (STUDIES * INSTANCES if name == "receiver" else STUDIES), name
        assert name != "receiver" or min(counts) > 0, "one receiver did everything"
