"""Sending the results of one errand: each part in the first encoding that the archive takes, and what it answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dicom_node import queries
from dicom_node.delivery import NOT_ACCEPTED, PartState, read_status
from dicom_node.queries import Delivery
from dicom_node.scu import Archive, Candidate, Part, prefer, spell
from workers.counting import count_answer
from workers.errand import Errand

PROCESSING_FAILURE = 0x0110
"""What some archives answer to an SR class that they accepted and cannot read: the other class is tried."""


def send(errand: Errand, archive: Archive, deliveries: Iterable[Delivery]) -> list[str]:
    """Send what is PENDING, keep what the archive answered, and return what went wrong."""
    with errand.resources.sessions() as session:
        accepted = queries.accepted_sr_class(session, errand.destination.name)
    errors = []
    for one in deliveries:
        if one.part in errand.parts:
            part = prefer(errand.parts[one.part], errand.destination, accepted)
            answered, error = _send_part(errand, archive, part, one)
            errand.keep([answered])  # whatever becomes of the parts that follow
            errors += [error] if error else []
    return errors


def _send_part(errand: Errand, archive: Archive, part: Part, delivery: Delivery) -> tuple[Delivery, str]:
    """Send the first candidate that the archive takes; return what became of it, and what went wrong."""
    refused: tuple[Delivery, str] | None = None
    for candidate in _candidates(part, delivery):
        if not archive.accepts(candidate.sop_class_uid):
            continue
        status = archive.store(candidate)
        meaning = read_status(status)
        count_answer(errand.resources.recorder, errand.destination.name, status)
        answered = replace(delivery, sop_instance_uid=candidate.sop_instance_uid, status=status, confirmed_by=None)
        if meaning.verdict in ("stored", "present"):
            return replace(answered, state="STORED", detail=f"0x{status:04X} {meaning.text}" if status else None), ""
        reason = f"destination {errand.destination.name} answered the C-STORE of {part.name} with {spell(status)}"
        state: PartState = "PENDING" if meaning.verdict == "transient" else "FAILED"
        if refused is None or state == "PENDING":
            refused = replace(answered, state=state, detail=meaning.text), reason
        if state == "PENDING" and status != PROCESSING_FAILURE:
            return refused
    return refused or _nothing_accepted(errand, archive, part, delivery)


def _candidates(part: Part, delivery: Delivery) -> tuple[Candidate, ...]:
    """Return what may be sent now: only what was sent before, unless the archive refused that for good.

    An archive that broke off may have kept it all the same; another SR of the same content would be a second result.
    """
    if read_status(delivery.status).verdict == "permanent":
        return part.candidates
    sent = tuple(one for one in part.candidates if one.sop_instance_uid == delivery.sop_instance_uid)
    return sent or part.candidates


def _nothing_accepted(errand: Errand, archive: Archive, part: Part, delivery: Delivery) -> tuple[Delivery, str]:
    name = errand.destination.name
    if not archive.is_open:
        return delivery, f"destination {name} broke off the association"
    what = (
        "neither SR class that its sr_class allows" if part.name == "sr" else "no Grayscale Softcopy Presentation State"
    )
    setting = "its sr_class" if part.name == "sr" else "results.gsps"
    reason = f"destination {name} accepts {what}: enable it there, or change {setting} in the configuration"
    return replace(delivery, state="FAILED", status=None, detail=NOT_ACCEPTED), reason
