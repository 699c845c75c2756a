"""The job database: mapped rows, readable with plain SQL (docs/operate.md describes each column).

Only `queries` reads and writes them. Instants are stored in UTC; JSON columns hold small values that are read whole.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

UID = String(64)

SR_TAKEN = "part = 'sr' AND state IN ('STORED', 'DELIVERED')"
"""Of deliveries: an SR that an archive took, confirmed or not."""


def partial_index(name: str, *columns: str, where: str) -> Index:
    """Return an index of those rows alone for which `where` holds: SQLite takes it for queries that say the same."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


@lru_cache(256)
def _written(value: datetime | None) -> str | None:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds") if value is not None else None


class _SqliteDateTime(sqlite.DATETIME):
    """An aware instant in UTC, written as SQLAlchemy does (YYYY-MM-DD HH:MM:SS.ffffff), but once for all rows of it."""

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], str | None]:
        """Return the function that writes one."""
        return _written


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, kept in UTC on every engine (SQLite has no time zones)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        """Return what writes instants for the engine."""
        if dialect.name == "sqlite":
            return _SqliteDateTime()  # type: ignore[no-untyped-call]
        return super().load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants and convert the others to UTC, which on SQLite is done where they are written."""
        if value is not None and value.tzinfo is None:
            raise ValueError("an instant without a time zone cannot be stored")
        return value if value is None or dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the instant back as aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Types that all rows share."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime(), dict[str, Any]: JSON(), list[Any]: JSON()}


class Leased:
    """Columns of what somebody works on: who, until when, how often it was tried, and when it is due again."""

    attempts: Mapped[int] = mapped_column(default=0)
    """Tries of what is to be done now; 0 again after each success."""
    deaths: Mapped[int] = mapped_column(default=0)
    """Of these tries, those whose worker died or hung past its lease."""
    failure: Mapped[str | None]
    due_at: Mapped[datetime]
    """From this instant on it is to be worked on; the scheduler rings for it."""
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]


class StudyRow(Base):
    """A study that at least one instance was received for. `revision` is the one that is current."""

    __tablename__ = "studies"

    study_instance_uid: Mapped[str] = mapped_column(UID, primary_key=True)
    revision: Mapped[int]
    patient_id: Mapped[str] = mapped_column(String(64), index=True)
    accession_number: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]


class InstanceRow(Base):
    """An instance as received: where its bytes are, and the facts that decisions need (see instance.Instance)."""

    __tablename__ = "instances"
    __table_args__ = (partial_index("instances_kept", "received_at", "study_instance_uid", where="removed_at IS NULL"),)

    sop_instance_uid: Mapped[str] = mapped_column(UID, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax_uid: Mapped[str] = mapped_column(UID)
    modality: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int]
    storage_key: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]
    """When the retention rule removed its bytes; the row stays."""
    facts: Mapped[dict[str, Any]]


class ReportReferenceRow(Base):
    """A report that says it is about images of another study than its own; `revision` of that study came with it.

    That study may not be known yet: its images take the report up when they come.
    """

    __tablename__ = "report_references"

    sop_instance_uid: Mapped[str] = mapped_column(ForeignKey("instances.sop_instance_uid"), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, primary_key=True, index=True)
    revision: Mapped[int]


class ConflictRow(Base):
    """Bytes that came under a SOP Instance UID that was held with other bytes; kept aside for the administrator."""

    __tablename__ = "conflicts"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(ForeignKey("instances.sop_instance_uid"))
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(255))
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]


class JobRow(Leased, Base):
    """One revision of one study on its way: state, outcome, lease, schedule, reason of a failure."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("study_instance_uid", "revision"),
        Index("jobs_due", "state", "due_at"),
        Index("jobs_waiting", "state", "priority", "step_since"),
        Index("jobs_of_state", "state", "job_id"),
        Index("jobs_changed", "state", "updated_at"),
        partial_index("jobs_leased", "lease_token", where="lease_token IS NOT NULL"),
    )

    job_id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"))
    revision: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(16))
    priority: Mapped[str] = mapped_column(String(8), default="ROUTINE", server_default="ROUTINE")
    """STAT or ROUTINE; known when the study is complete."""
    first_instance_at: Mapped[datetime]
    last_instance_at: Mapped[datetime]
    """The quiet period runs from here."""
    step_since: Mapped[datetime]
    """When the job came into its present state."""
    model: Mapped[dict[str, Any] | None]
    """{"name", "version", "sha256"} of the model that grounded the job."""
    selection: Mapped[dict[str, Any] | None]
    """{"report": SOP Instance UID, "images": [SOP Instance UID], "why": {SOP Instance UID: reason}}"""
    timings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class FindingRow(Base):
    """A phrase of a job's report with its boxes in pixels of the image `sop_instance_uid` (xyxy, score)."""

    __tablename__ = "findings"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.job_id"), index=True)
    number: Mapped[int]
    sop_instance_uid: Mapped[str] = mapped_column(UID)
    phrase: Mapped[str]
    source_start: Mapped[int | None]
    source_end: Mapped[int | None]
    boxes: Mapped[list[Any]]
    """[{"xyxy": [x1, y1, x2, y2], "score": s}, ...]"""
    localized: Mapped[bool]
    negated: Mapped[bool]
    finding: Mapped[dict[str, Any] | None]
    site: Mapped[dict[str, Any] | None]
    uncertainty: Mapped[float | None]


class ResultRow(Base):
    """A result instance as written to storage. `part` is what it is of the job: "sr", or "gsps:<image UID>".

    The SR may stand here twice, once per SOP class, since an archive may refuse the preferred one; each destination
    is given exactly one of them.
    """

    __tablename__ = "results"

    sop_instance_uid: Mapped[str] = mapped_column(UID, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.job_id"), index=True)
    part: Mapped[str] = mapped_column(String(80))
    sop_class_uid: Mapped[str] = mapped_column(UID)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    storage_key: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class DispatchRow(Leased, Base):
    """The results of one job on their way to one destination, with a schedule of their own: no destination waits for
    another."""

    __tablename__ = "dispatches"
    __table_args__ = (
        UniqueConstraint("job_id", "destination"),
        Index("dispatches_due", "state", "due_at"),
        Index("dispatches_of_state", "state", "dispatch_id"),
        Index("dispatches_of_destination", "destination", "state", "dispatch_id"),
        partial_index("dispatches_leased", "lease_token", where="lease_token IS NOT NULL"),
    )

    dispatch_id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.job_id"))
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    """PENDING (to be sent), CONFIRMING (taken, not confirmed yet), DELIVERED, DEAD (given up), CANCELLED."""
    since: Mapped[datetime]
    """When it was opened or replayed: patience runs from here."""
    updated_at: Mapped[datetime]


class DeliveryRow(Base):
    """One part of a job's results on its way to one destination. `sop_instance_uid` is the result that was taken."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("job_id", "destination", "part"),
        partial_index("deliveries_sr_taken", "destination", "updated_at", "id", where=SR_TAKEN),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.job_id"))
    destination: Mapped[str] = mapped_column(String(64))
    part: Mapped[str] = mapped_column(String(80))
    sop_instance_uid: Mapped[str | None] = mapped_column(UID, index=True)
    state: Mapped[str] = mapped_column(String(16))
    """PENDING, STORED (taken, not confirmed yet), DELIVERED or FAILED."""
    status: Mapped[int | None]
    """DIMSE status of the last C-STORE response."""
    detail: Mapped[str | None]
    """What the status means, where it is not success; why a commitment failed."""
    confirmed_by: Mapped[str | None] = mapped_column(String(16))
    """"commitment" (the archive committed to it), "query" (it finds it) or "store" (its C-STORE response alone)."""
    updated_at: Mapped[datetime]


class CommitmentRow(Base):
    """A storage commitment that an archive was asked for: one transaction per try (PS3.4 J.3)."""

    __tablename__ = "commitments"

    transaction_uid: Mapped[str] = mapped_column(UID, primary_key=True)
    dispatch_id: Mapped[int] = mapped_column(ForeignKey("dispatches.dispatch_id"), index=True)
    asked_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]


class CommitmentRequestRow(Leased, Base):
    """A storage commitment that a sender asks of this node, and whether it was told (PS3.4 J.3)."""

    __tablename__ = "commitment_requests"
    __table_args__ = (
        UniqueConstraint("transaction_uid", "calling_ae_title"),
        Index("commitment_requests_due", "state", "due_at"),
        partial_index("commitment_requests_leased", "lease_token", where="lease_token IS NOT NULL"),
    )

    request_id: Mapped[int] = mapped_column(primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(UID)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    references: Mapped[list[Any]]
    """[[SOP Class UID, SOP Instance UID], ...]"""
    state: Mapped[str] = mapped_column(String(16))
    """PENDING, REPORTED or DEAD (the sender never took the report)."""
    asked_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class DestinationRow(Base):
    """How a destination fares: one that is away holds its dispatches back, and only its own."""

    __tablename__ = "destinations"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    """Tries in a row that found nobody there."""
    hold_until: Mapped[datetime | None]
    last_contact_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    last_error_at: Mapped[datetime | None]


class AuditRow(Base):
    """An audit message (PS3.15 A.5), kept for ever; `sent_at` is when the collector was sent it."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_at", "at", "id"),
        Index("audit_of_kind", "kind", "at", "id"),
        partial_index("audit_unsent", "id", "due_at", where="sent_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    due_at: Mapped[datetime]
    """Not sent before: until then an association may still add to it."""
    kind: Mapped[str] = mapped_column(String(32))
    association: Mapped[str | None] = mapped_column(String(64), index=True)
    """The association that instances came by; None of other events."""
    process: Mapped[str] = mapped_column(String(32))
    event: Mapped[dict[str, Any]]
    """The event as `audit.AuditEvent`."""
    sent_at: Mapped[datetime | None]


class EventRow(Base):
    """The timeline, append-only: what happened to a study, and when."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"), index=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.job_id"))
    at: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(default="")
