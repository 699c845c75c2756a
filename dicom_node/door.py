"""The receiver's door: who is let in and when, what is taken in now, and that whoever is turned away is told of.

Deny by default; for now, where something is short (back-pressure); and every refusal is logged and audited with its
reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.audit import AuditEvent
from dicom_node.clock import Clock
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import Settings
from dicom_node.logs import log_event
from dicom_node.peers import Admission, Caller, Refusal, admit
from dicom_node.pressure import Pressure, Reading
from dicom_node.queries import note_audit, probe
from dicom_node.storage import FileStorage
from dicom_node.transport import Visit

logger = logging.getLogger(__name__)

VERIFICATION = "1.2.840.10008.1.1"

CALLING_TITLE_REJECTED = (0x01, 0x01, 0x03)
"""Rejected permanently, by the user, calling AE title not recognized (PS3.8 9.3.4)."""
CONGESTION = (0x02, 0x03, 0x01)
"""Rejected for now, by the presentation service, temporary congestion: no space, or no database."""
LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""Rejected for now, by the presentation service, local limit exceeded: too many associations."""

SAME_REFUSAL_S = 60.0
"""A refusal of the same caller for the same reason is logged and audited once in so long: a scan must not fill them."""

REMEMBERED_REFUSALS = 1000


@dataclass(frozen=True)
class Door:
    """What the handlers are given."""

    settings: Settings
    sessions: sessionmaker[Session]
    storage: FileStorage
    clock: Clock
    pressure: Pressure
    refusals: dict[tuple[str, ...], float] = field(default_factory=dict)
    unkept: deque[tuple[datetime, AuditEvent]] = field(default_factory=lambda: deque(maxlen=10_000))
    lock: threading.Lock = field(default_factory=threading.Lock)


def handle_requested(event: Event, door: Door) -> None:
    """Reject an association of somebody who is no peer, or for now, before anything is negotiated."""
    request: Any = event.assoc.requestor.primitive
    event.assoc.requestor.ae_title = request.calling_ae_title
    admission = admit(door.settings, caller_of(event))
    if isinstance(admission, Refusal):
        _reject(event, CALLING_TITLE_REJECTED, admission.reason)
    elif closed := door.pressure.closed:
        _reject(event, CONGESTION, closed)
    elif limit := _limit_reached(event, door, admission):
        _reject(event, LIMIT_EXCEEDED, limit)
    elif admission.role == "reporter":
        contexts = event.assoc.acceptor.supported_contexts
        event.assoc.acceptor.supported_contexts = [
            context for context in contexts if context.abstract_syntax in (VERIFICATION, PUSH_MODEL)
        ]


def _reject(event: Event, answer: tuple[int, int, int], reason: str) -> None:
    visit_of(event.assoc).refusal = reason
    event.assoc.acse.send_reject(*answer)
    evt.trigger(event.assoc, evt.EVT_REJECTED, {})
    event.assoc.kill()


def _limit_reached(event: Event, door: Door, admission: Admission) -> str:
    """Return which limit one association more would exceed, or nothing."""
    server: Any = event.assoc._server
    others = [one for one in server.associations() if one.is_established and one is not event.assoc]
    limit = door.settings.receiver.max_associations
    if len(others) >= limit:
        return f"receiver.max_associations is {limit}"
    peer = admission.peer
    if peer is None or peer.max_associations is None:
        return ""
    own = sum(str(one.requestor.ae_title).strip() == peer.ae_title.strip() for one in others)
    return f"max_associations of this peer is {peer.max_associations}" if own >= peer.max_associations else ""


def handle_rejected(event: Event, door: Door) -> None:
    """Log and audit who was turned away, and why."""
    requestor: Any = event.assoc.requestor
    called = str(requestor.primitive.called_ae_title).strip()
    reason = visit_of(event.assoc).refusal or f"it calls {called!r}, not receiver.ae_title"
    calling = str(requestor.primitive.calling_ae_title).strip()
    note_refusal(door, calling, called, str(requestor.address), reason)


def note_refusal(door: Door, calling: str, called: str, address: str, reason: str) -> None:
    """Log and audit a refusal, the same one only now and then."""
    if not _is_news(door, (calling, called, address, reason)):
        return
    log_event(
        logger, "association rejected", level=logging.WARNING, calling_ae_title=calling, called_ae_title=called,
        address=address, reason=reason,
    )  # fmt: skip
    event = AuditEvent("association refused", success=False, actor=calling, actor_address=address, reason=reason)
    _audit(door, event)


def _is_news(door: Door, what: tuple[str, ...]) -> bool:
    now = time.monotonic()
    with door.lock:
        if now - door.refusals.get(what, -SAME_REFUSAL_S) < SAME_REFUSAL_S:
            return False
        if len(door.refusals) >= REMEMBERED_REFUSALS:
            door.refusals.clear()
        door.refusals[what] = now
    return True


def _audit(door: Door, event: AuditEvent) -> None:
    """Keep an audit event that belongs to no other transaction; at the next look, while the door is closed.

    Then the database may be what is away, and nobody is to wait for it here.
    """
    with door.lock:
        door.unkept.append((door.clock(), event))
    if not door.pressure.closed:
        keep_audit(door)


def keep_audit(door: Door) -> None:
    """Keep what waits to be kept; what cannot be kept now goes on waiting."""
    with door.lock:
        waiting = list(door.unkept)
    try:
        with door.sessions.begin() as session:
            for at, event in waiting:
                note_audit(session, event, "receiver", at)
    except (DBAPIError, PoolTimeoutError) as error:
        log_event(logger, "audit events not kept yet", level=logging.WARNING, reason=type(error).__name__)
        return
    with door.lock:
        for entry in waiting:
            if entry in door.unkept:
                door.unkept.remove(entry)


def measure(storage: FileStorage, sessions: sessionmaker[Session]) -> Reading:
    """Look at the free space and the database."""
    try:
        free = storage.free_bytes()
    except OSError as error:
        return Reading(0, f"the storage cannot be used ({error.strerror or type(error).__name__})")
    try:
        with sessions.begin() as session:
            fault = probe(session)
    except (DBAPIError, PoolTimeoutError) as error:
        fault = f"the database cannot be used ({type(error).__name__})"
    return Reading(free, fault)


def tell_pressure(door: Door, closed: str) -> None:
    """Raise the alarm, once, and end it."""
    if closed:
        log_event(logger, "receiver refuses for now", level=logging.ERROR, reason=closed)
    else:
        log_event(logger, "receiver takes in again")
    event = AuditEvent("node alert", success=not closed, reason=closed or "receiver takes in again")
    with door.lock:
        door.unkept.append((door.clock(), event))


def visit_of(association: Association) -> Visit:
    """Return what is known of an association of the receiver."""
    server: Any = association._server
    visit: Visit = server.visit_of(association)
    return visit


def calling_ae_title(event: Event) -> str:
    """Return the calling AE title of an association, without padding."""
    return str(event.assoc.requestor.ae_title).strip()


def caller_of(event: Event) -> Caller:
    """Return who asked for an association."""
    return Caller(calling_ae_title(event), str(event.assoc.requestor.address), visit_of(event.assoc).certificate)
