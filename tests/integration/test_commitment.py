"""Storage commitment as the SCP of senders: what they are told is what is really there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import notices, queries, transport
from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, make_request, read_report
from dicom_node.config import Settings
from dicom_node.tables import CommitmentRequestRow
from tests.builders import DX_PRESENTATION_STORAGE, make_cxr_dataset
from tests.fakes import FrozenClock
from tests.integration.test_scp import SUCCESS, VERIFICATION, Node, send, sqlite_sessions, wait_until
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
        self.taking: Callable[[], object] = lambda: None
        """What it does before it answers."""

    def take(self, event: Event) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        self.taking()
        return self.status, None

    @contextmanager
    def associated(self, port: int) -> Iterator[Association]:
        ae = AE(ae_title="PACS")
        for uid in (PUSH_MODEL, VERIFICATION, DX_PRESENTATION_STORAGE):
            ae.add_requested_context(uid)
        handlers: Any = [(evt.EVT_N_EVENT_REPORT, self.take)]
        assoc = ae.associate("127.0.0.1", port, ae_title="KNOWMVG", evt_handlers=handlers)
        assert assoc.is_established
        try:
            yield assoc
            threading.Event().wait(0.2)  # a thread of pynetdicom's may be about to answer a report
        finally:
            assoc.release()

    def ask(self, port: int, references: list[tuple[str, str]], uid: str = "2.25.77", action: int = 1) -> int | None:
        """Ask, and hold the association until a report came or some seconds are over."""
        told = len(self.reports)
        with self.associated(port) as assoc:
            status = ask_on(assoc, references, uid, action)
            for _ in range(30):
                if len(self.reports) > told or status != SUCCESS:
                    break
                threading.Event().wait(0.1)
        return status


def ask_on(assoc: Association, references: list[tuple[str, str]], uid: str = "2.25.77", action: int = 1) -> int | None:
    answer, _ = assoc.send_n_action(make_request(uid, references), action, PUSH_MODEL, PUSH_MODEL_INSTANCE)
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


def test_a_request_that_comes_again_is_one_and_is_told_anew_once_it_has_ended(
    sessions: sessionmaker[Session],
) -> None:
    clock, lease = FrozenClock(), timedelta(minutes=5)

    def note(*sop_instance_uids: str) -> str:
        references = [(DX_PRESENTATION_STORAGE, uid) for uid in sop_instance_uids]
        with sessions.begin() as session:
            return queries.note_commitment_request(session, "2.25.5", ("PACS", "127.0.0.1"), references, clock())

    def claim() -> queries.CommitmentRequest | None:
        with sessions.begin() as session:
            return queries.claim_request(session, 1, "token", clock(), lease)

    assert [note("1.2", "1.3"), note("1.3", "1.2"), note("1.2"), note("1.2", "1.4")] == [
        "new", "repeat", "conflict", "conflict",
    ]  # fmt: skip
    assert claim() is not None
    assert note("1.2", "1.3") == "repeat"
    with sessions.begin() as session:
        assert session.get_one(CommitmentRequestRow, 1).lease_token == "token"  # who holds it goes on
        queries.end_request(session, 1, "token", queries.RequestEnd("DEAD", clock(), "why"), clock())
    clock.move(days=8)
    assert claim() is None
    assert note("1.3", "1.2") == "repeat"
    with sessions.begin() as session:
        assert queries.requests_to_ring(session, clock(), 10) == (1,)
        assert session.get_one(CommitmentRequestRow, 1).failure is None
    request = claim()
    assert request is not None
    assert (request.attempts, request.deaths, request.asked_at) == (1, 0, clock())


def test_a_sender_that_lost_the_report_asks_again_and_is_told_again(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], sender: Sender
) -> None:
    peer = {"ae_title": "PACS", "address": "127.0.0.1", "port": sender.port}
    node = Node(tmp_path, sqlite_sessions, peers=[peer]).start()
    try:
        film, other = make_cxr_dataset(), make_cxr_dataset(instance=2)
        send(node, film)
        rig = make_rig_of(node, tmp_path)
        for times in (1, 2):
            with sender.associated(node.port) as assoc:
                assert ask_on(assoc, [reference(film)]) == SUCCESS
            rig.settle()
            assert len(sender.reports) == times
        with sender.associated(node.port) as assoc:
            assert ask_on(assoc, [reference(other)]) == 0x0115
        rig.settle()
        assert len(sender.reports) == 2
    finally:
        node.stop()


def test_of_two_senders_with_one_ae_title_the_one_that_asked_is_told(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], sender: Sender
) -> None:
    addresses = {"127.0.0.2": 1, "127.0.0.1": sender.port}
    peers = [{"ae_title": "PACS", "address": address, "port": port} for address, port in addresses.items()]
    node = Node(tmp_path, sqlite_sessions, peers=peers).start()
    try:
        with sender.associated(node.port) as assoc:
            assert ask_on(assoc, [("1.2", "1.3")]) == SUCCESS
        make_rig_of(node, tmp_path).settle()
        assert len(sender.reports) == 1
    finally:
        node.stop()


def test_while_the_name_of_a_sender_cannot_be_looked_up_it_is_told_later(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session]
) -> None:
    peer = {"ae_title": "PACS", "address": "no-such-host.invalid", "port": 104}
    node = Node(tmp_path, sqlite_sessions, peers=[peer])
    with node.sessions.begin() as session:
        queries.note_commitment_request(session, "2.25.5", ("PACS", "127.0.0.1"), [("1.2", "1.3")], node.clock())
    tell_sender(1, make_rig_of(node, tmp_path).resources)
    with node.sessions() as session:
        row = session.get_one(CommitmentRequestRow, 1)
        assert (row.state, "cannot be looked up" in str(row.failure)) == ("PENDING", True)


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


# ---- on the association that asked -----------------------------------------------------------------------------------


def test_a_sender_that_goes_on_sending_is_told_when_it_is_quiet(node: Node, sender: Sender) -> None:
    films = [make_cxr_dataset(instance=number) for number in range(20)]
    sender.taking = lambda: threading.Event().wait(0.5)
    with sender.associated(node.port) as assoc:
        assert ask_on(assoc, [reference(films[0])]) == SUCCESS
        assert [assoc.send_c_store(film).get("Status") for film in films] == [SUCCESS] * 20
        wait_until(lambda: sender.reports, "the report")
        assert assoc.send_c_echo().Status == SUCCESS


def test_a_request_that_comes_while_the_report_is_taken_is_served(
    node: Node, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dicom_node")
    stored = threading.Event()
    sender.taking = lambda: stored.wait(20)
    with sender.associated(node.port) as assoc:
        ask_on(assoc, [("1.2", "1.3")])
        wait_until(lambda: sender.reports, "the report")
        assert assoc.send_c_store(make_cxr_dataset()).get("Status") == SUCCESS
        stored.set()
        wait_until(lambda: "commitment report sent" in caplog.messages, "the answer to be taken for one")
        assert assoc.send_c_echo().Status == SUCCESS


def test_several_reports_go_one_after_another(node: Node, sender: Sender) -> None:
    with sender.associated(node.port) as assoc:
        for number in range(3):
            assert ask_on(assoc, [("1.2", "1.3")], f"2.25.{number}") == SUCCESS
        wait_until(lambda: len(sender.reports) == 3, "the reports")
    assert {ds.TransactionUID for _, ds in sender.reports} == {"2.25.0", "2.25.1", "2.25.2"}


@pytest.mark.parametrize("sends_on", [True, False])
def test_a_sender_that_takes_no_report_may_go_on(
    node: Node, sender: Sender, sends_on: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that leaves no pause for it, and one that does not answer."""
    caplog.set_level(logging.INFO, "dicom_node")
    monkeypatch.setattr(notices, "QUIET_WITHIN_S" if sends_on else "ANSWER_WITHIN_S", 0.5)
    answers = threading.Event()
    sender.taking = lambda: answers.wait(20)
    with sender.associated(node.port) as assoc:
        ask_on(assoc, [("1.2", "1.3")])
        while "commitment report not taken" not in caplog.messages:
            assert not sends_on or assoc.send_c_echo().Status == SUCCESS
            threading.Event().wait(0.05)
        assert assoc.send_c_echo().Status == SUCCESS
        answers.set()
    assert len(sender.reports) == (0 if sends_on else 1)


def test_reports_that_are_not_taken_do_not_pile_up(node: Node, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "UNTAKEN_REPORTS", 2)
    with sender.associated(node.port) as assoc:
        asked = [ask_on(assoc, [("1.2", "1.3")], f"2.25.{number}") for number in range(3)]
    assert asked == [SUCCESS, SUCCESS, 0x0213]
