"""Storage commitments that senders ask of this node: kept when asked, looked up, and told by a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.queries.inserting import insert_or_ignore
from dicom_node.queries.leases import NO_LEASE, has_free_lease, take
from dicom_node.tables import CommitmentRequestRow, InstanceRow


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """What a sender asked for: (SOP Class UID, SOP Instance UID) of each instance."""

    request_id: int
    transaction_uid: str
    calling_ae_title: str
    address: str
    references: tuple[tuple[str, str], ...]
    attempts: int
    deaths: int
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """An instance that the node holds: where, and the digest and size that its file must have."""

    sop_class_uid: str
    sop_instance_uid: str
    key: str
    sha256: str
    size: int


def note_commitment_request(
    session: Session,
    transaction_uid: str,
    sender: tuple[str, str],
    references: Sequence[tuple[str, str]],
    now: datetime,
) -> Literal["new", "repeat", "conflict"]:
    """Keep a request of `sender` (calling AE title, address).

    One that it has asked before under this Transaction UID is to be told anew, unless it names other instances.
    """
    calling_ae_title, address = sender[0][:16], sender[1][:64]
    asked = {
        "address": address, "state": "PENDING", "attempts": 0, "deaths": 0, "failure": None,
        "due_at": now, "asked_at": now, "updated_at": now,
    }  # fmt: skip
    row, named = CommitmentRequestRow, [list(pair) for pair in references]
    key = {"transaction_uid": transaction_uid, "calling_ae_title": calling_ae_title}
    if insert_or_ignore(session, row, **key, references=named, **asked):
        return "new"
    known = session.scalars(select(row).filter_by(**key)).one()
    if sorted(known.references) != sorted(named):
        return "conflict"
    # one that is PENDING is told by itself
    session.execute(update(row).where(row.request_id == known.request_id, row.state != "PENDING").values(asked))
    return "repeat"


def requests_to_ring(session: Session, now: datetime, limit: int) -> tuple[int, ...]:
    """Return the requests that are due for an answer and that nobody works on."""
    row = CommitmentRequestRow
    statement = (
        select(row.request_id)
        .where(row.state == "PENDING", row.due_at <= now, has_free_lease(row, now))
        .order_by(row.due_at, row.request_id)
        .limit(limit)
    )
    return tuple(session.scalars(statement))


def requests_rung(session: Session, request_ids: Sequence[int], again_at: datetime) -> None:
    """Note that workers were rung for these; without a claim they are due again at `again_at`."""
    if not request_ids:
        return
    session.execute(
        update(CommitmentRequestRow).where(CommitmentRequestRow.request_id.in_(request_ids)).values(due_at=again_at)
    )


def sender_of(session: Session, request_id: int) -> str | None:
    """Return the AE title that a request came from."""
    statement = select(CommitmentRequestRow.calling_ae_title).where(CommitmentRequestRow.request_id == request_id)
    return session.scalar(statement)


def claim_request(
    session: Session, request_id: int, token: str, now: datetime, lease: timedelta
) -> CommitmentRequest | None:
    """Take a request for the time of `lease`; None if it is not there to be taken."""
    row = CommitmentRequestRow
    taken = session.execute(
        update(row)
        .where(row.request_id == request_id, row.state == "PENDING", has_free_lease(row, now))
        .values(take(row, token, now, lease))
        .returning(row)
    ).scalar()
    if taken is None:
        return None
    references = tuple((pair[0], pair[1]) for pair in taken.references)
    return CommitmentRequest(
        taken.request_id, taken.transaction_uid, taken.calling_ae_title, taken.address, references, taken.attempts,
        taken.deaths, taken.asked_at,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """How a try at a request ends: REPORTED, DEAD, or PENDING until `due_at`; and why it is not REPORTED."""

    state: str
    due_at: datetime
    failure: str | None = None


def end_request(session: Session, request_id: int, token: str, ending: RequestEnd, now: datetime) -> None:
    """Give up a claimed request."""
    session.execute(
        update(CommitmentRequestRow)
        .where(CommitmentRequestRow.request_id == request_id, CommitmentRequestRow.lease_token == token)
        .values(
            NO_LEASE
            | {"state": ending.state, "failure": ending.failure}
            | {"due_at": ending.due_at, "deaths": 0, "updated_at": now}
        )
    )


def held_instances(session: Session, sop_instance_uids: Sequence[str]) -> dict[str, HeldInstance]:
    """Return those of the instances that the node holds, by SOP Instance UID; not what its retention rule removed."""
    statement = select(InstanceRow).where(
        InstanceRow.sop_instance_uid.in_(sop_instance_uids), InstanceRow.removed_at.is_(None)
    )
    return {
        row.sop_instance_uid: HeldInstance(
            row.sop_class_uid, row.sop_instance_uid, row.storage_key, row.sha256, row.size_bytes
        )
        for row in session.scalars(statement)
    }
