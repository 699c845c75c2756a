"""kill -9 of any process of `knowmvg up` while studies arrive: nothing that was acknowledged is lost or doubled.

The sender does what a PACS does: it sends an instance again until it is answered with success.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from dicom_node import queries
from dicom_node.config import load_settings
from tests.acceptance.peers import Node, wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs

STUDIES, KILLS, SEED = 50, 10, 20261123
ROLES = ("up", "receiver", "gpu", "io", "scheduler", "console")
"""A word of the command line of each process; `up` is the one that starts the others."""

SEND_S, END_S = 180, 400


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs) -> Iterator[Node]:
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    node = Node(tmp_path, destinations=[archive])
    node.start()
    yield node
    node.stop()


class Killer:
    """Kills processes of a node; starts the node again where it killed the one that holds it together."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.killed: list[str] = []

    def kill(self, role: str, after_s: float) -> None:
        """Kill the process of this role, after a while and as soon as there is one."""
        threading.Event().wait(after_s)
        pid = wait_until(lambda: self.find().get(role), f"a process {role}")
        os.kill(pid, signal.SIGKILL)
        self.killed.append(role)
        if role == "up":
            assert self.node.process is not None
            self.node.process.child.wait()
            self.node.start()

    def find(self) -> dict[str, int]:
        """Return the processes that run now, by role."""
        assert self.node.process is not None
        supervisor = self.node.process.child.pid
        found = {"up": supervisor}
        for pid in children_of(supervisor):
            words = command_of(pid)
            found |= {role: pid for role in ROLES if role in words}
        return found


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return []


def send(port: int, *datasets: Dataset) -> bool:
    """Send over one association; True if each was answered with success."""
    ae = AE(ae_title="PACS")
    ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 2, 5, 10, 10
    for ds in datasets:
        ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="KNOWMVG")
    if not association.is_established:
        return False
    try:
        return all(is_stored(association, ds) for ds in datasets)
    finally:
        association.release()


def is_stored(association: object, ds: Dataset) -> bool:
    try:
        return association.send_c_store(ds).get("Status") == 0x0000  # type: ignore[attr-defined]
    except RuntimeError:  # the association is gone
        return False


def plan_kills(dice: random.Random) -> dict[int, str]:
    """Return before which study which process is killed: each role at least once, the rest at random."""
    roles = [*ROLES, *dice.choices(ROLES, k=KILLS - len(ROLES))]
    dice.shuffle(roles)
    return dict(zip(sorted(dice.sample(range(1, STUDIES), KILLS)), roles, strict=True))


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pynetdicom as the sender, while nobody listens
def test_every_acknowledged_study_is_delivered_once_whatever_is_killed(
    node: Node, pacs: FakePacs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "pynetdicom")
    dice, killer = random.Random(SEED), Killer(node)
    plan = plan_kills(dice)
    # The kernel ends what a thread started with that thread: the one that starts nodes lives until all is checked.
    with ThreadPoolExecutor(1) as pool:
        kills, studies = [], []
        for number in range(STUDIES):
            if role := plan.get(number):
                kills.append(pool.submit(killer.kill, role, dice.uniform(0, 1)))
            studies.append(send_study(node, number, dice))
        for kill in kills:
            kill.result()
        check_delivered_once(node, pacs, studies)
    assert sorted(killer.killed) == sorted(plan.values())


def send_study(node: Node, number: int, dice: random.Random) -> str:
    """Send an image and its report, in any order, until both are acknowledged; return the Study Instance UID."""
    image = make_cxr_dataset(study=f"kill {number}")
    both = [image, make_report_dataset(study=f"kill {number}", image=image)]
    dice.shuffle(both)
    wait_until(lambda: send(node.port, *both), f"study {number} to be acknowledged", SEND_S)
    return str(image.StudyInstanceUID)


def check_delivered_once(node: Node, pacs: FakePacs, studies: list[str]) -> None:
    sessions = queries.make_sessions(engine := queries.make_engine(load_settings(node.config, {}).database.url))

    def read_states() -> dict[str, list[str]]:
        with sessions() as session:
            jobs = queries.list_jobs(session, queries.JobFilter(limit=10 * STUDIES))
        states: dict[str, list[str]] = {study: [] for study in studies}
        for job in jobs:
            states[job.study_instance_uid].append(job.state)
        return states

    done = {study: ["DELIVERED"] for study in studies}
    try:
        wait_until(lambda: read_states() == done, "every study to be delivered", END_S)
    except BaseException:
        print({study: states for study, states in read_states().items() if states != ["DELIVERED"]})  # noqa: T201
        raise
    finally:
        engine.dispose()
    assert {study: len(pacs.structured_reports(study)) for study in studies} == dict.fromkeys(studies, 1)


@pytest.mark.timeout(200)
def test_node_stops_cleanly_and_a_second_one_is_refused(node: Node) -> None:
    second = node.run("up", check=False)
    assert second.returncode == 1
    assert "runs on" in second.stderr
    assert "node.data_dir" in second.stderr
    pids = list(Killer(node).find().values())
    assert len(pids) == len(ROLES)
    assert node.stop() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
