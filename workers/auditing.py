"""Sending audit messages from their rows to the collector, in order: none is lost while it is away.

One thread of each scheduler does this; of several, each claims what it sends. Syslog acknowledges nothing, so that a
message counts as sent when the connection was still whole a while later; what was sent within that while before the
connection broke is sent again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit

from dicom_node import queries
from dicom_node.audit import AuditEvent, AuditSource, render_audit
from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from dicom_node.queries import DATABASE_ERRORS, AuditEntry, claim_audit, explain, release_audit
from dicom_node.syslog import SyslogConnection, frame
from dicom_node.tls import client_context
from workers.resources import Resources

logger = logging.getLogger(__name__)

BATCH = 200
LEASE = timedelta(seconds=60)
"""So long what was claimed is nobody else's to send."""
SEND_S = 30.0
"""So long a claim is sent from at most: that and the last send end well before the lease."""
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
        """What was sent lately, and when."""
        self._again: list[int] = []
        """What is to be sent again, as soon as the database can be told."""
        self._pause_s = FIRST_PAUSE_S

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set, whatever fails in the meantime."""
        while not stop.is_set():
            stop.wait(self._turn())
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _turn(self) -> float:
        """Send one batch; return how long to wait before the next one."""
        try:
            pause = 0.0 if self.forward() == BATCH else LOOK_S
        except DATABASE_ERRORS as error:
            log_event(logger, "database unavailable", level=logging.WARNING, reason=explain(error))
            return LOOK_S
        except (OSError, NodeError) as error:  # a NodeError names a file of `audit.tls` that cannot be used
            log_event(logger, "audit collector unavailable", level=logging.WARNING, reason=error)
        except Exception:
            logger.exception("audit messages not sent")
        else:
            self._pause_s = FIRST_PAUSE_S
            return pause
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return self._pause_s

    def forward(self) -> int:
        """Send one batch and return how many that were. Raises OSError or NodeError where the collector is away."""
        sessions, clock = self._resources.sessions, self._resources.clock
        self._release()
        until = (now := clock()) + LEASE
        with sessions.begin() as session:
            entries = claim_audit(session, now, until, BATCH)
        try:
            sent = self._send(entries)
        except Exception:
            self._give_up(entries)
            raise
        if sent:
            with sessions.begin() as session:
                queries.mark_audit(session, sent, until, clock())
        while self._doubtful and time.monotonic() - self._doubtful[0][0] > DOUBT_S:
            self._doubtful.popleft()
        return len(sent)

    def _send(self, entries: Sequence[AuditEntry]) -> list[int]:
        """Send what there is time for before the claim runs out, and return the ids; the rest is to be sent again."""
        deadline = time.monotonic() + SEND_S
        frames = list(self._encode(entries))
        if self._connection is not None:
            self._connection.check()
        elif frames:
            self._connection = connect(self._resources.settings)
        sent: list[int] = []
        for audit_id, content in frames:
            assert self._connection is not None
            if time.monotonic() > deadline:
                self._again.extend(other for other, _ in frames[len(sent) :])
                break
            self._doubtful.append((time.monotonic(), audit_id))
            self._connection.send(content)
            sent.append(audit_id)
        return sent

    def _encode(self, entries: Sequence[AuditEntry]) -> Iterator[tuple[int, bytes]]:
        """Yield each entry as it is sent; one that cannot be encoded keeps no other back, and is tried again later."""
        for entry in entries:
            try:
                yield entry.audit_id, encode(entry, self._resources.settings)
            except Exception:
                logger.exception("audit message %d cannot be encoded", entry.audit_id)

    def _give_up(self, entries: Sequence[AuditEntry]) -> None:
        """Close the connection, and have sent again what may be lost and what was not sent."""
        self.close()
        self._again.extend(audit_id for _, audit_id in self._doubtful)
        self._again.extend(entry.audit_id for entry in entries)
        self._doubtful.clear()
        self._release()

    def _release(self) -> None:
        """Have sent again what is to be; what the database was not told stays for the next time."""
        while self._again:
            some = self._again[:BATCH]
            with self._resources.sessions.begin() as session:
                release_audit(session, some, self._resources.clock())
            del self._again[: len(some)]


def connect(settings: Settings) -> SyslogConnection:
    """Return a connection to the collector of the settings. Raises OSError, or SettingsError for a file of its TLS."""
    url, tls = urlsplit(settings.audit.syslog), settings.audit.tls
    assert url.hostname
    if tls is None:
        return SyslogConnection(url.hostname, url.port or 601, None)
    return SyslogConnection(url.hostname, url.port or 6514, client_context(tls), server_name=tls.server_name)


def encode(entry: AuditEntry, settings: Settings) -> bytes:
    """Return a message as it is sent."""
    node = settings.receiver.ae_title
    source = AuditSource(settings.audit.site, node, _reachable(settings.receiver.host), entry.process)
    message = render_audit(_resolve(entry.event, settings), entry.at, source)
    return frame(message, entry.at, socket.gethostname(), f"knowmvg-{entry.process}", os.getpid())


def _reachable(host: str) -> str:
    """Return the address that the receiver listens at, or the name of this host where that is every address."""
    try:
        everywhere = not host or ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return socket.gethostname() if everywhere else host


def _resolve(event: AuditEvent, settings: Settings) -> AuditEvent:
    """Name a destination by its AE title and host."""
    for destination in settings.destinations:
        if event.kind == "results exported" and destination.name == event.peer:
            return replace(event, peer=destination.ae_title, peer_address=destination.host)
    return event
