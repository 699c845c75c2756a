"""What administrators are told: noted in the transaction of what it tells, gathered into messages, and these claimed by
who sends them.

Nothing here holds patient data: a notification is a kind, a destination's name and a job's number. Of each kind and
subject one message goes out in an interval; what comes meanwhile is gathered into the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from dicom_node.watch_tables import MessageRow, NotificationRow

Kind = Literal[
    "dead letter", "quarantine", "disk low", "disk recovered", "destination down", "destination recovered"
]  # fmt: skip

DISK: tuple[Kind, Kind] = ("disk low", "disk recovered")
STORAGE = "storage"
JOBS = "jobs"

LISTED = 20
"""Jobs that a message names; of more it says how many."""

PLAN_LOCK = 0x4B4E4E54
"""PostgreSQL advisory lock: of several schedulers one gathers at a time."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was claimed; `claimed_until` is its `due_at` now, by which it is still ours."""

    message_id: int
    channel: str
    at: datetime
    attempts: int
    claimed_until: datetime
    content: dict[str, Any]


def notify(session: Session, kind: Kind, subject: str, now: datetime, job_id: int | None = None) -> None:
    """Note what administrators are to be told of."""
    session.add(NotificationRow(at=now, kind=kind, subject=subject, job_id=job_id))


def note_disk(session: Session, is_low: bool, now: datetime) -> bool:
    """Note that space is short, or is no longer; return whether that is news."""
    last = session.scalar(
        select(NotificationRow.kind)
        .where(NotificationRow.kind.in_(DISK), NotificationRow.subject == STORAGE)
        .order_by(NotificationRow.id.desc())
        .limit(1)
    )
    if is_low == (last == DISK[0]):
        return False
    notify(session, DISK[0] if is_low else DISK[1], STORAGE, now)
    return True


def plan_messages(session: Session, channels: Sequence[str], interval: timedelta, now: datetime) -> int:
    """Gather what is untold into messages, one for each channel, kind and subject; return how many were made.

    What had a message of its kind and subject less than `interval` ago waits. Without channels nobody is told.
    """
    if session.get_bind().dialect.name == "postgresql" and not session.scalar(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": PLAN_LOCK}
    ):
        return 0
    untold = select(NotificationRow.kind, NotificationRow.subject).where(NotificationRow.told_at.is_(None)).distinct()
    made = 0
    for kind, subject in session.execute(untold).all():
        last = _told_last(session, kind, subject)
        if channels and last is not None and now - last < interval:
            continue
        content = _gather(session, kind, subject, now)
        for channel in channels:
            session.add(MessageRow(channel=channel, state="PENDING", at=now, due_at=now, attempts=0, content=content))
            made += 1
    return made


def _told_last(session: Session, kind: str, subject: str) -> datetime | None:
    """Return when the last message of this kind and subject was made: all that was untold went into it."""
    return session.scalar(
        select(NotificationRow.told_at)
        .where(
            NotificationRow.kind == kind, NotificationRow.subject == subject, NotificationRow.told_at.is_not(None)
        )
        .order_by(NotificationRow.id.desc())
        .limit(1)
    )  # fmt: skip


def _gather(session: Session, kind: str, subject: str, now: datetime) -> dict[str, Any]:
    rows = session.execute(
        update(NotificationRow)
        .where(NotificationRow.kind == kind, NotificationRow.subject == subject, NotificationRow.told_at.is_(None))
        .values(told_at=now)
        .returning(NotificationRow.at, NotificationRow.job_id)
    ).all()
    jobs = sorted({job_id for _, job_id in rows if job_id is not None})
    return {
        "kind": kind,
        "subject": subject,
        "count": len(rows),
        "jobs": jobs[:LISTED],
        "first_at": min(at for at, _ in rows).isoformat(timespec="seconds"),
        "last_at": max(at for at, _ in rows).isoformat(timespec="seconds"),
    }


def claim_messages(session: Session, channel: str, now: datetime, until: datetime, limit: int) -> tuple[Message, ...]:
    """Claim messages of a channel that are due, the oldest first: nobody else sends them before `until`."""
    rows = session.scalars(
        select(MessageRow)
        .where(MessageRow.state == "PENDING", MessageRow.channel == channel, MessageRow.due_at <= now)
        .order_by(MessageRow.due_at, MessageRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        row.due_at, row.attempts = until, row.attempts + 1
    return tuple(Message(row.id, row.channel, row.at, row.attempts, until, dict(row.content)) for row in rows)


def end_message(
    session: Session, message: Message, state: Literal["PENDING", "SENT", "DEAD"], due_at: datetime, failure: str | None
) -> bool:
    """Keep what became of a claimed message; False if it is no longer ours."""
    statement = (
        update(MessageRow)
        .where(
            MessageRow.id == message.message_id, MessageRow.state == "PENDING",
            MessageRow.due_at == message.claimed_until,
        )
        .values(state=state, due_at=due_at, failure=failure)
        .returning(MessageRow.id)
    )  # fmt: skip
    return session.scalar(statement) is not None


def oldest_message(session: Session) -> datetime | None:
    """Return since when the message waits that waits longest to be sent; None if none does."""
    return session.scalar(select(func.min(MessageRow.at)).where(MessageRow.state == "PENDING"))


def forget_notifications(session: Session, before: datetime) -> None:
    """Remove what was told, and messages that ended, before then."""
    session.execute(delete(NotificationRow).where(NotificationRow.told_at < before, NotificationRow.kind.not_in(DISK)))
    session.execute(delete(MessageRow).where(MessageRow.state != "PENDING", MessageRow.at < before))
