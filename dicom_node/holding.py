"""Whether the node really has an instance: its row, and its file with the bytes that came."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session, sessionmaker

from dicom_node.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Reference
from dicom_node.queries import HeldInstance, held_instances
from dicom_node.storage import Storage, dataset_digest


def check_references(
    references: Sequence[Reference], sessions: sessionmaker[Session], storage: Storage
) -> tuple[tuple[Reference, ...], dict[Reference, int]]:
    """Return which of these instances are kept, and the Failure Reason (PS3.3 C.14.1.1) of each other one.

    Every file is read, and compared with the digest that was taken while it came.
    """
    with sessions() as session:
        held = held_instances(session, [uid for _, uid in references])
    reasons = {reference: _check(reference, held.get(reference[1]), storage) for reference in references}
    kept = tuple(reference for reference, reason in reasons.items() if reason is None)
    return kept, {reference: reason for reference, reason in reasons.items() if reason is not None}


def _check(reference: Reference, held: HeldInstance | None, storage: Storage) -> int | None:
    if held is None:
        return NO_SUCH_INSTANCE
    if held.sop_class_uid != reference[0]:
        return CLASS_CONFLICT
    try:
        with storage.open(held.key) as file:
            sha256, size = dataset_digest(file)
    except FileNotFoundError:
        return NO_SUCH_INSTANCE
    except OSError:
        return PROCESSING_FAILURE
    return None if (sha256, size) == (held.sha256, held.size) else PROCESSING_FAILURE
