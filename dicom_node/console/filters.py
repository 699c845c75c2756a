"""What a query string may ask for. Anything else is refused, rather than passed over; an empty value is none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dicom_node.audit import Kind
from dicom_node.delivery import DispatchState
from dicom_node.queries import DispatchFilter, JobFilter
from dicom_node.study import State

MAX_LISTED = 1000


def _refuse_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("has the character NUL (%00), which no value has")
    return value


def _parse_instant(value: str) -> datetime:
    try:
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("is an ISO time with its zone, as 2026-01-31T12:00Z")


Text = Annotated[str, AfterValidator(_refuse_nul)]


def parse_local(value: str | None) -> datetime | None:
    """Return an instant as a form sends it, in UTC: one that names no zone is UTC, as all that pages show."""
    if value is None:
        return None
    instant = datetime.fromisoformat(value)
    return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)


def _check_local(value: str) -> str:
    try:
        parse_local(value)
    except (ValueError, OverflowError):
        raise ValueError("is a time, as 2026-01-31T12:00") from None
    return value


Instant = Annotated[str, AfterValidator(_check_local)]


class Query(BaseModel):
    """A query string; what it does not name is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name} has the character NUL (%00), which no value has")
        return {name: value for name, value in values.items() if value != ""}


class Since(Query):
    """A list from an instant on."""

    since: Annotated[str, AfterValidator(lambda value: _parse_instant(value) and value)] | None = None
    limit: int = Field(default=50, ge=1, le=MAX_LISTED)

    @property
    def after(self) -> datetime | None:
        """The instant, in UTC."""
        return None if self.since is None else _parse_instant(self.since)


class JobQuery(Since):
    """Which jobs to list."""

    state: State | None = None
    study: Text | None = None
    patient: Text | None = None
    accession: Text | None = None

    @property
    def wanted(self) -> JobFilter:
        """The filter of the job database."""
        return JobFilter(
            state=self.state, study=self.study, patient=self.patient, accession=self.accession, since=self.after,
            limit=self.limit,
        )  # fmt: skip


class DeliveryQuery(Query):
    """Which deliveries to list."""

    state: DispatchState | None = None
    destination: Text | None = None
    limit: int = Field(default=50, ge=1, le=MAX_LISTED)

    @property
    def wanted(self) -> DispatchFilter:
        """The filter of the job database."""
        return DispatchFilter(self.state, self.destination, self.limit)


class AuditQuery(Since):
    """Which events of the audit trail to list."""

    kind: Kind | None = None
