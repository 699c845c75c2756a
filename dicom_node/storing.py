"""C-STORE: an instance is filed, or refused with the reason (PS3.4 annex B).

Success is answered only when the bytes are synced under their final name and the row is committed. Bytes are kept as
sent, in any transfer syntax; only their header is read here, never pixels or a report's content.
"""

from __future__ import annotations

import logging

from pynetdicom.association import Association
from sqlalchemy.exc import DataError, IntegrityError

from dicom_node.door import Door, caller_of, calling_ae_title, visit_of
from dicom_node.errors import InvalidInstanceError
from dicom_node.instance import Instance, read_instance, with_c_store_priority
from dicom_node.logs import log_event
from dicom_node.pdata import Command
from dicom_node.queries import DATABASE_ERRORS, Arrival, Recorded
from dicom_node.spool import Spool
from dicom_node.storage import StoredFile, instance_key

logger = logging.getLogger(__name__)


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


def store(door: Door, association: Association, command: Command, spool: Spool) -> tuple[int, str]:
    """File the instance, or not: return the status of the answer, and its Error Comment (0000,0902)."""
    try:
        with door.filing.coming():
            recorded = _file(door, association, command, spool)
    except Exception as error:  # noqa: BLE001 - a bug must not end the thread that reads the association
        return _refuse(door, association, command, error)
    log_event(
        logger, f"instance {LOGGED[recorded.kind]}", sop_instance_uid=command.sop_instance_uid,
        calling_ae_title=calling_ae_title(association), job_id=recorded.job_id, revision=recorded.revision or None,
    )  # fmt: skip
    return SUCCESS, ""


def _refuse(door: Door, association: Association, command: Command, error: Exception) -> tuple[int, str]:
    status = next(code for kinds, code in STORE_STATUS if isinstance(error, kinds))
    reason = explain(error)
    is_bug = not isinstance(error, (InvalidInstanceError, *UNAVAILABLE))
    log_event(
        logger, "instance refused", level=logging.ERROR if is_bug else logging.WARNING, status=f"0x{status:04X}",
        reason=reason, sop_instance_uid=command.sop_instance_uid, calling_ae_title=calling_ae_title(association),
    )  # fmt: skip
    if is_bug:
        logger.error("unexpected failure", exc_info=error)
    if isinstance(error, UNAVAILABLE) and not isinstance(error, OutOfResourcesError | DataError | IntegrityError):
        door.pressure.close(f"an instance could not be kept ({reason})")
    return status, reason[:64].encode("ascii", "replace").decode().replace("\\", "/")


def explain(error: Exception) -> str:
    """Return why a request is refused, in words that hold nothing of its content."""
    return str(error) if isinstance(error, InvalidInstanceError | OutOfResourcesError) else type(error).__name__


def _file(door: Door, association: Association, command: Command, spool: Spool) -> Recorded:
    """Keep the instance's bytes, then its row; raises what `STORE_STATUS` lists."""
    try:
        path = spool.finish()
        if path is None:
            raise InvalidInstanceError("the request has no dataset")
        instance = with_c_store_priority(read_instance(path), command.priority)
        _check_request(command, instance)
        if instance.is_own_result:
            return Recorded("own")
        key = instance_key(instance.study_instance_uid, instance.sop_instance_uid, spool.sha256)
        stored = StoredFile(key, spool.sha256, spool.size)
        door.storage.file(stored.key, path)
        spool.release()
    finally:
        spool.discard()
    return _record(door, association, instance, stored)


def _record(door: Door, association: Association, instance: Instance, stored: StoredFile) -> Recorded:
    caller, key = caller_of(association), visit_of(association).audit_key
    recorded = door.filing.record(Arrival(instance, stored, caller.ae_title, door.clock(), caller.address, key))
    if recorded.kind == "own":
        door.storage.remove(stored.key)
    elif recorded.kind == "repeat" and not door.storage.exists(stored.key):
        raise OutOfResourcesError("its earlier copy was being removed by the retention rule; send it again")
    return recorded


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
