"""The connection to an audit collector: frames arrive whole and in order, and a collector that is gone is noticed."""

from __future__ import annotations

import contextlib
import fcntl
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.syslog import SyslogConnection, frame
from tests.acceptance.peers import wait_until
from tests.certificates import Authority

AT = datetime(2026, 1, 2, 12, 30, tzinfo=UTC)
NOTICED_WITHIN = 5
"""So many sends at most until a collector that went away is noticed."""
SLACK_S = 10.0
"""So much longer than the time allowed a busy machine may take."""


def make_frame(text: str) -> bytes:
    return frame(text, AT, "node.example", "knowmvg-receiver", 7)


class Collector:
    """Takes one connection and the octet-counted frames on it; says `answer` to each; `close` hangs up."""

    def __init__(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.messages: list[str] = []
        self.answer = b""
        self.connection: socket.socket | None = None
        self._context = context
        self._server = socket.create_server((host, 0))
        self.host, self.port = self._server.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._server.accept()
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
        except OSError:
            return
        self.connection = connection
        with connection, connection.makefile("rb") as stream:
            try:
                for text in read_frames(stream.read):
                    self.messages.append(text)
                    connection.sendall(self.answer)
            except OSError:
                return

    def close(self) -> None:
        for one in (self.connection, self._server):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts or reads
        self._server.close()
        self._thread.join(10)


def read_frames(read: Callable[[int], bytes]) -> Iterator[str]:
    """Yield the text of each frame; a stream that ends within a frame is a fault."""
    while True:
        length = b""
        while not length.endswith(b" "):
            digit = read(1)
            if not digit:
                assert not length, "the stream ended within a frame"
                return
            length += digit
        content = read(int(length))
        assert len(content) == int(length), "the stream ended within a frame"
        header, _, text = content.partition(b"\xef\xbb\xbf")
        assert re.fullmatch(rb"<85>1 \S+ node\.example knowmvg-receiver 7 DICOM\+RFC3881 - ", header)
        yield text.decode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def client_context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca))


Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]
"""The collector's and ours."""


@pytest.fixture(params=["plain", "TLS 1.2", "TLS 1.3"])
def contexts(request: pytest.FixtureRequest, authority: Authority) -> Contexts:
    if request.param == "plain":
        return None, None
    theirs = server_context(authority.issue("collector"))
    version = ssl.TLSVersion.TLSv1_2 if request.param == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
    theirs.minimum_version = theirs.maximum_version = version
    return theirs, client_context(authority)


@pytest.fixture
def collector(contexts: Contexts) -> Iterator[Collector]:
    collector = Collector(contexts[0])
    yield collector
    collector.close()


def connect(collector: Collector, context: ssl.SSLContext | None, timeout_s: float = 10) -> SyslogConnection:
    return SyslogConnection(collector.host, collector.port, context, timeout_s)


def test_messages_arrive_whole_and_in_order(collector: Collector, contexts: Contexts) -> None:
    """Small ones and some of several TLS records (PS3.15 A.6 asks for 32768 octets), with all kinds of characters."""
    sent = [f"{number} Müller 山田 😀\n" + "ü" * (number % 7) * 20_000 for number in range(100)]
    with connect(collector, contexts[1]) as connection:
        for text in sent:
            connection.send(make_frame(text))
        wait_until(lambda: len(collector.messages) == len(sent), "the messages", 20)
    assert collector.messages == sent


def test_what_was_sent_just_before_hanging_up_arrives(collector: Collector, contexts: Contexts) -> None:
    with connect(collector, contexts[1]) as connection:
        connection.send(make_frame("only"))
    wait_until(lambda: collector.messages == ["only"], "the message", 10)


def test_we_hang_up_as_tls_asks_for(authority: Authority) -> None:
    """RFC 5425 4.4: close_notify; without it a collector cannot tell the end from a truncation."""
    theirs, ends = server_context(authority.issue("collector")), list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def read() -> None:
            plain, _ = server.accept()
            with theirs.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as connection:
                ends.extend(iter(lambda: connection.recv(65536), b""))

        thread = threading.Thread(target=read)
        thread.start()
        port = server.getsockname()[1]
        with SyslogConnection("127.0.0.1", port, client_context(authority)) as connection:
            connection.send(make_frame("last"))
        thread.join()
    assert b"".join(ends) == make_frame("last")


def test_descriptors_above_1023_do(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    with connect(collector, None) as connection:
        high = fcntl.fcntl(connection._socket, fcntl.F_DUPFD, 1100)
        with socket.socket(fileno=high) as duplicate:
            monkeypatch.setattr(connection, "_socket", duplicate)
            connection.check()
            monkeypatch.undo()
    collector.close()


def test_a_collector_that_hung_up_is_noticed_before_anything_is_sent(collector: Collector, contexts: Contexts) -> None:
    with connect(collector, contexts[1]) as connection:
        connection.send(make_frame("first"))
        wait_until(lambda: collector.messages == ["first"], "the message", 10)
        connection.check()
        collector.close()
        with pytest.raises(OSError):
            for _ in range(100):
                connection.check()
                time.sleep(0.01)


def test_a_collector_that_hung_up_is_noticed_within_a_few_sends(collector: Collector, contexts: Contexts) -> None:
    with connect(collector, contexts[1]) as connection:
        connection.send(make_frame("first"))
        wait_until(lambda: collector.messages == ["first"], "the message", 10)
        collector.close()
        with pytest.raises(OSError):
            for _ in range(NOTICED_WITHIN):
                connection.send(make_frame("lost"))
                time.sleep(0.01)


def test_a_collector_that_talks_back_is_no_collector_that_hung_up(collector: Collector, contexts: Contexts) -> None:
    collector.answer = b"thank you " * 100
    with connect(collector, contexts[1]) as connection:
        for number in range(20):
            connection.send(make_frame(str(number)))
            time.sleep(0.01)
        wait_until(lambda: len(collector.messages) == 20, "the messages", 10)
        connection.check()


def test_a_collector_whose_certificate_another_authority_signed_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = Collector(server_context(Authority(tmp_path, "stranger").issue("collector")))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"issuer certificate|self-signed"):
        connect(stranger, client_context(authority))
    stranger.close()


def test_a_collector_whose_certificate_expired_is_refused(authority: Authority) -> None:
    late = Collector(server_context(authority.issue("late", expired=True)))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect(late, client_context(authority))
    late.close()


def test_a_collector_whose_certificate_names_another_host_is_refused(authority: Authority) -> None:
    """The certificate is for 127.0.0.1 and localhost."""
    elsewhere = Collector(server_context(authority.issue("collector")), host="127.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        connect(elsewhere, client_context(authority))
    elsewhere.close()


def test_a_collector_whose_certificate_has_another_name_is_known_by_that(authority: Authority) -> None:
    elsewhere = Collector(server_context(authority.issue("collector")), host="127.0.0.2")
    context = client_context(authority)
    with SyslogConnection(elsewhere.host, elsewhere.port, context, server_name="localhost") as connection:
        connection.send(make_frame("only"))
        wait_until(lambda: elsewhere.messages == ["only"], "the message", 10)
    elsewhere.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_collector_that_reads_nothing_blocks_no_longer_than_the_time_allowed(tls: bool, authority: Authority) -> None:
    """It accepts the connection, then its window fills."""
    theirs = server_context(authority.issue("collector")) if tls else None
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            connection, _ = server.accept()
            if theirs:
                connection = theirs.wrap_socket(connection, server_side=True)
            accepted.append(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        context = client_context(authority) if tls else None
        with SyslogConnection("127.0.0.1", server.getsockname()[1], context, timeout_s=2) as connection:
            thread.join()
            longest = send_until_refused(connection, make_frame("x" * 100_000))
        accepted[0].close()
    assert longest < 2 + SLACK_S


def send_until_refused(connection: SyslogConnection, content: bytes) -> float:
    """Send until the connection refuses; return how many seconds the longest send took."""
    longest = 0.0
    for _ in range(1000):
        begun = time.monotonic()
        try:
            connection.send(content)
        except OSError:
            return max(longest, time.monotonic() - begun)
        longest = max(longest, time.monotonic() - begun)
    raise AssertionError("100 MB went to a collector that reads nothing")


def test_a_collector_that_never_shakes_hands_is_given_up(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            SyslogConnection("127.0.0.1", silent.getsockname()[1], client_context(authority), timeout_s=0.3)
        assert time.monotonic() - begun < 0.3 + SLACK_S


def test_a_collector_without_tls_is_refused_where_tls_is_wanted(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 plain text\r\n")
                connection.recv(1)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(OSError):
            SyslogConnection("127.0.0.1", server.getsockname()[1], client_context(authority), timeout_s=5)
        thread.join()


def test_where_nobody_listens_the_connection_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        SyslogConnection("127.0.0.1", port, None)
