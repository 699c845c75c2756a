"""Floods: the same instances again and again over several associations; associations, aborts and bare connects by
the thousand. Nothing is doubled, and the receiver stays as small as it was."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RQ, A_RELEASE_RQ
from pynetdicom.pdu_primitives import A_RELEASE

from tests.acceptance.peers import ROOT, Node, Process, wait_until
from tests.fakes import VERIFICATION, FakePacs
from tests.faults.site import Site, Tally, make_study, part_files, try_store

SEED = 20261127


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs) -> Iterator[Node]:
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    node = Node(tmp_path, destinations=[archive], assembly={"quiet_period_s": 3})
    node.start()
    yield node
    node.stop()


@pytest.mark.timeout(1200)
def test_the_same_instances_five_times_over_four_associations(
    node: Node, pacs: FakePacs, full: bool, record_property: Callable[[str, object], None]
) -> None:
    count = 100 if full else 12
    site, dice = Site(node, pacs), random.Random(SEED)
    studies = [make_study(f"again {number}") for number in range(count)]
    site.studies = {study[0].StudyInstanceUID: study for study in studies}
    turns = [study for study in studies for _ in range(5)]
    dice.shuffle(turns)

    def send(study: list) -> None:
        held: set[str] = set()
        wait_until(lambda: try_store(node.port, study, held, site.statuses), "a repeat to be acknowledged", 60)
        site.acknowledged.update(held)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, turns))
    row = Tally("the same instances 5 times over 4 associations", f"{count} studies")
    tally = site.count(row, 600)
    tally.measured = {
        "SRs": len(pacs.structured_reports()),
        "statuses": sorted(f"0x{s or 0:04X}" for s in site.statuses),
    }
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert len(pacs.structured_reports()) == count
    assert site.statuses == {0x0000}


# ---- endurance -------------------------------------------------------------------------------------------------------


class Probe:
    """What a process holds, read from the kernel."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def descriptors(self) -> int:
        """Return how many are open, without the database's: the pool keeps as many as were needed at once."""
        names = [str(one.readlink()) for one in Path(f"/proc/{self.pid}/fd").iterdir()]
        return sum("knowmvg.db" not in name for name in names)


def association_request() -> bytes:
    """Return an A-ASSOCIATE-RQ for Verification, as it goes over the wire."""
    from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
    from pynetdicom.presentation import build_context

    context = build_context(VERIFICATION)
    context.context_id = 1
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "PACS", "KNOWMVG"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = AE().implementation_class_uid
    request.user_information = [length, implementation]
    request.presentation_context_definition_list = [context]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return pdu.encode()


def release_request() -> bytes:
    pdu = A_RELEASE_RQ()
    pdu.from_primitive(A_RELEASE())
    return pdu.encode()


ABORT = bytes.fromhex("07000000000400000000")


def open_and_close(port: int, request: bytes, last: bytes) -> bool:
    """Open an association on a bare socket and end it by `last`; True if it was accepted."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        if connection.recv(4096)[:1] != b"\x02":
            return False
        connection.sendall(last)
        if last is not ABORT:
            connection.recv(4096)
        return True


def connect_and_leave(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=20).close()


@pytest.mark.timeout(2400)
def test_associations_aborts_and_bare_connects_leave_nothing_behind(
    tmp_path: Path, full: bool, record_property: Callable[[str, object], None]
) -> None:
    associations, aborts, connects = (10_000, 5_000, 5_000) if full else (300, 150, 150)
    node = Node(tmp_path, receiver={"max_associations": 32})
    node.run("db", "upgrade")
    command = [sys.executable, "-m", "dicom_node.cli", "receiver", "--config", str(node.config)]
    process = Process(command, tmp_path / "receiver.log", ROOT)
    try:
        wait_until(node.echo, "the receiver to answer", 60)
        probe, request, release = Probe(process.child.pid), association_request(), release_request()
        for _ in range(100):  # caches and arenas fill up once
            open_and_close(node.port, request, release)
        before = (probe.resident_mb(), probe.threads(), probe.descriptors())
        dice = random.Random(SEED)
        plan = ["release"] * (associations - aborts) + ["abort"] * aborts + ["connect"] * connects
        dice.shuffle(plan)

        def run(what: str) -> bool:
            if what == "connect":
                connect_and_leave(node.port)
                return True
            return open_and_close(node.port, request, ABORT if what == "abort" else release)

        with ThreadPoolExecutor(4) as pool:
            accepted = list(pool.map(run, plan))
        wait_until(lambda: probe.threads() <= before[1] and probe.descriptors() <= before[2], "threads to end", 60)
        assert node.echo()
        growth = probe.resident_mb() - before[0]
        tally = Tally(
            "associations, aborts, bare TCP connects", f"{associations}, of them {aborts} aborted, and {connects}"
        )
        tally.measured = {
            "resident at first (MB)": round(before[0], 1), "grown by (MB)": round(growth, 1),
            "threads left": probe.threads() - before[1], "descriptors left": probe.descriptors() - before[2],
            "refused": accepted.count(False),
        }  # fmt: skip
        tally.publish(record_property)
        assert growth < 64
        assert part_files(Site(node, FakePacs()).settings) == []
    finally:
        process.stop()
