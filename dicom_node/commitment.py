"""Storage commitment's datasets, both ways (PS3.4 Annex J). Pure: values and datasets, no rows, no network.

A request names instances under a Transaction UID; a report says of each that it is kept, or why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from dicom_node.delivery import FAILURE_REASONS
from dicom_node.errors import InvalidInstanceError
from dicom_node.head import is_valid_uid
from dicom_node.header import read_items, read_number, read_text

PUSH_MODEL = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its well-known SOP Instance (PS3.4 J.3.5)."""

REQUEST_COMMITMENT = 1
"""Action Type ID of the N-ACTION (PS3.4 J.3.2)."""

ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Type IDs of the N-EVENT-REPORT (PS3.4 J.3.3)."""

NO_SUCH_INSTANCE, CLASS_CONFLICT, PROCESSING_FAILURE = 0x0112, 0x0119, 0x0110
"""Failure Reasons (0008,1197), PS3.3 C.14.1.1."""

MAX_REFERENCES = 10_000

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an archive says of a transaction: SOP Instance UIDs that it keeps, and those that it does not, with why."""

    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, str]


def make_request(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Return the Action Information of a request for commitment (PS3.4 Table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = Items(_item(reference) for reference in references)
    return ds


def read_request(ds: Dataset) -> tuple[str, tuple[Reference, ...]]:
    """Return Transaction UID and references of a request. Raises InvalidInstanceError that says what it lacks."""
    transaction_uid = _transaction_uid(ds)
    items = read_items(ds, "ReferencedSOPSequence")
    if not 0 < len(items) <= MAX_REFERENCES:
        raise InvalidInstanceError(f"the request names {len(items)} instances, not 1 to {MAX_REFERENCES}")
    references = tuple(_read_item(item) for item in items)
    if not all(is_valid_uid(uid) for pair in references for uid in pair):
        raise InvalidInstanceError("the request names an instance without valid UIDs")
    return transaction_uid, references


def make_report(
    transaction_uid: str, kept: Sequence[Reference], failed: Mapping[Reference, int]
) -> tuple[int, Dataset]:
    """Return Event Type ID and Event Information of a report (PS3.4 Table J.3-2); `failed` has the Failure Reasons."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    if kept:
        ds.ReferencedSOPSequence = Items(_item(reference) for reference in kept)
    if failed:
        ds.FailedSOPSequence = Items(_failed_item(reference, reason) for reference, reason in failed.items())
    return SOME_FAILED if failed else ALL_COMMITTED, ds


def read_report(ds: Dataset) -> Report:
    """Return what a report says. Raises InvalidInstanceError that says what it lacks.

    An instance that it names as kept and as failed counts as failed.
    """
    transaction_uid = _transaction_uid(ds)
    failed = {}
    for item in read_items(ds, "FailedSOPSequence"):
        reason = read_number(item, "FailureReason")
        code = int(reason) if reason is not None else PROCESSING_FAILURE
        failed[_read_item(item)[1]] = f"{FAILURE_REASONS.get(code, 'failure')} (0x{code:04X})"
    kept = tuple(_read_item(item)[1] for item in read_items(ds, "ReferencedSOPSequence"))
    return Report(transaction_uid, tuple(uid for uid in kept if uid not in failed), failed)


def _transaction_uid(ds: Dataset) -> str:
    uid = read_text(ds, "TransactionUID")
    if not is_valid_uid(uid):
        raise InvalidInstanceError("it has no valid Transaction UID")
    return uid


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    return item


def _failed_item(reference: Reference, reason: int) -> Dataset:
    item = _item(reference)
    item.FailureReason = reason
    return item


def _read_item(item: Dataset) -> Reference:
    return read_text(item, "ReferencedSOPClassUID"), read_text(item, "ReferencedSOPInstanceUID")
