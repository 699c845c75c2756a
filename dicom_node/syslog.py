"""Syslog for audit messages: RFC 5424 messages in octet-counted frames (RFC 6587) over TCP or TLS (RFC 5425).

The protocol has no acknowledgement: a collector that goes away takes what was on its way with it. So it is noticed as
early as can be, and the caller sends again what was sent shortly before.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
from datetime import datetime

PRIORITY = 85
"""Facility 10 (security), severity 5 (notice): PS3.15 A.6.1."""

MESSAGE_ID = "DICOM+RFC3881"
"""MSGID of an audit message, PS3.15 A.6.1."""

IDLE_S = 60
"""After so long without a message the kernel asks whether the collector is still there (else after two hours)."""

_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


def frame(message: str, at: datetime, hostname: str, process: str, pid: int) -> bytes:
    """Return a message in its frame: length, header, and the text in UTF-8 with a byte order mark."""
    header = (
        f"<{PRIORITY}>1 {at.isoformat(timespec='milliseconds')} {_word(hostname, 255)} {_word(process, 48)} {pid} "
        f"{MESSAGE_ID} - "
    )
    content = header.encode("ascii") + b"\xef\xbb\xbf" + message.encode("utf-8", "replace")
    return f"{len(content)} ".encode("ascii") + content


def _word(text: str, longest: int) -> str:
    return _NOT_PRINTABLE.sub("_", text)[:longest] or "-"


class SyslogConnection:
    """A connection to a collector. Everything raises OSError where the collector is gone, or does not read in time."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, timeout_s: float = 10, server_name: str = ""
    ) -> None:
        """Connect; `context` for TLS, which checks the collector's certificate against `server_name`, else `host`."""
        plain = socket.create_connection((host, port), timeout=timeout_s)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
            self._socket = context.wrap_socket(plain, server_hostname=server_name or host) if context else plain
        except OSError:
            plain.close()
            raise

    def __enter__(self) -> SyslogConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, content: bytes) -> None:
        """Send a frame."""
        self.check()
        self._socket.sendall(content)

    def check(self) -> None:
        """Raise OSError if the collector has hung up."""
        poll = select.poll()  # takes any descriptor; select refuses those above 1023 with a ValueError
        poll.register(self._socket, select.POLLIN)
        if poll.poll(0) and self._read() == b"":
            raise ConnectionResetError("the collector hung up")

    def _read(self) -> bytes:
        """Read what a collector has no business to send; b"" where it hung up."""
        before = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            return self._socket.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return b"-"
        finally:
            self._socket.settimeout(before)

    def close(self) -> None:
        """Hang up; over TLS with the close_notify that RFC 5425 4.4 asks for, without waiting for the other one."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.settimeout(0)
                self._socket.unwrap()
        with contextlib.suppress(OSError):
            self._socket.close()
