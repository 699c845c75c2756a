"""Having an archive confirm what it took: by storage commitment, else by a query, else by its C-STORE response."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from dicom_node import queries
from dicom_node.clock import derive_uid
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import DestinationSettings
from dicom_node.queries import Delivery
from dicom_node.scu import STUDY_ROOT_FIND, Archive, Candidate, Finding, spell
from workers.errand import Errand

REPORT_WAIT_S = 2.0
"""How long the association is held for a report of storage commitment; later ones come on another, which the receiver
takes."""
REPORT_POLL_S = 0.05

DUPLICATE = 0x0111
"""Duplicate SOP instance (PS3.7 C.5.8): under this UID the archive may hold anything."""

UNCONFIRMED: dict[Finding, str] = {
    "absent": "does not find it in a query yet",
    "unknown": "did not answer the query for it",
}
"""What a query comes to that confirms nothing now, and may the next time."""


class DoubtedError(Exception):
    """An answer on an association that was used before is not believed; it ends that association."""


def services(destination: DestinationSettings) -> list[str]:
    """Return the SOP classes that are proposed besides those of the results: of the confirmations that are wanted."""
    if not destination.commitment:
        return []
    ways = {"auto": [PUSH_MODEL, STUDY_ROOT_FIND], "commitment": [PUSH_MODEL], "query": [STUDY_ROOT_FIND]}
    return ways[destination.confirmation]


def confirm(errand: Errand, archive: Archive) -> list[str]:
    """Have the archive confirm what it took: by commitment, else by a query, else by its C-STORE response alone.

    Storage commitment may be reported later; what was asked for and not reported in time is asked for by a query, too.
    Raises DoubtedError where an association refuses, or lacks what would be sent again, on which others were served: an
    archive that does one study on each must not pass for one that answers no query, or has lost something.
    """
    stored = [one for one in errand.load() if one.state == "STORED" and one.sop_instance_uid]
    if not stored:
        return []
    if not errand.destination.commitment:
        return _confirm_by_store(errand, stored)
    errors, name = list[str](), errand.destination.name
    if errand.dispatch.state == "CONFIRMING" and archive.accepts(STUDY_ROOT_FIND):
        stored, errors = _look_for_overdue(errand, archive, stored)
    if not stored:
        return errors
    if not archive.is_open:
        return [*errors, f"destination {name} broke off the association before it confirmed anything"]
    if archive.accepts(PUSH_MODEL):
        return errors + _ask_commitment(errand, archive, stored)
    return errors + _confirm_without_commitment(errand, archive, stored)


def _look_for_overdue(errand: Errand, archive: Archive, stored: Sequence[Delivery]) -> tuple[list[Delivery], list[str]]:
    """Ask for what is overdue to be reported; return what is still to be confirmed, and what went wrong."""
    name = errand.destination.name
    findings = _confirm_by_query(errand, archive, stored, doubted=("absent", "refused", "unknown"))
    lost = [one for one, finding in findings if finding == "absent"]
    errand.keep(replace(one, state="PENDING", detail="a query did not find it") for one in lost)
    errors = [f"destination {name} took {one.part} but has lost it: it is sent again" for one in lost]
    return [one for one, finding in findings if finding != "absent"], errors


def _confirm_without_commitment(errand: Errand, archive: Archive, stored: Sequence[Delivery]) -> list[str]:
    name = errand.destination.name
    if not archive.accepts(STUDY_ROOT_FIND):
        return _confirm_by_store(errand, stored)
    findings = _confirm_by_query(errand, archive, stored, doubted=("refused", "unknown"))
    refused = [one for one, finding in findings if finding == "refused"]
    errors = [
        f"destination {name} took {one.part} but {UNCONFIRMED[finding]}"
        for one, finding in findings
        if finding in UNCONFIRMED
    ]
    return errors + (_confirm_by_store(errand, refused) if refused else [])


def _confirm_by_store(errand: Errand, stored: Iterable[Delivery]) -> list[str]:
    """Take the C-STORE response for a confirmation, where the archive offers no other.

    Not where another is insisted on, nor where the archive only said that it has something under this UID already.
    """
    name, insisted = (
        errand.destination.name,
        errand.destination.commitment and errand.destination.confirmation != "auto",
    )
    if insisted:
        return [
            f"destination {name} offers no confirmation by {errand.destination.confirmation}; its settings insist on it"
        ]
    held = [one for one in stored if one.status != DUPLICATE]
    errand.keep(replace(one, state="DELIVERED", confirmed_by="store") for one in held)
    doubtful = [one for one in stored if one.status == DUPLICATE]
    return [f"destination {name} says it has {one.part} already, and confirms nothing" for one in doubtful]


def _confirm_by_query(
    errand: Errand, archive: Archive, stored: Iterable[Delivery], doubted: Collection[Finding]
) -> list[tuple[Delivery, Finding]]:
    """Confirm what a query finds; return the others, each with what the query came to.

    Raises DoubtedError where that is `doubted` on an association that was used. What is only not there yet need not be:
    nothing follows but another query, and archives that take a while to show what came are many.
    """
    findings = list[tuple[Delivery, Finding]]()
    for one in stored:
        candidate = _candidate_of(errand, one)
        findings.append((one, archive.find(errand.dispatch.study_instance_uid, candidate) if candidate else "absent"))
    present = [replace(one, state="DELIVERED", confirmed_by="query") for one, found in findings if found == "present"]
    if present:
        errand.keep(present)
    if archive.is_used and any(finding in doubted for _, finding in findings):
        raise DoubtedError(f"destination {errand.destination.name} did not confirm by a query after other studies")
    return [(one, finding) for one, finding in findings if finding != "present"]


def _candidate_of(errand: Errand, delivery: Delivery) -> Candidate | None:
    candidates = errand.parts[delivery.part].candidates if delivery.part in errand.parts else ()
    return next((one for one in candidates if one.sop_instance_uid == delivery.sop_instance_uid), None)


def _ask_commitment(errand: Errand, archive: Archive, stored: Iterable[Delivery]) -> list[str]:
    """Ask for storage commitment under a new Transaction UID, and hold the association a little for the report."""
    resources, dispatch = errand.resources, errand.dispatch
    candidates = [candidate for one in stored if (candidate := _candidate_of(errand, one))]
    references = [(candidate.sop_class_uid, candidate.sop_instance_uid) for candidate in candidates]
    now = resources.clock()
    transaction_uid = derive_uid(
        "commitment", resources.token, str(dispatch.dispatch_id), str(dispatch.attempts), now.isoformat(),
        "used" if archive.is_used else "new",
    )  # fmt: skip
    with resources.sessions.begin() as session:
        queries.note_asked(session, dispatch.dispatch_id, transaction_uid, now)
    status = archive.ask_commitment(transaction_uid, references)
    if status != 0x0000:
        name = errand.destination.name
        error = f"destination {name} answered the request for storage commitment with {spell(status)}"
        if archive.is_used:
            raise DoubtedError(error)
        return [error]
    _await_report(errand, archive, transaction_uid)
    return []


def _await_report(errand: Errand, archive: Archive, transaction_uid: str) -> None:
    pause = threading.Event()
    for _ in range(round(REPORT_WAIT_S / REPORT_POLL_S)):
        with errand.resources.sessions() as session:
            if queries.is_answered(session, transaction_uid):
                return
        if not archive.is_open:
            return
        pause.wait(REPORT_POLL_S)
