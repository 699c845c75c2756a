"""Storage commitment as the SCP of senders: what they are told is what is really there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import Event
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, make_request, read_report
from dicom_node.config import Settings
from dicom_node.tables import CommitmentRequestRow
from tests.builders import DX_PRESENTATION_STORAGE, make_cxr_dataset
from tests.integration.test_scp import Node, send, sqlite_sessions
from tests.rig import Rig
from workers.tell import tell_sender

__all__ = ["sqlite_sessions"]


class Sender:
    """A sender that asks, and takes reports on the association that asked and on others."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        ae = AE(ae_title="PACS")
        ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        handlers: Any = [(evt.EVT_N_EVENT_REPORT, self.take)]
        server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.server, self.port = server, server.server_address[1]
        self.status = 0x0000

    def take(self, event: Event) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return self.status, None

    def ask(self, port: int, references: list[tuple[str, str]], uid: str = "2.25.77", action: int = 1) -> int | None:
        """Ask, and hold the association until a report came or a second is over."""
        ae = AE(ae_title="PACS")
        ae.add_requested_context(PUSH_MODEL)
        handlers: Any = [(evt.EVT_N_EVENT_REPORT, self.take)]
        assoc = ae.associate("127.0.0.1", port, ae_title="KNOWMVG", evt_handlers=handlers)
        assert assoc.is_established
        answer, _ = assoc.send_n_action(make_request(uid, references), action, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        pause = threading.Event()
        for _ in range(10):
            if self.reports:
                break
            pause.wait(0.1)
        assoc.release()
        status: int | None = answer.get("Status")
        return status


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.server.shutdown()


@pytest.fixture
def node(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> Iterator[Node]:
    node = Node(tmp_path, sqlite_sessions).start()
    yield node
    node.stop()


def reference(ds: Dataset) -> tuple[str, str]:
    return ds.SOPClassUID, ds.SOPInstanceUID


def test_a_sender_is_told_on_the_association_that_asked(node: Node, sender: Sender) -> None:
    film, other = make_cxr_dataset(), make_cxr_dataset(instance=2)
    send(node, film)
    assert (
        sender.ask(node.port, [reference(film), reference(other), ("1.2.840.10008.5.1.4.1.1.1", film.SOPInstanceUID)])
        == 0
    )
    ((event_type, ds),) = sender.reports
    report = read_report(ds)
    assert (event_type, report.transaction_uid) == (2, "2.25.77")
    assert report.failed == {
        other.SOPInstanceUID: "it does not have the instance (0x0112)",
        film.SOPInstanceUID: "it has the instance under another SOP class (0x0119)",
    }


def test_all_that_is_there_is_committed_to(node: Node, sender: Sender) -> None:
    films = [make_cxr_dataset(instance=number) for number in range(3)]
    send(node, *films)
    assert sender.ask(node.port, [reference(film) for film in films]) == 0
    ((event_type, ds),) = sender.reports
    assert event_type == 1
    assert set(read_report(ds).committed) == {film.SOPInstanceUID for film in films}


@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_a_file_that_is_not_what_came_is_not_committed_to(node: Node, sender: Sender, damage: str) -> None:
    film = make_cxr_dataset()
    send(node, film)
    (path,) = node.files()
    content = path.read_bytes()
    changed = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if damage == "cut" else changed)
    sender.ask(node.port, [reference(film)])
    assert sender.reports[0][0] == 2


@pytest.mark.parametrize(
    ("references", "uid", "action", "status"),
    [([], "2.25.77", 1, 0x0115), ([("1.2", "x")], "2.25.77", 1, 0x0115), ([("1.2", "1.3")], "", 1, 0x0115),
     ([("1.2", "1.3")], "2.25.77", 2, 0x0123)],
)  # fmt: skip
def test_a_request_that_says_nothing_is_refused(
    node: Node, sender: Sender, references: list[tuple[str, str]], uid: str, action: int, status: int
) -> None:
    assert sender.ask(node.port, references, uid, action) == status


def make_rig_of(node: Node, folder: Path) -> Rig:
    rig = Rig(folder, node.sessions, [])
    rig.resources = replace(rig.resources, settings=node.settings, storage=node.storage)
    return rig


def test_a_sender_with_a_port_is_called_back_until_it_takes_the_report(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], sender: Sender
) -> None:
    peer = {"ae_title": "PACS", "address": "127.0.0.1", "port": sender.port}
    node = Node(tmp_path, sqlite_sessions, peers=[peer]).start()
    try:
        film = make_cxr_dataset()
        send(node, film)
        assert sender.ask(node.port, [reference(film)]) == 0
        assert sender.reports == []
        rig = make_rig_of(node, tmp_path)
        sender.status = 0x0110
        rig.sweep()
        rig.answer()
        assert len(sender.reports) == 1  # it was not taken
        sender.status = 0x0000
        rig.settle(seconds=60)
        rig.settle(seconds=60)
        assert len(sender.reports) == 2
        assert read_report(sender.reports[1][1]).committed == (film.SOPInstanceUID,)
        with node.sessions() as session:
            assert session.get_one(CommitmentRequestRow, 1).state == "REPORTED"
    finally:
        node.stop()


def test_a_request_that_comes_again_is_one(node: Node, sender: Sender) -> None:
    with node.sessions.begin() as session:
        for expected in (True, False):
            noted = queries.note_commitment_request(
                session, "2.25.5", ("PACS", "127.0.0.1"), [(DX_PRESENTATION_STORAGE, "1.2")], node.clock()
            )
            assert noted is expected


def test_a_sender_that_is_no_longer_configured_is_given_up(node: Node, tmp_path: Path) -> None:
    with node.sessions.begin() as session:
        queries.note_commitment_request(session, "2.25.5", ("GONE", "127.0.0.1"), [("1.2", "1.3")], node.clock())
    rig = make_rig_of(node, tmp_path)
    tell_sender(1, rig.resources)
    with node.sessions() as session:
        row = session.get_one(CommitmentRequestRow, 1)
        assert (row.state, "no port for GONE" in str(row.failure)) == ("DEAD", True)


def test_who_only_reports_may_not_ask(tmp_path: Path, sqlite_sessions: sessionmaker[Session], sender: Sender) -> None:
    node = Node(tmp_path, sqlite_sessions, peers=[])
    archive = {"name": "a", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    destinations = Settings.model_validate({"destinations": [archive]}).destinations
    node.settings = node.settings.model_copy(update={"destinations": destinations})
    node.start()
    try:
        assert sender.ask(node.port, [("1.2", "1.3")]) == 0x0124
    finally:
        node.stop()
