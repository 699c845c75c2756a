"""The receiver's door: who gets in as what, what is refused for now, and that a scan or a slow sender costs nothing."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.acse import ACSE
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.dsutils import encode
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import door as door_module
from dicom_node import notices, queries, scp, transport
from dicom_node.audit import AuditEvent
from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, make_request
from dicom_node.config import Settings
from dicom_node.door import REFUSALS_OF_ADDRESS, keep_audit, measure, note_refusal
from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from dicom_node.storage import FileStorage
from tests.acceptance.peers import wait_until
from tests.builders import DX_PRESENTATION_STORAGE, make_cxr_dataset
from tests.integration.test_scp import REFUSED_RESOURCES, SUCCESS, Node, associated, propose, send, sqlite_sessions
from tests.senders import Sender

__all__ = ["sqlite_sessions"]

TRANSIENT = 2
CONGESTION, LIMIT = 1, 2


@pytest.fixture
def node(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> Iterator[Node]:
    node = Node(tmp_path, sqlite_sessions).start()
    yield node
    node.stop()


def answer(node: Node, **titles: str) -> tuple[int, int] | None:
    """Return result and reason of a rejection, None where the association came about."""
    assoc = propose(node, [], **titles)
    if assoc.is_established:
        assoc.release()
        return None
    primitive: Any = assoc.acceptor.primitive
    return primitive.result, primitive.diagnostic


def audited(node: Node, kind: str) -> list[str]:
    with node.sessions() as session:
        return [entry.event.reason for entry in queries.list_audit(session, 100, kind)]


def tell_free_bytes(monkeypatch: pytest.MonkeyPatch, told: Callable[[], int]) -> None:
    """Have the storage tell so many bytes that are free; looking makes its folder, as always."""

    def free_bytes(self: FileStorage) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        return told()

    monkeypatch.setattr(FileStorage, "free_bytes", free_bytes)


# ---- for now ---------------------------------------------------------------------------------------------------------


def test_without_space_associations_are_rejected_for_now_and_the_alarm_is_raised_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dicom_node")
    space = {"free": 0}
    tell_free_bytes(monkeypatch, lambda: space["free"])
    wait_until(lambda: answer(node) == (TRANSIENT, CONGESTION), "the door to close", 10)
    time.sleep(2.5)
    space["free"] = 10**12
    wait_until(lambda: answer(node) is None, "the door to open", 10)
    assert caplog.messages.count("receiver refuses for now") == caplog.messages.count("receiver takes in again") == 1
    wait_until(lambda: len(audited(node, "node alert")) == 2, "the alarm and its end to be audited", 10)


def test_without_space_what_happens_is_audited_at_once_and_a_refusal_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may last for days; the bytes that are free change all the time."""
    free = itertools.count()
    tell_free_bytes(monkeypatch, lambda: -next(free))
    wait_until(lambda: answer(node) == (TRANSIENT, CONGESTION), "the door to close", 10)
    wait_until(lambda: len(audited(node, "node alert")) == 1, "the alarm to be audited", 10)
    wait_until(lambda: len(audited(node, "association refused")) == 1, "the refusal to be audited", 10)
    for _ in range(4):
        time.sleep(0.7)
        assert answer(node) == (TRANSIENT, CONGESTION)
    assert answer(node, calling="STRANGER") == (1, 3)
    wait_until(lambda: len(audited(node, "association refused")) == 2, "the other refusal to be audited", 10)
    assert "bytes free" in audited(node, "association refused")[1]


def test_what_waits_for_the_database_is_audited_at_the_end(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scp, "LOOK_S", 30)
    node = Node(tmp_path, sqlite_sessions).start()
    assert node.receiver is not None
    node.receiver._door.pressure.close("an instance could not be kept (OperationalError)")
    assert answer(node) == (TRANSIENT, CONGESTION)
    time.sleep(0.3)
    assert audited(node, "association refused") == audited(node, "node alert") == []
    node.stop()
    assert len(audited(node, "association refused")) == len(audited(node, "node alert")) == 1


def test_a_storage_that_is_away_does_not_hide_that_the_database_is(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: FileStorage) -> int:
        raise OSError("no such folder")

    monkeypatch.setattr(FileStorage, "free_bytes", fail)
    storage = FileStorage(tmp_path / "dicom")
    away = make_sessions(make_engine(f"sqlite:///{tmp_path}"))
    assert not measure(storage, sqlite_sessions).database_away
    reading = measure(storage, away)
    assert reading.database_away and "storage" in reading.fault


def test_on_an_association_that_is_open_already_instances_are_refused_for_now(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"free": 10**12}
    monkeypatch.setattr(FileStorage, "free_bytes", lambda self: space["free"])
    with associated(node, [DX_PRESENTATION_STORAGE]) as assoc:
        assert assoc.send_c_store(make_cxr_dataset()).Status == SUCCESS
        space["free"] = 0
        assert assoc.send_c_store(make_cxr_dataset(instance=2)).Status == REFUSED_RESOURCES
    assert len(node.rows()) == len(node.files()) == 1


def test_a_database_that_is_read_only_is_out_of_resources(tmp_path: Path, postgres_url: str) -> None:
    """PostgreSQL raises another class of error for that than for a database that is away."""
    upgrade_schema(postgres_url)
    engine = make_engine(postgres_url)
    node = Node(tmp_path, make_sessions(engine)).start()
    name = engine.url.database
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
        engine.dispose()
        assoc = propose(node, [DX_PRESENTATION_STORAGE])
        status = assoc.send_c_store(make_cxr_dataset()).Status if assoc.is_established else REFUSED_RESOURCES
        assert status == REFUSED_RESOURCES
        wait_until(lambda: answer(node) == (TRANSIENT, CONGESTION), "the door to close", 10)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
        engine.dispose()
        wait_until(lambda: answer(node) is None, "the door to open", 10)
        assert send(node, make_cxr_dataset()) == [SUCCESS]
    finally:
        node.stop()
        engine.dispose()


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_peer_has_a_limit_of_its_own(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> None:
    greedy = {"ae_title": "PACS", "address": "127.0.0.1", "max_associations": 1}
    other = {"ae_title": "OTHER", "address": "127.0.0.1"}
    node = Node(tmp_path, sqlite_sessions, peers=[greedy, other]).start()
    try:
        with associated(node, []):
            assert answer(node) == (TRANSIENT, LIMIT)
            assert answer(node, calling="OTHER") is None
        wait_until(lambda: answer(node) is None, "the association to be free again", 10)
    finally:
        node.stop()


def test_associations_that_are_being_negotiated_count(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = ACSE.send_accept

    def dawdle(acse: ACSE) -> None:
        time.sleep(1)
        accept(acse)

    monkeypatch.setattr(ACSE, "send_accept", dawdle)
    node = Node(tmp_path, sqlite_sessions, max_associations=2).start()
    try:
        with ThreadPoolExecutor(6) as pool:
            proposed = list(pool.map(lambda _: propose(node, []), range(6)))
        assert sum(assoc.is_established for assoc in proposed) == 2
        for assoc in proposed:
            assoc.release()
        wait_until(lambda: answer(node) is None, "the associations to be free again", 10)
    finally:
        node.stop()


def test_connections_that_say_nothing_take_no_association_and_are_hung_up_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            for _ in range(transport.STRANGERS_OF_ADDRESS - 4)
        ]
        assert answer(node) is None
        hung_up = silent[0]
        hung_up.settimeout(transport.GREETING_S + 10)
        assert hung_up.recv(1) == b""
    wait_until(lambda: threading.active_count() <= before + 1, "their threads to end", 20)


def test_more_connections_than_are_held_are_closed_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STRANGERS_OF_ADDRESS", 3)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        time.sleep(0.5)
        fourth = stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        fourth.settimeout(3)
        assert fourth.recv(1) == b""


def test_an_instance_over_the_limit_is_refused_for_good(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> None:
    node = Node(tmp_path, sqlite_sessions, max_instance_bytes=1024**2).start()
    try:
        ds = make_cxr_dataset()
        ds.add_new(0x00091001, "OB", bytes(2 * 1024**2))
        assert send(node, ds, make_cxr_dataset(instance=2)) == [0xC000, SUCCESS]
        assert node.unfinished() == []
    finally:
        node.stop()


def test_an_idle_association_is_aborted(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> None:
    node = Node(tmp_path, sqlite_sessions, idle_s=5).start()
    try:
        assoc = propose(node, [])
        wait_until(lambda: not assoc.is_established, "the association to be aborted", 15)
    finally:
        node.stop()


def test_a_command_without_end_is_not_kept_in_memory(node: Node) -> None:
    """A fragment of a command set that says it is not the last, again and again."""
    ae = Sender("PACS")
    ae.add_requested_context(DX_PRESENTATION_STORAGE, ExplicitVRLittleEndian)
    assoc = ae.associate("127.0.0.1", node.port, ae_title="KNOWMVG")
    transport_socket: Any = assoc.dul.socket
    fragment = bytes(60_000)
    pdv = (len(fragment) + 2).to_bytes(4, "big") + b"\x01\x01" + fragment
    pdu = b"\x04\x00" + len(pdv).to_bytes(4, "big") + pdv
    for _ in range(10):
        if not assoc.is_established:
            break
        transport_socket.send(pdu)
        time.sleep(0.1)
    wait_until(lambda: not assoc.is_established, "the association to be aborted", 10)


def ask_without_waiting(assoc: Any, times: int) -> None:
    """Send requests for storage commitment, one after another."""
    (context,) = [one for one in assoc.accepted_contexts if one.abstract_syntax == PUSH_MODEL]
    assoc._reactor_checkpoint.clear()
    for number in range(times):
        request = N_ACTION()
        request.MessageID, request.ActionTypeID = number + 1, 1
        request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = PUSH_MODEL, PUSH_MODEL_INSTANCE
        content = encode(make_request(f"2.25.{number}", [("1.2", "1.3")]), True, True)
        assert content is not None
        request.ActionInformation = BytesIO(content)
        assoc.dimse.send_msg(request, context.context_id)


def test_requests_that_do_not_wait_for_answers_are_few(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    served = threading.Event()
    monkeypatch.setattr("dicom_node.scp.check_references", lambda *_: served.wait(20) and ((), {}))
    assoc: Any = propose(node, [PUSH_MODEL], ImplicitVRLittleEndian)
    connection = assoc.dul.socket.socket
    ask_without_waiting(assoc, notices.MAX_UNANSWERED + 1)
    assoc._reactor_checkpoint.set()
    try:
        wait_until(lambda: not assoc.is_established, "the association to be ended", 10)
    finally:
        served.set()
        connection.close()  # pynetdicom leaves one open that is reset


def test_some_requests_that_do_not_wait_for_answers_are_answered(node: Node) -> None:
    assoc: Any = propose(node, [PUSH_MODEL], ImplicitVRLittleEndian)
    ask_without_waiting(assoc, notices.MAX_UNANSWERED)
    answers = [assoc.dimse.get_msg(block=True)[1] for _ in range(notices.MAX_UNANSWERED)]
    assert [one.Status for one in answers] == [SUCCESS] * notices.MAX_UNANSWERED
    assoc._reactor_checkpoint.set()
    assoc.release()


def test_a_sender_that_dawdles_in_a_pdu_is_hung_up_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "GREETING_S", 1)
    with socket.create_connection(("127.0.0.1", node.port)) as slow:
        slow.sendall(b"\x01\x00\x00\x00\x10\x00")
        began = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(40):
                slow.sendall(b"\x00")
                time.sleep(0.25)
        assert time.monotonic() - began < 8


# ---- who -------------------------------------------------------------------------------------------------------------


def test_a_destination_that_is_no_sender_may_only_report(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session]
) -> None:
    node = Node(tmp_path, sqlite_sessions, peers=[])
    archive = {"name": "a", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 104}
    with_archive = Settings.model_validate({"destinations": [archive]}).destinations
    node.settings = node.settings.model_copy(update={"destinations": with_archive})
    node.start()
    try:
        assoc = propose(node, [PUSH_MODEL, DX_PRESENTATION_STORAGE], calling="ARCHIVE")
        assert assoc.is_established
        assert {cx.abstract_syntax for cx in assoc.accepted_contexts} == {"1.2.840.10008.1.1", PUSH_MODEL}
        assoc.release()
        assert answer(node, calling="PACS") == (1, 3)
        reason = ["receiver.peers does not list its AE title"]
        wait_until(lambda: audited(node, "association refused") == reason, "the refusal to be audited", 10)
    finally:
        node.stop()


def test_the_same_refusal_is_noted_once(node: Node) -> None:
    for _ in range(5):
        assert answer(node, calling="STRANGER") == (1, 3)
    assert answer(node, called="SOMEONE") is not None
    reasons = ["it calls 'SOMEONE', not receiver.ae_title", "receiver.peers does not list its AE title"]
    wait_until(lambda: sorted(audited(node, "association refused")) == reasons, "both refusals to be audited", 10)
    assert answer(node, calling="STRANGER") == (1, 3)
    assert sorted(audited(node, "association refused")) == reasons


def test_a_scan_under_ever_new_titles_is_answered_each_time_and_told_of_in_few_lines(node: Node) -> None:
    titles = [f"SCANNER{number}" for number in range(REFUSALS_OF_ADDRESS + 10)]
    assert [answer(node, calling=title) for title in titles] == [(1, 3)] * len(titles)
    wait_until(lambda: len(audited(node, "association refused")) > REFUSALS_OF_ADDRESS, "the refusals", 10)
    time.sleep(0.5)
    latest, *others = audited(node, "association refused")
    assert latest == "more of this address are refused than are listed"
    assert len(others) == REFUSALS_OF_ADDRESS and latest not in others


def test_a_scan_leaves_room_for_others_and_is_told_of_again_later(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.receiver is not None
    door = node.receiver._door
    for number in range(100):
        note_refusal(door, f"SCANNER{number}", "KNOWMVG", "192.0.2.1", "no")
    note_refusal(door, "PACS", "KNOWMVG", "192.0.2.2", "not today")
    assert audited(node, "association refused")[0] == "not today"
    monkeypatch.setattr(door_module, "SAME_REFUSAL_S", 0.0)
    note_refusal(door, "SCANNER0", "KNOWMVG", "192.0.2.1", "still no")
    assert audited(node, "association refused")[0] == "still no"


def test_refusals_of_very_many_addresses_are_neither_remembered_nor_told_without_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "REFUSALS", 30)
    assert node.receiver is not None
    door = node.receiver._door
    for number in range(200):
        note_refusal(door, "SCANNER", "KNOWMVG", f"192.0.2.{number}", "no")
    assert len(door.refusals) == len(audited(node, "association refused")) == 31
    assert audited(node, "association refused")[0] == "more are refused than are listed"


def test_what_two_threads_keep_is_kept_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def note_slowly(session: Session, event: AuditEvent, process: str, now: datetime) -> None:
        time.sleep(0.02)
        queries.note_audit(session, event, process, now)

    monkeypatch.setattr(door_module, "note_audit", note_slowly)
    assert node.receiver is not None
    door = node.receiver._door
    door.unkept.extend((node.clock(), AuditEvent("node alert", reason=str(number))) for number in range(10))
    keeping = [threading.Thread(target=keep_audit, args=(door,)) for _ in range(3)]
    for one in keeping:
        one.start()
    for one in keeping:
        one.join()
    wait_until(lambda: len(audited(node, "node alert")) >= 10, "what the receiver itself may keep", 10)
    assert sorted(audited(node, "node alert")) == [str(number) for number in range(10)]


def test_what_cannot_be_kept_waits_in_its_order(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.receiver is not None
    away = make_sessions(make_engine(f"sqlite:///{tmp_path}"))
    door = replace(node.receiver._door, sessions=away, unkept=deque(maxlen=100))
    door.unkept.extend((node.clock(), AuditEvent("node alert", reason=str(number))) for number in range(5))
    keep_audit(door)
    assert [event.reason for _, event in door.unkept] == ["0", "1", "2", "3", "4"]
    keep_audit(replace(door, sessions=node.sessions))
    assert not door.unkept
    assert audited(node, "node alert") == ["4", "3", "2", "1", "0"]


def test_what_comes_is_audited_once_for_each_study_of_an_association(node: Node) -> None:
    send(node, make_cxr_dataset(), make_cxr_dataset(instance=2), make_cxr_dataset(study="2"))
    send(node, make_cxr_dataset(instance=3))
    with node.sessions() as session:
        entries = queries.list_audit(session, 100, "instances received")
        unsent = queries.unsent_audit(session, node.clock(), 100)
    assert sorted(sum(entry.event.sop_classes.values()) for entry in entries) == [1, 1, 2]
    assert {entry.event.actor for entry in entries} == {"PACS"}
    assert all(entry.event.patient_id for entry in entries)
    assert unsent == ()  # an association may still add to it


def test_nothing_that_was_received_is_in_a_path_and_files_are_private(node: Node) -> None:
    os.umask(0o022)
    ds = make_cxr_dataset()
    send(node, ds)
    (path,) = node.files()
    assert ds.SOPInstanceUID not in str(path) and ds.StudyInstanceUID not in str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folders = [folder for folder in path.parents if folder.is_relative_to(node.storage.root)]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_connections_may_come_while_others_are_counted(node: Node) -> None:
    """The thread that accepts must not die of a dictionary that grows while it counts."""
    assert node.receiver is not None
    server = node.receiver._server
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            server.verify_request(None, ("192.0.2.1", 1))

    counting = [threading.Thread(target=count) for _ in range(2)]
    for one in counting:
        one.start()
    try:
        for _ in range(40):
            socket.create_connection(("127.0.0.1", node.port)).close()
        assert answer(node) is None
    finally:
        stop.set()
        for one in counting:
            one.join()
