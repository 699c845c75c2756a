"""Audit messages on their way to a collector: all of them arrive, in order, however often it goes away."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from dicom_node import queries
from dicom_node.audit import AuditEvent
from dicom_node.syslog import SyslogConnection
from tests.acceptance.peers import wait_until
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
        threading.Thread(target=self._serve, daemon=True).start()

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


def make_rig(folder: Path, **audit: Any) -> Rig:
    rig = Rig(folder, make_sqlite_sessions(folder), [], audit=audit)
    rig.resources = replace(rig.resources)
    return rig


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
    collector.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "LOOK_S", 0.05)
    monkeypatch.setattr(auditing, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(auditing, "LONGEST_PAUSE_S", 0.2)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
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
