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
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.audit import AuditEvent
from dicom_node.clock import Clock
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import Settings
from dicom_node.filing import Filing
from dicom_node.logs import log_event
from dicom_node.peers import Admission, Caller, Refusal, admit
from dicom_node.pressure import Pressure, Reading
from dicom_node.queries import DATABASE_ERRORS, explain, note_audit, probe
from dicom_node.recorder import Recorder
from dicom_node.storage import Storage
from dicom_node.transport import Visit

logger = logging.getLogger(__name__)

VERIFICATION = "1.2.840.10008.1.1"

CALLING_TITLE_REJECTED = (0x01, 0x01, 0x03)
"""Rejected permanently, by the user, calling AE title not recognized (PS3.8 9.3.4)."""
CONGESTION = (0x02, 0x03, 0x01)
"""Rejected for now, by the presentation service, temporary congestion: no space, or no database."""
LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""Rejected for now, by the presentation service, local limit exceeded: too many associations."""

CAUSES = {CALLING_TITLE_REJECTED: "unknown_caller", CONGESTION: "congestion", LIMIT_EXCEEDED: "limit"}
"""How refusals are counted; pynetdicom itself rejects only another called AE title."""

SAME_REFUSAL_S = 60.0
"""A refusal of the same caller for the same reason is logged and audited once in so long: a scan must not fill them."""

REFUSALS_OF_ADDRESS = 20
"""So many different ones of an address are logged and audited in that time, then one line that says there are more."""

REFUSALS = 1000
"""So many of all addresses together, likewise; no more than that are remembered."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Who was turned away, and why. `kind` stands for a reason that changes, as the bytes that are free do."""

    address: str = ""
    calling: str = ""
    called: str = ""
    reason: str = ""
    kind: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What is the same of two refusals that are told once."""
        return self.address, self.calling, self.called, self.kind or self.reason


@dataclass(frozen=True)
class Door:
    """What the handlers are given."""

    settings: Settings
    sessions: sessionmaker[Session]
    storage: Storage
    clock: Clock
    pressure: Pressure
    filing: Filing
    refusals: dict[tuple[str, ...], float] = field(default_factory=dict)
    """When refusals were told, by `Rejected.key`."""
    unkept: deque[tuple[datetime, AuditEvent]] = field(default_factory=lambda: deque(maxlen=10_000))
    lock: threading.Lock = field(default_factory=threading.Lock)
    recorder: Recorder = field(default_factory=Recorder)


def handle_requested(event: Event, door: Door) -> None:
    """Reject an association of somebody who is no peer, or for now, before anything is negotiated."""
    request: Any = event.assoc.requestor.primitive
    event.assoc.requestor.ae_title = request.calling_ae_title
    admission = admit(door.settings, caller_of(event.assoc))
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
    """Return which limit this association would exceed, or nothing: then it counts from now on."""
    server: Any = event.assoc._server
    limit, peer = door.settings.receiver.max_associations, admission.peer
    with door.lock:  # of two that ask at once, one is the first
        others = server.admitted()
        if len(others) >= limit:
            return f"receiver.max_associations is {limit}"
        if peer is not None and peer.max_associations is not None:
            own = sum(str(one.requestor.ae_title).strip() == peer.ae_title.strip() for one in others)
            if own >= peer.max_associations:
                return f"max_associations of this peer is {peer.max_associations}"
        visit_of(event.assoc).admitted = True
    door.recorder.count("knowmvg_associations_accepted", calling_ae_title(event.assoc))
    return ""


def handle_rejected(event: Event, door: Door) -> None:
    """Log and audit who was turned away, and why."""
    requestor: Any = event.assoc.requestor
    called = str(requestor.primitive.called_ae_title).strip()
    reason = visit_of(event.assoc).refusal or f"it calls {called!r}, not receiver.ae_title"
    calling = str(requestor.primitive.calling_ae_title).strip()
    answer: Any = event.assoc.acceptor.primitive
    said = (answer.result, answer.result_source, answer.diagnostic)
    congested = said == CONGESTION
    door.recorder.count("knowmvg_associations_refused", CAUSES.get(said, "unknown_called"))
    _note(door, Rejected(str(requestor.address), calling, called, reason, "congestion" if congested else ""))


def note_refusal(door: Door, calling: str, called: str, address: str, reason: str) -> None:
    """Count, log and audit a hand-shake that failed: the same one, and many of one address, only now and then."""
    door.recorder.count("knowmvg_associations_refused", "tls")
    _note(door, Rejected(address, calling, called, reason))


def _note(door: Door, rejected: Rejected) -> None:
    news = _news_of(door, rejected)
    if news is None:
        return
    log_event(
        logger, "association rejected", level=logging.WARNING, calling_ae_title=news.calling,
        called_ae_title=news.called, address=news.address, reason=news.reason,
    )  # fmt: skip
    event = AuditEvent(
        "association refused", success=False, actor=news.calling, actor_address=news.address, reason=news.reason
    )
    _audit(door, event)


def _news_of(door: Door, rejected: Rejected) -> Rejected | None:
    """Return what is to be told of a refusal: all of it, or that there are too many to tell; nothing if that was."""
    now = time.monotonic()
    with door.lock:
        told = door.refusals
        for key in [key for key, at in told.items() if now - at >= SAME_REFUSAL_S]:
            del told[key]
        if rejected.key in told:
            return None
        if len(told) >= REFUSALS:
            rejected = Rejected(reason="more are refused than are listed")
        elif sum(address == rejected.address for address, *_ in told) >= REFUSALS_OF_ADDRESS:
            rejected = Rejected(rejected.address, reason="more of this address are refused than are listed")
        if rejected.key in told:
            return None
        told[rejected.key] = now
    return rejected


def _audit(door: Door, event: AuditEvent) -> None:
    """Keep an audit event that belongs to no other transaction; at a later look, while the database is away.

    Nobody is to wait for it here.
    """
    with door.lock:
        door.unkept.append((door.clock(), event))
    if not door.pressure.database_away:
        keep_audit(door)


def keep_audit(door: Door) -> None:
    """Keep what waits to be kept; what cannot be kept now goes on waiting.

    Several threads may do this at once: each has taken out what it writes.
    """
    with door.lock:
        waiting = list(door.unkept)
        door.unkept.clear()
    kept = False
    try:
        with door.sessions.begin() as session:
            for at, event in waiting:
                note_audit(session, event, "receiver", at)
        kept = True
    except DATABASE_ERRORS as error:
        log_event(logger, "audit events not kept yet", level=logging.WARNING, count=len(waiting), reason=explain(error))
    finally:
        if not kept:
            with door.lock:
                door.unkept.extendleft(reversed(waiting))


def measure(storage: Storage, sessions: sessionmaker[Session]) -> Reading:
    """Look at the free space and the database."""
    fault = _fault_of_database(sessions)
    try:
        free = storage.free_bytes()
        unusable = storage.find_fault()
    except OSError as error:
        return Reading(0, f"the storage cannot be used ({error.strerror or type(error).__name__})", bool(fault))
    return Reading(free, unusable or fault, bool(fault))


def _fault_of_database(sessions: sessionmaker[Session]) -> str:
    try:
        with sessions.begin() as session:
            return probe(session)
    except DATABASE_ERRORS as error:
        return f"the database cannot be used ({type(error).__name__})"


def tell_pressure(door: Door, closed: str) -> None:
    """Raise the alarm, once, and end it; the look that follows keeps the audit event."""
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


def calling_ae_title(association: Association) -> str:
    """Return the calling AE title of an association, without padding."""
    return str(association.requestor.ae_title).strip()


def caller_of(association: Association) -> Caller:
    """Return who asked for an association."""
    address = str(association.requestor.address)
    return Caller(calling_ae_title(association), address, visit_of(association).certificate)
