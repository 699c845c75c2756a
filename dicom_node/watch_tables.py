"""The job database, too: the rows that tell how the node itself fares, and what administrators are told of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from dicom_node.tables import Base, partial_index


class ProcessRow(Base):
    """A process of the node: that it lives, and what it has counted. The one with the token `ended` keeps what those
    have counted that are no more."""

    __tablename__ = "processes"

    token: Mapped[str] = mapped_column(String(36), primary_key=True)
    role: Mapped[str] = mapped_column(String(32))
    """receiver, scheduler, console, or worker and its queues."""
    host: Mapped[str] = mapped_column(String(64))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    """It reports every few seconds while it lives."""
    stopped_at: Mapped[datetime | None]
    """When it ended as it was told to."""
    samples: Mapped[list[Any]]
    """[[[name, label, ...], [number, ...]], ...]"""


class NotificationRow(Base):
    """Something that an administrator is to be told of; it holds no patient data. `told_at`: when it went into a
    message, or when nobody was to be told."""

    __tablename__ = "notifications"
    __table_args__ = (
        Index("notifications_of_subject", "kind", "subject", "id"),
        partial_index("notifications_untold", "id", where="told_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64))
    """What it is about: a destination's name, `jobs` or `storage`. Of each kind and subject few messages are sent."""
    job_id: Mapped[int | None]
    told_at: Mapped[datetime | None]


class MessageRow(Base):
    """A message to an administrator on one channel, about one or several notifications."""

    __tablename__ = "messages"
    __table_args__ = (Index("messages_due", "state", "channel", "due_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    channel: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    """PENDING, SENT, or DEAD (the channel never took it)."""
    at: Mapped[datetime]
    due_at: Mapped[datetime]
    """Not sent before; while it is being sent, until when nobody else sends it."""
    attempts: Mapped[int] = mapped_column(default=0)
    failure: Mapped[str | None]
    content: Mapped[dict[str, Any]]
    """{"kind", "subject", "count", "jobs": [job_id], "first_at", "last_at"}"""
