"""The way of results to one destination: send what it lacks, have it confirmed, try again or give up.

A dispatch (the results of a job, one destination) has its own row, schedule and lease, so that no destination waits for
another. Each try is claim → one association → one commit; what the archive took is kept at once, before it is asked to
confirm, so that a report that comes on another association finds what it is about.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from dicom_node import queries, study
from dicom_node.clock import derive_uid
from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import DestinationSettings
from dicom_node.confirmation import take_report
from dicom_node.delivery import PartState, read_status
from dicom_node.errors import AbsentError, PermanentError, TransientError
from dicom_node.logs import log_event
from dicom_node.queries import Delivery, DispatchFacts
from dicom_node.scu import STUDY_ROOT_FIND, Archive, Candidate, Finding, Part, prefer, spell
from workers.resources import LEASE, Resources

logger = logging.getLogger(__name__)

OPEN_AGAIN = timedelta(hours=1)
"""After so long a WRITTEN job is looked at again for destinations that were configured since."""

REPORT_WAIT_S = 2.0
"""How long the association is held for a report of storage commitment; later ones come on another, which the receiver
takes."""
REPORT_POLL_S = 0.05

DUPLICATE = 0x0111
"""Duplicate SOP instance (PS3.7 C.5.8): under this UID the archive may hold anything."""

PROCESSING_FAILURE = 0x0110
"""What some archives answer to an SR class that they accepted and cannot read: the other class is tried."""

UNCONFIRMED: dict[Finding, str] = {
    "absent": "does not find it in a query yet",
    "unknown": "did not answer the query for it",
}
"""What a query comes to that confirms nothing now, and may the next time."""

NO_DESTINATION = "no destination is configured: add one under `destinations`, restart, and run `knowmvg jobs retry`"
REPLAY = "look for the reason in the archive's log, then run `knowmvg deliveries replay {}`"


@dataclass(frozen=True)
class Errand:
    """One try at a dispatch."""

    dispatch: DispatchFacts
    destination: DestinationSettings
    parts: dict[str, Part]
    resources: Resources


def open_dispatches(session: Session, job_id: int, resources: Resources) -> tuple[int, ...]:
    """Open the dispatches of a job whose results are written, and return those that are to be rung for.

    A job without results is DELIVERED by this, one with nowhere to go FAILED; one that was cancelled has none.
    """
    if not queries.is_written(session, job_id):
        return ()
    now = resources.clock()
    names = [destination.name for destination in resources.settings.destinations]
    opened = queries.open_dispatches(session, job_id, names, now)
    if not names:
        queries.fail_delivery(session, job_id, NO_DESTINATION, now)
    queries.note_opened(session, job_id, now + OPEN_AGAIN)
    return opened


def deliver_results(dispatch_id: int, resources: Resources) -> None:
    """Make one try at a dispatch, if it is due for it. What the node foresees ends in its row; a bug is raised."""
    with resources.sessions.begin() as session:
        dispatch = queries.claim_dispatch(session, dispatch_id, resources.token, resources.clock(), LEASE)
    if dispatch is None:
        return
    if reason := study.quarantine_reason(f"deliver to {dispatch.destination}", dispatch.deaths):
        _end(dispatch, resources, f"{reason}; then run `knowmvg deliveries replay {dispatch_id}`", give_up=True)
        return
    try:
        _try(dispatch, resources)
    except AbsentError as error:
        _hold(dispatch, str(error), resources)
    except TransientError as error:
        _end(dispatch, resources, str(error))
    except PermanentError as error:
        _end(dispatch, resources, str(error), give_up=True)
    except Exception as error:
        _end(dispatch, resources, f"an error of the program ({type(error).__name__}); see the worker's log")
        raise


def _try(dispatch: DispatchFacts, resources: Resources) -> None:
    errand = Errand(dispatch, _find_destination(dispatch, resources), _read_parts(dispatch, resources), resources)
    deliveries = _load(errand)
    classes = {candidate.sop_class_uid for part in errand.parts.values() for candidate in part.candidates}
    on_report = functools.partial(
        take_report,
        ae_title=errand.destination.ae_title.strip(),
        settings=resources.settings,
        sessions=resources.sessions,
        clock=resources.clock,
    )
    calling = resources.settings.receiver.ae_title
    wanted = [*sorted(classes), *_services(errand.destination)]
    with resources.connect(errand.destination, wanted, calling, on_report) as archive:
        _note_contact(errand)
        errors = _send(errand, archive, [one for one in deliveries if one.state == "PENDING"])
        errors += _confirm(errand, archive)
        broke_off = not archive.is_open
    reason = "; ".join(dict.fromkeys(errors))
    if broke_off and errors:  # it stalls, or drops associations: the next one would fare no better now
        _hold(dispatch, reason, resources)
    else:
        _end(dispatch, resources, reason)


def _find_destination(dispatch: DispatchFacts, resources: Resources) -> DestinationSettings:
    found = next((one for one in resources.settings.destinations if one.name == dispatch.destination), None)
    if found is None:
        raise PermanentError(
            f"destination {dispatch.destination} is no longer configured: add it under `destinations` again, or "
            "deliver to the present ones by `knowmvg jobs retry`"
        )
    return found


def _services(destination: DestinationSettings) -> list[str]:
    """Return what is proposed besides the classes of the results: the ways of confirmation that are wanted."""
    if not destination.commitment:
        return []
    ways = {"auto": [PUSH_MODEL, STUDY_ROOT_FIND], "commitment": [PUSH_MODEL], "query": [STUDY_ROOT_FIND]}
    return ways[destination.confirmation]


def _read_parts(dispatch: DispatchFacts, resources: Resources) -> dict[str, Part]:
    with resources.sessions() as session:
        results = queries.load_results(session, dispatch.job_id)
    missing = [one.sop_instance_uid for one in results if not resources.storage.exists(one.key)]
    if missing:
        if not resources.storage.root.is_dir():
            raise TransientError(f"the storage {resources.storage.root} is away: mount it again")
        raise PermanentError(f"result {missing[0]} is missing from the storage: restore it from the backup")
    return group_parts(results, resources)


def group_parts(results: Iterable[queries.StoredResult], resources: Resources) -> dict[str, Part]:
    """Return the parts of a job's results by name, each with what it may be sent as."""
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for one in results:
        candidate = Candidate(
            one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid, resources.storage.path(one.key)
        )
        candidates[one.part] = (*candidates.get(one.part, ()), candidate)
    return {name: Part(name, of_part) for name, of_part in candidates.items()}


def _load(errand: Errand) -> tuple[Delivery, ...]:
    with errand.resources.sessions() as session:
        return queries.load_deliveries(session, errand.dispatch.job_id, errand.destination.name)


def _note_contact(errand: Errand) -> None:
    with errand.resources.sessions.begin() as session:
        queries.note_contact(session, errand.destination.name, errand.resources.clock())


# ---- sending ---------------------------------------------------------------------------------------------------------


def _send(errand: Errand, archive: Archive, deliveries: Iterable[Delivery]) -> list[str]:
    """Send what is PENDING, keep what the archive answered, and return what went wrong."""
    with errand.resources.sessions() as session:
        accepted = queries.accepted_sr_class(session, errand.destination.name)
    sent = [
        _send_part(errand, archive, prefer(errand.parts[one.part], errand.destination, accepted), one)
        for one in deliveries
        if one.part in errand.parts
    ]
    _keep(errand, (delivery for delivery, _ in sent))
    return [error for _, error in sent if error]


def _keep(errand: Errand, deliveries: Iterable[Delivery]) -> None:
    with errand.resources.sessions.begin() as session:
        for one in deliveries:
            queries.mark_delivery(session, errand.dispatch.job_id, one, errand.resources.clock())


def _send_part(errand: Errand, archive: Archive, part: Part, delivery: Delivery) -> tuple[Delivery, str]:
    """Send the first candidate that the archive takes; return what became of it, and what went wrong."""
    refused: tuple[Delivery, str] | None = None
    for candidate in _candidates(part, delivery):
        if not archive.accepts(candidate.sop_class_uid):
            continue
        status = archive.store(candidate)
        meaning = read_status(status)
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
    return replace(delivery, state="FAILED", status=None, detail="its SOP class is not accepted"), reason


# ---- confirmation ----------------------------------------------------------------------------------------------------


def _confirm(errand: Errand, archive: Archive) -> list[str]:
    """Have the archive confirm what it took: by commitment, else by a query, else by its C-STORE response alone.

    Storage commitment may be reported later; what was asked for and not reported in time is asked for by a query, too.
    """
    stored = [one for one in _load(errand) if one.state == "STORED" and one.sop_instance_uid]
    if not stored:
        return []
    if not errand.destination.commitment:
        return _confirm_by_store(errand, stored)
    errors = list[str]()
    if errand.dispatch.state == "CONFIRMING" and archive.accepts(STUDY_ROOT_FIND):
        stored, errors = _look_for_overdue(errand, archive, stored)
    if not stored:
        return errors
    if not archive.is_open:
        return [*errors, f"destination {errand.destination.name} broke off the association before it confirmed anything"]
    if archive.accepts(PUSH_MODEL):
        return errors + _ask_commitment(errand, archive, stored)
    return errors + _confirm_without_commitment(errand, archive, stored)


def _look_for_overdue(
    errand: Errand, archive: Archive, stored: Sequence[Delivery]
) -> tuple[Sequence[Delivery], list[str]]:
    """Ask for what is overdue to be reported; return what is still to be confirmed, and what went wrong."""
    name = errand.destination.name
    findings = _confirm_by_query(errand, archive, stored)
    lost = [one for one, finding in findings if finding == "absent"]
    _keep(errand, (replace(one, state="PENDING", detail="a query did not find it") for one in lost))
    errors = [f"destination {name} took {one.part} but has lost it: it is sent again" for one in lost]
    return [one for one, finding in findings if finding != "absent"], errors


def _confirm_without_commitment(errand: Errand, archive: Archive, stored: Sequence[Delivery]) -> list[str]:
    name = errand.destination.name
    if not archive.accepts(STUDY_ROOT_FIND):
        return _confirm_by_store(errand, stored)
    findings = _confirm_by_query(errand, archive, stored)
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
    _keep(errand, (replace(one, state="DELIVERED", confirmed_by="store") for one in held))
    doubtful = [one for one in stored if one.status == DUPLICATE]
    return [f"destination {name} says it has {one.part} already, and confirms nothing" for one in doubtful]


def _confirm_by_query(
    errand: Errand, archive: Archive, stored: Iterable[Delivery]
) -> list[tuple[Delivery, Finding]]:
    """Confirm what a query finds; return the others, each with what the query came to."""
    others = []
    for one in stored:
        candidate = _candidate_of(errand, one)
        finding = archive.find(errand.dispatch.study_instance_uid, candidate) if candidate else "absent"
        if finding == "present":
            _keep(errand, [replace(one, state="DELIVERED", confirmed_by="query")])
        else:
            others.append((one, finding))
    return others


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
        "commitment", resources.token, str(dispatch.dispatch_id), str(dispatch.attempts), now.isoformat()
    )
    with resources.sessions.begin() as session:
        queries.note_asked(session, dispatch.dispatch_id, transaction_uid, now)
    status = archive.ask_commitment(transaction_uid, references)
    if status != 0x0000:
        return [
            f"destination {errand.destination.name} answered the request for storage commitment with {spell(status)}"
        ]
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


# ---- the end of a try ------------------------------------------------------------------------------------------------


def _end(dispatch: DispatchFacts, resources: Resources, failure: str, *, give_up: bool = False) -> None:
    """Keep what the try came to; the row's parts say what follows."""
    _commit(dispatch, resources, failure, resources.clock(), give_up=give_up)


def _hold(dispatch: DispatchFacts, failure: str, resources: Resources) -> None:
    """Nobody is there, or answers: hold everything for this destination, and nothing else."""
    now = resources.clock()
    with resources.sessions.begin() as session:
        queries.hold_destination(session, dispatch.destination, failure, now)
    _commit(dispatch, resources, failure, now, give_up=False)


def _commit(dispatch: DispatchFacts, resources: Resources, failure: str, now: datetime, *, give_up: bool) -> None:
    destination = next((one for one in resources.settings.destinations if one.name == dispatch.destination), None)
    out_of_patience = destination is not None and now - dispatch.since >= timedelta(seconds=destination.patience_s)
    report_within = timedelta(seconds=destination.report_within_s if destination else 0)
    pause = study.backoff(dispatch.attempts, f"dispatch {dispatch.dispatch_id}")
    advice = REPLAY.format(dispatch.dispatch_id)
    why = failure or NOT_CONFIRMED
    if out_of_patience:
        why = f"given up after {dispatch.attempts} tries: {why}"
    ending = queries.Ending(
        now + pause, now + report_within, why, "" if "knowmvg" in why else f": {advice}", give_up or out_of_patience
    )
    with resources.sessions.begin() as session:
        state = queries.end_try(session, dispatch, resources.token, ending, now)
    _log(dispatch, resources, state, failure)


NOT_CONFIRMED = "the archive took the results but has not confirmed them yet"


def _log(dispatch: DispatchFacts, resources: Resources, state: str | None, failure: str) -> None:
    event = {"DELIVERED": "results delivered", "DEAD": "delivery given up", "CONFIRMING": "results taken"}.get(
        state or "", "delivery will be tried again" if state == "PENDING" else "delivery superseded"
    )
    log_event(
        logger, event, level=logging.WARNING if failure else logging.INFO, dispatch_id=dispatch.dispatch_id,
        job_id=dispatch.job_id, destination=dispatch.destination, attempt=dispatch.attempts, reason=failure or None,
    )  # fmt: skip
