"""Audit messages on their way to a collector: all of them arrive, in order, however often it goes away."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
import yaml
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.audit import AuditEvent
from dicom_node.config import load_settings
from dicom_node.errors import SettingsError
from dicom_node.instance import read_instance
from dicom_node.queries import AuditEntry, make_sessions
from dicom_node.queries.audit import claim_audit, unsent_audit
from dicom_node.storage import StoredFile
from dicom_node.syslog import SyslogConnection
from tests.acceptance.peers import wait_until
from tests.builders import encode as encode_dataset
from tests.builders import make_cxr_dataset
from tests.certificates import Authority
from tests.rig import Rig, make_sqlite_sessions
from workers import auditing
from workers.auditing import AuditForwarder


class Collector:
    """Takes octet-counted frames; `close` hangs up on whoever is connected."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.messages: list[str] = []
        self.server = socket.create_server(("127.0.0.1", port))
        self.port = self.server.getsockname()[1]
        self._context, self._closed = context, False
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
                if self._context:
                    connection = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                if self._closed:
                    return
                continue
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        held = b""
        while True:
            try:
                read = connection.recv(65536)
            except OSError:
                return
            if not read:
                return
            held += read
            while match := re.match(rb"(\d+) ", held):
                end = match.end() + int(match[1])
                if len(held) < end:
                    break
                self.messages.append(held[match.end() : end].decode())
                held = held[end:]

    def close(self) -> None:
        self._closed = True
        self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.server.close()
        self._thread.join(10)  # it may be at a hand-shake, with a connection that is not in the list yet
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                connection.close()

    def numbers(self) -> list[int]:
        """Return the numbers that the messages carry as their reason."""
        texts = [message.partition("\ufeff")[2] for message in self.messages]
        return [int(fromstring(text)[0].findtext("EventOutcomeDescription") or -1) for text in texts]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def make_rig(folder: Path, sessions: sessionmaker[Session] | None = None, **audit: Any) -> Rig:
    return Rig(folder, sessions or make_sqlite_sessions(folder), [], audit=audit)


def note(rig: Rig, *numbers: int) -> None:
    with rig.sessions.begin() as session:
        for number in numbers:
            event = AuditEvent("association refused", success=False, actor="STRANGER", reason=str(number))
            queries.note_audit(session, event, "receiver", rig.clock())


def test_messages_arrive_in_order_and_are_marked(tmp_path: Path, collector: Collector) -> None:
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    forwarder = AuditForwarder(rig.resources)
    note(rig, *range(450))
    assert [forwarder.forward() for _ in range(4)] == [200, 200, 50, 0]
    wait_until(lambda: len(collector.messages) == 450, "the messages", 10)
    assert collector.numbers() == list(range(450))
    forwarder.close()
    assert collector.messages[0].startswith("<85>1 2026-01-02T12:00:00.000+00:00 ")
    with rig.sessions() as session:
        assert queries.count_unsent_audit(session) == 0


def test_over_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    theirs, ours = authority.issue("collector"), authority.issue("node")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*theirs)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    collector = Collector(context)
    tls = {"ca": str(authority.ca), "certificate": str(ours[0]), "key": str(ours[1])}
    rig = make_rig(tmp_path, syslog=f"syslog+tls://localhost:{collector.port}", tls=tls)
    note(rig, 1)
    forwarder = AuditForwarder(rig.resources)
    forwarder.forward()
    wait_until(lambda: collector.numbers() == [1], "the message", 10)
    forwarder.close()
    other = make_rig(tmp_path / "other", syslog=f"syslog+tls://localhost:{collector.port}",
                     tls=tls | {"ca": str(Authority(tmp_path / "x", "other").ca)})  # fmt: skip
    note(other, 2)
    with pytest.raises(OSError):
        AuditForwarder(other.resources).forward()
    with other.sessions() as session:
        assert queries.count_unsent_audit(session) == 1
    (tmp_path / "third").mkdir()
    third = make_rig(tmp_path / "third", syslog=f"syslog+tls://localhost:{collector.port}",
                     tls=tls | {"server_name": "another.example"})  # fmt: skip
    note(third, 3)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"another\.example"):
        AuditForwarder(third.resources).forward()
    collector.close()


@pytest.mark.parametrize(
    ("audit", "says"),
    [
        ({"syslog": "syslog+tcp://a", "tls": {"ca": "ca.pem"}}, "syslog+tcp sends in clear"),
        ({"syslog": "SYSLOG+TCP://a", "tls": {"ca": "ca.pem"}}, "syslog+tcp sends in clear"),
        ({"syslog": "SYSLOG+TLS://a"}, "tls.ca is needed"),
        ({"syslog": "syslog+tls://a:99999", "tls": {"ca": "ca.pem"}}, "audit.syslog: Port out of range"),
        ({"syslog": "syslog+tcp://a:0"}, "syslog+tcp://host:601"),
    ],
)
def test_settings_that_would_not_send_as_they_seem_to_are_refused(
    tmp_path: Path, audit: dict[str, Any], says: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"audit": audit}))
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("host", "address", "kind"),
    [
        ("192.0.2.7", "192.0.2.7", "2"),
        ("node.example", "node.example", "1"),
        ("0.0.0.0", "this host", "1"),
        ("::", "this host", "1"),
        ("", "this host", "1"),
    ],
)
def test_a_node_that_listens_everywhere_is_named_by_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, address: str, kind: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "this host")
    rig = Rig(tmp_path, make_sqlite_sessions(tmp_path), [], receiver={"host": host})
    entry = AuditEntry(1, rig.clock(), "scheduler", AuditEvent("application start"), None)
    message = fromstring(auditing.encode(entry, rig.settings).partition(b"\xef\xbb\xbf")[2])
    participant = message.find("ActiveParticipant")
    assert participant is not None
    assert participant.get("NetworkAccessPointID") == address
    assert participant.get("NetworkAccessPointTypeCode") == kind


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "LOOK_S", 0.05)
    monkeypatch.setattr(auditing, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(auditing, "LONGEST_PAUSE_S", 0.2)


def test_none_is_lost_while_the_collector_comes_and_goes(tmp_path: Path) -> None:
    """What was on its way when it went away may come twice, never not at all."""
    collector = Collector()
    seen: set[int] = set()
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    stop = threading.Event()
    thread = threading.Thread(target=AuditForwarder(rig.resources).run, args=(stop,))
    thread.start()
    try:
        for turn in range(6):
            note(rig, *range(turn * 50, turn * 50 + 50))
            stop.wait(0.2)
            collector.close()
            seen |= set(collector.numbers())
            note(rig, *range(1000 + turn * 50, 1000 + turn * 50 + 50))
            stop.wait(0.2)
            collector = Collector(port=collector.port)
        wanted = {
            number
            for turn in range(6)
            for start in (0, 1000)
            for number in range(start + turn * 50, start + turn * 50 + 50)
        }
        wait_until(lambda: seen | set(collector.numbers()) >= wanted, "every message", 20)
    finally:
        stop.set()
        thread.join()
        collector.close()


def test_a_collector_that_reads_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        connection = SyslogConnection("127.0.0.1", deaf.getsockname()[1], None, timeout_s=0.5)
        with connection, pytest.raises(OSError):
            for _ in range(200):
                connection.send(bytes(1024**2))


# ---- whatever fails, it goes on --------------------------------------------------------------------------------------


@contextmanager
def running(rig: Rig) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=AuditForwarder(rig.resources).run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def fail(times: int, error: Exception, then: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises `error` so many times, and then does as `then`."""
    left = [error] * times

    def call(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return then(*arguments)

    return call


def test_a_file_of_its_tls_that_is_missing_for_now_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("collector"))
    collector = Collector(context)
    ca = tmp_path / "later.pem"
    rig = make_rig(tmp_path, syslog=f"syslog+tls://localhost:{collector.port}", tls={"ca": str(ca)})
    note(rig, 1)
    with running(rig) as thread:
        wait_until(lambda: "audit collector unavailable" in caplog.messages or not thread.is_alive(), "the log", 10)
        ca.write_bytes(authority.ca.read_bytes())
        wait_until(lambda: collector.numbers() == [1] or not thread.is_alive(), "the message", 10)
        assert thread.is_alive()
    assert str(ca) in str(vars(caplog.records[0])["facts"]["reason"])
    collector.close()


def test_what_nobody_foresaw_is_logged_and_survived(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auditing, "connect", fail(3, ValueError("a bug"), auditing.connect))
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    note(rig, 1, 2)
    with running(rig) as thread:
        wait_until(lambda: collector.numbers() == [1, 2] or not thread.is_alive(), "the messages", 10)
        assert thread.is_alive()
    assert caplog.messages.count("audit messages not sent") == 3


def test_an_event_that_cannot_be_encoded_keeps_no_other_back(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auditing, "encode", fail(1, ValueError("a bug"), auditing.encode))
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    note(rig, 1, 2, 3)
    forwarder = AuditForwarder(rig.resources)
    forwarder.forward()
    wait_until(lambda: collector.numbers() == [2, 3], "the others", 10)
    assert "cannot be encoded" in caplog.text
    rig.clock.move(minutes=2)
    forwarder.forward()
    wait_until(lambda: collector.numbers() == [2, 3, 1], "it, when it can", 10)
    forwarder.close()


def test_what_may_be_lost_is_sent_again_though_the_database_is_away_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fault = OperationalError("UPDATE", {}, Exception("database is locked"))
    monkeypatch.setattr(auditing, "release_audit", fail(3, fault, auditing.release_audit))
    collector = Collector()
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    note(rig, 1, 2, 3)
    with running(rig) as thread:
        wait_until(lambda: collector.numbers() == [1, 2, 3], "the messages", 10)
        collector.close()
        collector = Collector(port=collector.port)
        wait_until(lambda: collector.numbers() == [1, 2, 3] or not thread.is_alive(), "the messages again", 10)
        assert thread.is_alive()
    assert caplog.messages.count("database unavailable") == 3
    collector.close()


def test_very_many_that_may_be_lost_are_sent_again(tmp_path: Path, collector: Collector) -> None:
    """More than a statement may have parameters."""
    rig = make_rig(tmp_path, syslog=f"syslog+tcp://127.0.0.1:{collector.port}")
    note(rig, 1)
    forwarder = AuditForwarder(rig.resources)
    forwarder.forward()
    forwarder._doubtful.extend((0.0, number) for number in range(2, 70_000))
    forwarder._give_up(())
    assert waiting(rig) == [1]


# ---- claims ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path, engine: Engine, collector: Collector) -> Rig:
    return make_rig(tmp_path, make_sessions(engine), syslog=f"syslog+tcp://127.0.0.1:{collector.port}")


def waiting(rig: Rig) -> list[int]:
    """Return the ids of what is to be sent now."""
    with rig.sessions.begin() as session:
        return [entry.audit_id for entry in unsent_audit(session, rig.clock(), 10_000)]


def claim(rig: Rig, session: Session, limit: int = 1000) -> list[int]:
    entries = claim_audit(session, rig.clock(), rig.clock() + auditing.LEASE, limit)
    return [entry.audit_id for entry in entries]


def receive(rig: Rig, session: Session, number: int = 1) -> None:
    instance = read_instance(encode_dataset(make_cxr_dataset(instance=number)))
    stored = StoredFile("key", "0" * 64, 1)
    arrival = queries.Arrival(instance, stored, "PACS", rig.clock(), "127.0.0.1", "association")
    queries.note_received(session, [arrival])


def received(rig: Rig) -> list[int]:
    """Return the number of instances of each message on what came."""
    with rig.sessions() as session:
        entries = queries.list_audit(session, 100, "instances received")
    return [sum(entry.event.sop_classes.values()) for entry in reversed(entries)]


def test_of_several_senders_each_message_is_sent_by_one(rig: Rig, collector: Collector) -> None:
    note(rig, *range(1000))
    forwarders = [AuditForwarder(rig.resources) for _ in range(4)]

    def forward(forwarder: AuditForwarder) -> None:
        while forwarder.forward():
            continue

    with ThreadPoolExecutor(len(forwarders)) as pool:
        list(pool.map(forward, forwarders))
    wait_until(lambda: len(collector.messages) >= 1000, "the messages", 10)
    assert sorted(collector.numbers()) == list(range(1000))
    for forwarder in forwarders:
        forwarder.close()


def test_what_a_sender_that_died_had_claimed_is_sent_after_its_lease(rig: Rig, collector: Collector) -> None:
    note(rig, 1, 2)
    with rig.sessions.begin() as session:
        first = claim(rig, session)
    forwarder = AuditForwarder(rig.resources)
    assert forwarder.forward() == 0
    rig.clock.move(seconds=60)
    assert forwarder.forward() == 2
    wait_until(lambda: collector.numbers() == [1, 2], "the messages", 10)
    forwarder.close()
    assert len(first) == 2


def test_who_was_too_slow_marks_nothing(rig: Rig) -> None:
    note(rig, 1)
    until = rig.clock() + auditing.LEASE
    with rig.sessions.begin() as session:
        claimed = claim(rig, session)
    rig.clock.move(seconds=61)
    with rig.sessions.begin() as session:
        assert claim(rig, session) == claimed
        queries.mark_audit(session, claimed, until, rig.clock())
    with rig.sessions() as session:
        assert queries.count_unsent_audit(session) == 1


def test_where_the_collector_is_away_what_was_claimed_is_due_at_once_in_its_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(rig, *range(5))
    before = waiting(rig)
    monkeypatch.setattr(auditing, "connect", fail(1, ConnectionRefusedError("away"), auditing.connect))
    with pytest.raises(ConnectionRefusedError):
        AuditForwarder(rig.resources).forward()
    assert waiting(rig) == before == sorted(before)


def test_a_collector_that_is_slow_is_sent_no_more_than_the_claim_allows(
    rig: Rig, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(rig, 1, 2, 3)
    monkeypatch.setattr(auditing, "SEND_S", -1.0)
    forwarder = AuditForwarder(rig.resources)
    assert forwarder.forward() == 0
    monkeypatch.undo()
    assert forwarder.forward() == 3
    wait_until(lambda: collector.numbers() == [1, 2, 3], "the messages", 10)
    forwarder.close()


def test_what_comes_after_the_message_was_claimed_is_told_in_another(rig: Rig, collector: Collector) -> None:
    with rig.sessions.begin() as session:
        receive(rig, session)
        receive(rig, session, 2)
    rig.clock.move(seconds=61)
    with rig.sessions.begin() as session:
        assert len(claim(rig, session)) == 1
    with rig.sessions.begin() as session:
        receive(rig, session, 3)
    assert received(rig) == [2, 1]
    rig.clock.move(seconds=61)
    forwarder = AuditForwarder(rig.resources)
    assert forwarder.forward() == 2
    with rig.sessions.begin() as session:
        receive(rig, session, 4)
    assert received(rig) == [2, 1, 1]
    forwarder.close()


def test_what_comes_while_the_message_is_claimed_waits_and_is_told_in_another(rig: Rig) -> None:
    with rig.sessions.begin() as session:
        receive(rig, session)
    rig.clock.move(seconds=61)

    def receive_another() -> None:
        with rig.sessions.begin() as session:
            receive(rig, session, 2)

    with ThreadPoolExecutor(1) as pool:
        with rig.sessions.begin() as session:
            assert len(claim(rig, session)) == 1
            coming = pool.submit(receive_another)
            with pytest.raises(TimeoutError):
                coming.result(0.5)
        coming.result(20)
    assert received(rig) == [1, 1]


def test_what_is_being_added_to_is_not_claimed(rig: Rig) -> None:
    with rig.sessions.begin() as session:
        receive(rig, session)
    rig.clock.move(seconds=61)

    def claim_it() -> list[int]:
        with rig.sessions.begin() as session:
            return claim(rig, session)

    with ThreadPoolExecutor(1) as pool:
        with rig.sessions.begin() as session:
            receive(rig, session, 2)
            session.flush()
            claiming = pool.submit(claim_it)
            if rig.sessions.kw["bind"].dialect.name == "postgresql":
                assert claiming.result(20) == []
        assert claiming.result(20) == []
    assert received(rig) == [2]
