"""C-STORE: an instance is filed, or refused with the reason (PS3.4 annex B).

Success is answered only when the bytes are synced under their final name and the row is committed. Bytes are kept as
sent, in any transfer syntax; only their header is read here, never pixels or a report's content.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy.exc import DataError, IntegrityError

from dicom_node.door import Door, caller_of, calling_ae_title, visit_of
from dicom_node.errors import InvalidInstanceError
from dicom_node.instance import Instance, read_instance
from dicom_node.logs import log_event
from dicom_node.pdata import Command
from dicom_node.queries import DATABASE_ERRORS, Arrival, Recorded
from dicom_node.spool import Answer, Spool, StoreRequest
from dicom_node.storage import StoredFile, instance_key

logger = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")


class MismatchError(InvalidInstanceError):
    """The dataset is another instance than the request says."""


class OutOfResourcesError(OSError):
    """The storage has less free space than the configuration asks for."""


UNAVAILABLE = (OSError, *DATABASE_ERRORS)
"""What a disk or a database raises that is full, locked, read-only, away or damaged, or cannot keep this."""

SUCCESS = 0x0000
STORE_STATUS: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((MismatchError,), 0xA900),  # Error: Data Set does not match SOP Class (PS3.4 B.2.3)
    ((InvalidInstanceError,), 0xC000),  # Error: Cannot understand (PS3.4 B.2.3)
    (UNAVAILABLE, 0xA700),  # Refused: Out of Resources; the sender keeps it and tries again (PS3.4 B.2.3)
    ((Exception,), 0xC211),  # a bug: Error: Cannot understand, with the code that pynetdicom's nodes give then
)
"""What is answered to a C-STORE for each failure; the first row that fits counts."""

LOGGED = {"new": "filed", "repeat": "held already", "conflict": "kept aside", "own": "ignored"}
"""Kinds of `Recorded`, in words."""


def store(door: Door, requests: Sequence[StoreRequest]) -> list[Answer]:
    """File what came at one time, or not: return the answers. What one fails of is not held against the others."""
    with door.filing.coming(len(requests)):
        filed = _attempt(_file, door, requests)
    outcomes = filed if isinstance(filed, list) else [filed] * len(requests)
    return [_answer(door, request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]


def _answer(door: Door, request: StoreRequest, outcome: Recorded | Exception) -> Answer:
    if isinstance(outcome, Exception):
        return _refuse(door, request, outcome)
    log_event(
        logger, f"instance {LOGGED[outcome.kind]}", sop_instance_uid=request.command.sop_instance_uid,
        calling_ae_title=calling_ae_title(request.association), job_id=outcome.job_id,
        revision=outcome.revision or None,
    )  # fmt: skip
    return SUCCESS, ""


def _refuse(door: Door, request: StoreRequest, error: Exception) -> Answer:
    status = next(code for kinds, code in STORE_STATUS if isinstance(error, kinds))
    reason = explain(error)
    is_bug = not isinstance(error, (InvalidInstanceError, *UNAVAILABLE))
    log_event(
        logger, "instance refused", level=logging.ERROR if is_bug else logging.WARNING, status=f"0x{status:04X}",
        reason=reason, sop_instance_uid=request.command.sop_instance_uid,
        calling_ae_title=calling_ae_title(request.association),
    )  # fmt: skip
    if is_bug:
        logger.error("unexpected failure", exc_info=error)
    if isinstance(error, UNAVAILABLE) and not isinstance(error, OutOfResourcesError | DataError | IntegrityError):
        door.pressure.close(f"an instance could not be kept ({reason})")
    return status, reason[:64].encode("ascii", "replace").decode().replace("\\", "/")


def explain(error: Exception) -> str:
    """Return why a request is refused, in words that hold nothing of its content."""
    return str(error) if isinstance(error, InvalidInstanceError | OutOfResourcesError) else type(error).__name__


def _file(door: Door, requests: Sequence[StoreRequest]) -> list[Recorded | Exception]:
    """Keep the instances' bytes, then their rows; return what became of each (failures: see `STORE_STATUS`).

    Each step is made for all of them before the next: what waits for the disk, or the database, waits once.
    """
    outcomes: list[Arrival | Recorded | Exception] = [_attempt(_examine, door, request) for request in requests]
    try:
        for step in (_write_out, _sync, _name_finally, _record):
            going = [number for number, one in enumerate(outcomes) if isinstance(one, Arrival)]
            arrivals = [one for one in outcomes if isinstance(one, Arrival)]
            if going:
                came = step(door, arrivals, [requests[number].spool for number in going])
                for number, outcome in zip(going, came, strict=True):
                    outcomes[number] = outcome
    finally:
        for request in requests:
            request.spool.discard()
    return [one for one in outcomes if not isinstance(one, Arrival)]


def _attempt(act: Callable[..., Outcome], *arguments: Any) -> Outcome | Exception:
    """Return what an act ends in, also where that is an exception: a bug, too, must end nothing but this request."""
    try:
        return act(*arguments)
    except Exception as error:  # noqa: BLE001 - it is answered
        return error


def _examine(door: Door, request: StoreRequest) -> Arrival | Recorded:
    """Read who an instance is. Raises what `STORE_STATUS` lists."""
    instance = read_instance(request.spool.source, request.command.priority)
    _check_request(request.command, instance)
    if instance.is_own_result:
        return Recorded("own")
    caller, key = caller_of(request.association), visit_of(request.association).audit_key
    sha256, size = request.spool.sha256, request.spool.size
    stored = StoredFile(instance_key(instance.study_instance_uid, instance.sop_instance_uid, sha256), sha256, size)
    return Arrival(instance, stored, caller.ae_title, door.clock(), caller.address, key)


def _write_out(_: Door, arrivals: Sequence[Arrival], spools: Sequence[Spool]) -> list[Arrival | Exception]:
    return _with_each(Spool.write_out, arrivals, spools)


def _sync(_: Door, arrivals: Sequence[Arrival], spools: Sequence[Spool]) -> list[Arrival | Exception]:
    return _with_each(Spool.sync, arrivals, spools)


def _with_each(
    act: Callable[[Spool], None], arrivals: Sequence[Arrival], spools: Sequence[Spool]
) -> list[Arrival | Exception]:
    faults = [_attempt(act, spool) for spool in spools]
    return [fault or arrival for arrival, fault in zip(arrivals, faults, strict=True)]


def _name_finally(door: Door, arrivals: Sequence[Arrival], spools: Sequence[Spool]) -> list[Arrival | Exception]:
    named = [(one.stored.key, spool.synced) for one, spool in zip(arrivals, spools, strict=True)]
    faults = door.storage.file_all(named)
    for spool, fault in zip(spools, faults, strict=True):
        if fault is None:
            spool.release()
    return [fault or arrival for arrival, fault in zip(arrivals, faults, strict=True)]


def _record(door: Door, arrivals: Sequence[Arrival], _: Sequence[Spool]) -> list[Recorded | Exception]:
    outcomes = door.filing.record(arrivals)
    return [_attempt(_settle, door, arrival, outcome) for arrival, outcome in zip(arrivals, outcomes, strict=True)]


def _settle(door: Door, arrival: Arrival, outcome: Recorded | Exception) -> Recorded:
    """Remove what needs not be kept. Raises what the row could not be made for."""
    if isinstance(outcome, Exception):
        raise outcome
    key = arrival.stored.key
    if outcome.kind == "own":
        door.storage.remove(key)
    elif outcome.kind == "repeat" and not door.storage.exists(key):
        raise OutOfResourcesError("its earlier copy was being removed by the retention rule; send it again")
    return outcome


def check_free_space(door: Door) -> None:
    """Raise OutOfResourcesError where nothing is taken in for now."""
    if closed := door.pressure.closed:
        raise OutOfResourcesError(closed)
    free, least = door.storage.free_bytes(), door.settings.receiver.min_free_bytes
    if free < least:
        raise OutOfResourcesError(f"{free} bytes free, receiver.min_free_bytes is {least}")


def _check_request(command: Command, instance: Instance) -> None:
    if command.sop_class_uid != instance.sop_class_uid:
        raise MismatchError("its SOP Class UID is not that of the request")
    if command.sop_instance_uid != instance.sop_instance_uid:
        raise MismatchError("its SOP Instance UID is not that of the request")
