"""How the node fares, for the first page of the console: what came and went by hour, who was in touch last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, String, func, select, type_coerce
from sqlalchemy.orm import Session

from dicom_node.audit import AuditEvent, Kind
from dicom_node.priority import PRIORITIES
from dicom_node.study import State
from dicom_node.tables import AuditRow, InstanceRow, JobRow

WAITING: tuple[State, ...] = ("RECEIVING", "COMPLETE", "GROUNDED", "WRITTEN")

CONTACTS = 400
"""Associations that are looked at for the last contact of each peer."""


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened within one hour, which begins at `at`: instances received, jobs delivered, jobs failed."""

    at: datetime
    received: int
    delivered: int
    failed: int


def count_by_hour(session: Session, now: datetime, hours: int = 24) -> tuple[Hour, ...]:
    """Return the last hours, the present one last. A job counts where it ended, while it stays as it is; instances
    whose bytes the retention rule has removed already are not counted."""
    last = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    beginnings = [last - timedelta(hours=back) for back in range(hours - 1, -1, -1)]
    since = beginnings[0]
    received = _by_hour(session, InstanceRow.received_at, InstanceRow.removed_at.is_(None), since)
    delivered, failed = (
        _by_hour(session, JobRow.updated_at, JobRow.state == state, since) for state in ("DELIVERED", "FAILED")
    )
    return tuple(
        Hour(at, received.get(key, 0), delivered.get(key, 0), failed.get(key, 0))
        for at in beginnings
        for key in [f"{at:%Y-%m-%d %H}"]
    )


def _by_hour(session: Session, column: Any, condition: ColumnElement[bool], since: datetime) -> dict[str, int]:
    hour: ColumnElement[str] = func.substr(type_coerce(column, String), 1, 13)
    if session.get_bind().dialect.name == "postgresql":
        hour = func.to_char(func.timezone("UTC", column), "YYYY-MM-DD HH24")
    statement = select(hour, func.count()).where(condition, column >= since).group_by(hour)
    return {key: count for key, count in session.execute(statement)}


def longest_waiting(session: Session) -> dict[str, datetime]:
    """Return since when the job is in its state that is longest, for each state that is no end and has any."""
    found: dict[str, datetime] = {}
    for state in WAITING:
        oldest = [
            session.scalar(select(func.min(JobRow.step_since)).where(JobRow.state == state, JobRow.priority == one))
            for one in PRIORITIES
        ]
        if known := [instant for instant in oldest if instant is not None]:
            found[state] = min(known)
    return found


@dataclass(frozen=True, slots=True)
class PeerContact:
    """When and from where a sender last brought instances, and when and why it was last refused."""

    received_at: datetime | None = None
    address: str = ""
    refused_at: datetime | None = None
    reason: str = ""


def peer_contacts(session: Session) -> dict[str, PeerContact]:
    """Return the last contacts by calling AE title, as far as the latest associations tell."""
    found: dict[str, PeerContact] = {}
    for at, event in _latest(session, "instances received"):
        found.setdefault(event.actor, PeerContact(at, event.actor_address))
    refused: dict[str, tuple[datetime, str]] = {}
    for at, event in _latest(session, "association refused"):
        refused.setdefault(event.actor, (at, event.reason))
    for title, (at, reason) in refused.items():
        known = found.get(title, PeerContact())
        found[title] = PeerContact(known.received_at, known.address, at, reason)
    return found


def _latest(session: Session, kind: Kind) -> Iterable[tuple[datetime, AuditEvent]]:
    statement = (
        select(AuditRow.at, AuditRow.event)
        .where(AuditRow.kind == kind)
        .order_by(AuditRow.at.desc(), AuditRow.id.desc())
        .limit(CONTACTS)
    )
    for at, event in session.execute(statement):
        yield at, AuditEvent.from_json(event)
