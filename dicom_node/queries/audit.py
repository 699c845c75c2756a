"""Audit events as rows: noted in the transaction of what they tell, and marked when a collector was sent them.

Who sends them claims them first, so that of several senders one has each; a row that is claimed is closed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Text, bindparam, cast, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased, sessionmaker

from dicom_node.audit import AuditEvent, Kind
from dicom_node.clock import Clock
from dicom_node.logs import log_event
from dicom_node.queries.direct import KeyedQuestion, write
from dicom_node.queries.engine import DATABASE_ERRORS, explain
from dicom_node.queries.inserting import table_of
from dicom_node.queries.receiving import Arrival
from dicom_node.tables import AuditRow, ResultRow, StudyRow

logger = logging.getLogger(__name__)

ASSOCIATION_PAUSE = timedelta(minutes=1)
"""After so long without another instance the message on what an association brought is complete."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An event as it is kept: `process` is the role that noted it, as `receiver`."""

    audit_id: int
    at: datetime
    process: str
    event: AuditEvent
    sent_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as `knowmvg audit --json` prints it; instants as ISO 8601 in UTC."""
        instants = {"at": self.at.isoformat(), "sent_at": self.sent_at.isoformat() if self.sent_at else None}
        return {"id": self.audit_id, "process": self.process, **instants, **self.event.to_json()}


def note_audit(session: Session, event: AuditEvent, process: str, now: datetime) -> None:
    """Keep an event."""
    session.add(AuditRow(at=now, due_at=now, kind=event.kind, process=process, event=event.to_json()))


def note_process(sessions: sessionmaker[Session], clock: Clock, process: str, kind: Kind) -> None:
    """Keep that a process starts or stops; a database that is away then is no reason not to."""
    try:
        with sessions.begin() as session:
            note_audit(session, AuditEvent(kind), process[:32], clock())
    except DATABASE_ERRORS as error:
        log_event(logger, "audit event not kept", level=logging.WARNING, kind=kind, reason=explain(error))


def note_received(session: Session, arrivals: Iterable[Arrival]) -> None:
    """Keep what came by which association: one event for each study that it brings, which counts the instances.

    The lock waits for a claim under way: a row that was claimed is no more this association's, and another is begun.
    """
    brought: dict[str, list[Arrival]] = {}
    for one in arrivals:
        study = hashlib.sha256(one.instance.study_instance_uid.encode()).hexdigest()[:16]
        brought.setdefault(f"{one.association[:40]} {study}", []).append(one)
    connection = session.connection()
    known = _RECEIVED.ask(connection, sorted(brought))
    if counted := [_counted(row, brought.pop(str(row.association))) for row in known]:
        write(connection, _COUNT, counted)
    if brought:
        write(connection, _INSERT, [_first_event(key, of_key) for key, of_key in brought.items()])


_TABLE = table_of(AuditRow)
_RECEIVED = KeyedQuestion(
    select(_TABLE.c.id, _TABLE.c.association, _TABLE.c.event).order_by(_TABLE.c.id).with_for_update(),
    _TABLE.c.association,
)
_COUNT = (
    update(_TABLE)
    .where(_TABLE.c.id == bindparam("counted"))
    .values(event=bindparam("event"), due_at=bindparam("due_at"))
)
_INSERT = insert(_TABLE)


def _counted(row: Any, arrivals: Sequence[Arrival]) -> dict[str, Any]:
    counts = Counter(row.event["sop_classes"]) + Counter(one.instance.sop_class_uid for one in arrivals)
    event = row.event | {"sop_classes": dict(counts)}
    return {"counted": row.id, "event": event, "due_at": arrivals[-1].at + ASSOCIATION_PAUSE}


def _first_event(key: str, arrivals: Sequence[Arrival]) -> dict[str, Any]:
    first, at = arrivals[0], arrivals[-1].at
    event = AuditEvent(
        "instances received", actor=first.calling_ae_title, actor_address=first.address,
        study_instance_uid=first.instance.study_instance_uid, patient_id=first.instance.patient_id,
        sop_classes=dict(Counter(one.instance.sop_class_uid for one in arrivals)),
    )  # fmt: skip
    return {
        "at": first.at, "due_at": at + ASSOCIATION_PAUSE, "kind": event.kind, "process": "receiver",
        "association": key, "event": event.to_json(),
    }  # fmt: skip


def note_export(
    session: Session, study_instance_uid: str, destination: str, sop_instance_uids: Sequence[str], now: datetime
) -> None:
    """Keep that a destination confirmed that it has these results."""
    classes = session.scalars(select(ResultRow.sop_class_uid).where(ResultRow.sop_instance_uid.in_(sop_instance_uids)))
    event = about_study(session, "results exported", study_instance_uid)
    note_audit(session, replace(event, peer=destination, sop_classes=dict(Counter(classes))), "worker", now)


def about_study(session: Session, kind: Kind, study_instance_uid: str) -> AuditEvent:
    """Return an event of `kind` about a study of which the node knows the patient."""
    patient = session.scalar(select(StudyRow.patient_id).where(StudyRow.study_instance_uid == study_instance_uid))
    return AuditEvent(kind, study_instance_uid=study_instance_uid, patient_id=patient or "")


def unsent_audit(session: Session, now: datetime, limit: int) -> tuple[AuditEntry, ...]:
    """Return what no collector was sent yet and nobody is sending, the oldest first; locked."""
    unsent = select(AuditRow).where(AuditRow.sent_at.is_(None), AuditRow.due_at <= now)
    statement = unsent.order_by(AuditRow.id).limit(limit).with_for_update(skip_locked=True)
    return tuple(map(_entry, session.scalars(statement)))


def claim_audit(session: Session, now: datetime, until: datetime, limit: int) -> tuple[AuditEntry, ...]:
    """Claim what is to be sent, the oldest first: nobody else sends it before `until`, and nothing is added to it."""
    entries = unsent_audit(session, now, limit)
    if entries:
        claimed = update(AuditRow).where(AuditRow.id.in_([entry.audit_id for entry in entries]))
        session.execute(claimed.values(due_at=until, association=None))
    return entries


def mark_audit(session: Session, audit_ids: Sequence[int], until: datetime, sent_at: datetime) -> None:
    """Note when events that were claimed until then were sent; one whose claim ran out is somebody else's."""
    claimed = (AuditRow.id.in_(audit_ids), AuditRow.sent_at.is_(None), AuditRow.due_at == until)
    session.execute(update(AuditRow).where(*claimed).values(sent_at=sent_at))


def release_audit(session: Session, audit_ids: Sequence[int], now: datetime) -> None:
    """Have events sent (again) at once."""
    session.execute(update(AuditRow).where(AuditRow.id.in_(audit_ids)).values(sent_at=None, due_at=now))


def list_audit(
    session: Session, limit: int, kind: str | None = None, since: datetime | None = None
) -> tuple[AuditEntry, ...]:
    """Return events, the latest first."""
    statement = select(AuditRow).order_by(AuditRow.at.desc(), AuditRow.id.desc()).limit(limit)
    if kind is not None:
        statement = statement.where(AuditRow.kind == kind)
    if since is not None:
        statement = statement.where(AuditRow.at >= since)
    return tuple(map(_entry, session.scalars(statement)))


@dataclass(frozen=True, slots=True)
class AuditSearch:
    """Which events are looked for; empty or None: any.

    `who`: the whole of an actor's or a peer's name, an address, a Patient ID, a Study Instance UID or a reason,
    whatever its case. `before`: the entry (its time and number) that the page of those before it is asked for.
    """

    kind: str = ""
    who: str = ""
    since: datetime | None = None
    until: datetime | None = None
    before: tuple[datetime, int] | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Events, the latest first. `older` is the entry that the next page is of those before; `broken_off`: so far was
    looked, older ones may fit as well."""

    entries: tuple[AuditEntry, ...]
    older: tuple[datetime, int] | None
    broken_off: bool = False


AUDIT_LOOKED_AT = 5000
"""Events that are looked at for one page where `who` is asked for, to which no index leads."""


def search_audit(session: Session, wanted: AuditSearch) -> AuditPage:
    """Return the page of events that fit."""
    ordered = select(AuditRow).order_by(AuditRow.at.desc(), AuditRow.id.desc())
    if wanted.kind:
        ordered = ordered.where(AuditRow.kind == wanted.kind)
    if wanted.since is not None:
        ordered = ordered.where(AuditRow.at >= wanted.since)
    if wanted.until is not None:
        ordered = ordered.where(AuditRow.at < wanted.until)
    if wanted.before is not None:
        at, number = wanted.before
        ordered = ordered.where(AuditRow.at <= at, or_(AuditRow.at < at, AuditRow.id < number))
    if not wanted.who:
        rows = list(session.scalars(ordered.limit(wanted.limit + 1)))
        entries = tuple(map(_entry, rows[: wanted.limit]))
        return AuditPage(entries, _place(entries[-1]) if len(rows) > wanted.limit else None)
    return _look_through(session, wanted, ordered)


def _look_through(session: Session, wanted: AuditSearch, ordered: Select[Any]) -> AuditPage:
    looked = aliased(AuditRow, ordered.limit(AUDIT_LOOKED_AT).subquery())
    text = json.dumps(wanted.who.lower())  # as the column holds it, with its quotation marks: a whole value
    fits = func.lower(cast(looked.event, Text)).contains(text, autoescape=True)
    found = select(looked).where(fits).order_by(looked.at.desc(), looked.id.desc()).limit(wanted.limit + 1)
    entries = tuple(map(_entry, session.scalars(found)))
    if len(entries) > wanted.limit:
        return AuditPage(entries[: wanted.limit], _place(entries[wanted.limit - 1]))
    last = session.execute(
        ordered.with_only_columns(AuditRow.at, AuditRow.id).offset(AUDIT_LOOKED_AT - 1).limit(1)
    ).one_or_none()
    return AuditPage(entries, (last.at, last.id) if last else None, last is not None)


def _place(entry: AuditEntry) -> tuple[datetime, int]:
    return entry.at, entry.audit_id


def count_unsent_audit(session: Session) -> int:
    """Return how many events wait for the collector."""
    return session.scalar(select(func.count()).select_from(AuditRow).where(AuditRow.sent_at.is_(None))) or 0


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(row.id, row.at, row.process, AuditEvent.from_json(row.event), row.sent_at)
