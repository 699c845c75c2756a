"""The receiver's door: who gets in as what, what is refused for now, and that a scan or a slow sender costs nothing."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries, transport
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import Settings
from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from dicom_node.storage import FileStorage
from tests.acceptance.peers import wait_until
from tests.builders import DX_PRESENTATION_STORAGE, make_cxr_dataset
from tests.integration.test_scp import REFUSED_RESOURCES, SUCCESS, Node, associated, propose, send, sqlite_sessions

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


# ---- for now ---------------------------------------------------------------------------------------------------------


def test_without_space_associations_are_rejected_for_now_and_the_alarm_is_raised_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dicom_node")
    space = {"free": 0}
    monkeypatch.setattr(FileStorage, "free_bytes", lambda self: space["free"])
    wait_until(lambda: answer(node) == (TRANSIENT, CONGESTION), "the door to close", 10)
    time.sleep(2.5)
    space["free"] = 10**12
    wait_until(lambda: answer(node) is None, "the door to open", 10)
    assert caplog.messages.count("receiver refuses for now") == caplog.messages.count("receiver takes in again") == 1
    wait_until(lambda: len(audited(node, "node alert")) == 2, "the alarm and its end to be audited", 10)


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
    ae = AE("PACS")
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
