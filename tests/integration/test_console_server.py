"""The console's server: TLS, a proxy in front of it, and who connects and says nothing."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicom_node.config import Settings
from dicom_node.console import guard
from dicom_node.console import server as console_server
from dicom_node.console.health import certificates
from dicom_node.console.server import ConsoleServer, make_server
from dicom_node.errors import SettingsError
from tests.certificates import Authority
from tests.console import PASSWORD, Console


@contextmanager
def serving(console: Console) -> Iterator[ConsoleServer]:
    server = make_server(console.settings, console.sessions, console.clock, port=0)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.close()


def ask(
    server: ConsoleServer, context: ssl.SSLContext | None, method: str, path: str, form: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """Ask, over TLS if there is a context."""
    if context is not None:
        connection: Any = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=20)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = urlencode(form) if form else None
    kind = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    connection.request(method, path, body, kind | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.headers, response.read().decode()
    connection.close()
    return answer


def sign_in(server: ConsoleServer, context: ssl.SSLContext | None, **headers: str) -> list[str]:
    """Sign anna in; return the cookies that are set."""
    _, found, page = ask(server, context, "GET", "/sign-in", **headers)
    cookie = str(found["set-cookie"]).partition(";")[0]
    csrf = re.search(r'name="csrf" value="(\w+)"', page)
    assert csrf
    form = {"name": "anna", "password": PASSWORD, "csrf": csrf[1]}
    status, found, _ = ask(server, context, "POST", "/sign-in", form, Cookie=cookie, **headers)
    assert status == 303
    return list(found.get_all("set-cookie") or [])


def test_over_tls_its_cookies_are_for_tls_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("console")
    console = Console(tmp_path, {"console": {"tls": {"certificate": str(certificate), "key": str(key)}}})
    console.add_user("anna", "viewer")
    assert [use for use, _ in certificates(console.settings)] == ["console"]
    context = ssl.create_default_context(cafile=str(authority.ca))
    with serving(console) as server:
        cookies = sign_in(server, context, Origin=f"https://127.0.0.1:{server.port}")
        assert [one for one in cookies if one.startswith("__Host-knowmvg=") and "Secure" in one]
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(server, None, "GET", "/healthz")
        old = ssl.create_default_context(cafile=str(authority.ca))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers("AES128-SHA256")
        with pytest.raises(ssl.SSLError):
            ask(server, old, "GET", "/healthz")
    console.close()


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    section = {"tls": {"certificate": str(tmp_path / "none.pem"), "key": str(tmp_path / "none.key")}}
    console = Console(tmp_path, {"console": section})
    with pytest.raises(SettingsError, match=r"console\.tls.*none\.pem"):
        make_server(console.settings, console.sessions, console.clock, port=0)
    console.close()


@pytest.mark.parametrize(("proxies", "address"), [(["127.0.0.1"], "192.0.2.44"), (["192.0.2.1"], "127.0.0.1")])
def test_behind_a_proxy_the_browser_is_named_if_the_proxy_is_believed(
    tmp_path: Path, proxies: list[str], address: str
) -> None:
    section = {"behind_proxy": True, "proxies": proxies, "allowed_hosts": ["console.example"], "host": "0.0.0.0"}
    console = Console(tmp_path, {"console": section})
    console.add_user("anna", "viewer")
    passed_on = {"X_Forwarded_For": "192.0.2.44", "X_Forwarded_Proto": "https", "Host": "console.example"}
    with serving(console) as server:
        cookies = sign_in(server, None, Origin="https://console.example", **passed_on)
        assert [one for one in cookies if one.startswith("__Host-knowmvg=") and "Secure" in one]
    assert [entry.event.actor_address for entry in console.events("sign-in")] == [address]
    console.close()


def test_what_a_browser_says_of_its_address_is_not_believed_without_a_proxy(tmp_path: Path) -> None:
    console = Console(tmp_path)
    console.add_user("anna", "viewer")
    with serving(console) as server:
        sign_in(server, None, X_Forwarded_For="192.0.2.44")
    assert [entry.event.actor_address for entry in console.events("sign-in")] == ["127.0.0.1"]
    console.close()


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost: local"])
def test_who_connects_and_does_not_ask_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(console_server, "REQUEST_TIMEOUT_S", 0.3)
    console = Console(tmp_path)
    with serving(console) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        began = time.monotonic()
        connection.sendall(said)
        assert connection.recv(100) == b""
        assert 0.2 < time.monotonic() - began < 15
    console.close()


def test_who_asks_once_and_begins_to_ask_again_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_server, "REQUEST_TIMEOUT_S", 3)
    console = Console(tmp_path)
    with serving(console) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\r\n\r\nok\n"):  # which may come in two pieces
            answer += (piece := connection.recv(65536))
            assert piece
        connection.sendall(b"GET /he")
        assert connection.recv(100) == b""
    console.close()


@pytest.mark.parametrize("count", [1, 400])
def test_who_asks_and_does_not_read_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """What is not read fills the socket's buffers first: of many answers, and of one that is larger than they are."""
    monkeypatch.setattr(console_server, "REQUEST_TIMEOUT_S", 3)
    monkeypatch.setattr(console_server, "SEND_WITHIN_S", 1)
    console = Console(tmp_path)
    console.app.router.routes.insert(0, Route("/large", lambda _: PlainTextResponse("a" * 20_000_000 * (count == 1))))
    with serving(console) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        path = "/large" if count == 1 else "/static/console.css"
        connection.setblocking(False)
        with suppress(BlockingIOError):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * count)
        known = server._server.server_state.connections
        for wanted in (True, False):
            until = time.monotonic() + 15
            while bool(known) != wanted:
                assert time.monotonic() < until
                time.sleep(0.02)
    console.close()


@pytest.mark.parametrize(
    ("path", "kind"), [("/sign-in", "application/x-www-form-urlencoded"), ("/api/v1/jobs/retry", "application/json")]
)
def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, kind: str
) -> None:
    monkeypatch.setattr(guard, "BODY_WITHIN_S", 0.3)
    monkeypatch.setattr(console_server, "REQUEST_TIMEOUT_S", 1)
    console = Console(tmp_path)
    with serving(console) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 10\r\n\r\n"
        connection.sendall(head.encode() + b"{1")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    console.close()


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nhello!!\r\n", b"0\r\n\r\nGARBAGE\r\n\r\n"])
def test_a_body_that_is_none_is_refused_without_a_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    console = Console(tmp_path)
    with serving(console) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        kind = "Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked"
        connection.sendall(f"POST /sign-in HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    console.close()


@pytest.mark.parametrize("head", ["Content-Length: 300000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_not_read(tmp_path: Path, head: str) -> None:
    console = Console(tmp_path)
    with serving(console) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        kind = "Content-Type: application/x-www-form-urlencoded"
        connection.sendall(f"POST /sign-in HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{head}\r\n\r\n".encode())
        if "chunked" in head:
            try:
                for _ in range(60):
                    connection.sendall(b"2000\r\n" + b"a" * 0x2000 + b"\r\n")
                connection.sendall(b"0\r\n\r\n")
            except ConnectionError:
                pass
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer:
                    break
        except ConnectionError:
            pass
        assert not answer or re.match(rb"HTTP/1.1 4\d\d ", answer)
    console.close()


def test_the_settings_of_a_host_that_others_reach_are_refused_in_clear() -> None:
    with pytest.raises(ValueError, match="behind_proxy"):
        Settings.model_validate({"console": {"host": "0.0.0.0"}})
