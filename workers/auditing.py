"""Sending audit messages from their rows to the collector, in order: none is lost while it is away.

One thread of the scheduler does this. Syslog acknowledges nothing, so that a message counts as sent when the connection
was still whole a while later; what was sent within that while before the connection broke is sent again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from dataclasses import replace
from urllib.parse import urlsplit

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dicom_node import queries
from dicom_node.audit import AuditEvent, AuditSource, render_audit
from dicom_node.config import Settings
from dicom_node.logs import log_event
from dicom_node.queries import AuditEntry
from dicom_node.syslog import SyslogConnection, frame
from dicom_node.tls import client_context
from workers.resources import Resources

logger = logging.getLogger(__name__)

BATCH = 200
LOOK_S = 1.0
DOUBT_S = 30.0
"""So long a message that was sent may still have been lost with its connection."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class AuditForwarder:
    """Sends what is unsent, as long as it is asked to."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._connection: SyslogConnection | None = None
        self._doubtful: deque[tuple[float, int]] = deque()
        self._pause_s = FIRST_PAUSE_S

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        while not stop.is_set():
            pause = LOOK_S
            try:
                if self.forward() == BATCH:
                    continue
                self._pause_s = FIRST_PAUSE_S
            except (DBAPIError, PoolTimeoutError) as error:
                log_event(logger, "database unavailable", level=logging.WARNING, reason=type(error).__name__)
            except OSError as error:
                pause = self._give_up(error)
            stop.wait(pause)
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forward(self) -> int:
        """Send one batch and return how many that were. Raises OSError where the collector is away."""
        resources = self._resources
        with resources.sessions() as session:
            entries = queries.unsent_audit(session, resources.clock(), BATCH)
        if self._connection is not None:
            self._connection.check()
        if entries and self._connection is None:
            self._connection = connect(resources.settings)
        for entry in entries:
            assert self._connection is not None
            self._connection.send(encode(entry, resources.settings))
            self._doubtful.append((time.monotonic(), entry.audit_id))
        if entries:
            with resources.sessions.begin() as session:
                queries.mark_audit(session, [entry.audit_id for entry in entries], resources.clock())
        while self._doubtful and time.monotonic() - self._doubtful[0][0] > DOUBT_S:
            self._doubtful.popleft()
        return len(entries)

    def _give_up(self, error: OSError) -> float:
        """Close the connection, and have sent again what may be lost; return how long to wait."""
        self.close()
        if self._doubtful:
            with self._resources.sessions.begin() as session:
                queries.mark_audit(session, [audit_id for _, audit_id in self._doubtful], None)
            self._doubtful.clear()
        log_event(logger, "audit collector unavailable", level=logging.WARNING, reason=error)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return self._pause_s


def connect(settings: Settings) -> SyslogConnection:
    """Return a connection to the collector of the settings. Raises OSError."""
    url = urlsplit(settings.audit.syslog)
    tls = settings.audit.tls if url.scheme == "syslog+tls" else None
    assert url.hostname
    port = url.port or (6514 if tls else 601)
    return SyslogConnection(url.hostname, port, client_context(tls) if tls else None)


def encode(entry: AuditEntry, settings: Settings) -> bytes:
    """Return a message as it is sent."""
    node = settings.receiver.ae_title
    source = AuditSource(settings.audit.site, node, settings.receiver.host, entry.process)
    message = render_audit(_resolve(entry.event, settings), entry.at, source)
    return frame(message, entry.at, socket.gethostname(), f"knowmvg-{entry.process}", os.getpid())


def _resolve(event: AuditEvent, settings: Settings) -> AuditEvent:
    """Name a destination by its AE title and host."""
    for destination in settings.destinations:
        if event.kind == "results exported" and destination.name == event.peer:
            return replace(event, peer=destination.ae_title, peer_address=destination.host)
    return event
