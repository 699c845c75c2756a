"""The way of results to one destination: send what it lacks, have it confirmed, try again or give up.

A dispatch (the results of a job, one destination) has its own row, schedule and lease, so that no destination waits for
another. Each try is claim → one association → one commit; what the archive took is kept at once, before it is asked to
confirm, so that a report that comes on another association finds what it is about.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from dicom_node import queries, study
from dicom_node.config import DestinationSettings
from dicom_node.confirmation import take_report
from dicom_node.errors import AbsentError, PermanentError, TransientError
from dicom_node.logs import log_event
from dicom_node.queries import DispatchFacts
from dicom_node.recorder import Recorder
from dicom_node.scu import Archive, Candidate, Part
from workers.confirming import DoubtedError, confirm, services
from workers.counting import OUTCOMES
from workers.errand import Errand
from workers.resources import LEASE, Resources
from workers.sending import send

logger = logging.getLogger(__name__)

OPEN_AGAIN = timedelta(hours=1)
"""After so long a WRITTEN job is looked at again for destinations that were configured since."""

AGAIN_WITHIN_S = LEASE.total_seconds() / 3
"""So long after its beginning a try may begin anew on another association: all of it fits into the lease then."""

NO_DESTINATION = "no destination is configured: add one under `destinations`, restart, and run `knowmvg jobs retry`"
REPLAY = "look for the reason in the archive's log, then run `knowmvg deliveries replay {}`"


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
        queries.cancel_dispatches(session, [job_id], now)
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
    began = time.monotonic()
    try:
        _try(dispatch, resources, began)
        resources.recorder.observe("knowmvg_step_seconds", time.monotonic() - began, "deliver")
    except AbsentError as error:
        _hold(dispatch, str(error), resources)
    except TransientError as error:
        _end(dispatch, resources, str(error))
    except PermanentError as error:
        _end(dispatch, resources, str(error), give_up=True)
    except Exception as error:
        _end(dispatch, resources, f"an error of the program ({type(error).__name__}); see the worker's log")
        raise


def _try(dispatch: DispatchFacts, resources: Resources, began: float) -> None:
    errand = Errand(dispatch, _find_destination(dispatch, resources), _read_parts(dispatch, resources), resources)
    classes = {candidate.sop_class_uid for part in errand.parts.values() for candidate in part.candidates}
    on_report = functools.partial(
        take_report,
        ae_title=errand.destination.ae_title.strip(),
        settings=resources.settings,
        sessions=resources.sessions,
        clock=resources.clock,
        recorder=resources.recorder,
    )
    calling = resources.settings.receiver.ae_title
    wanted = [*sorted(classes), *services(errand.destination)]
    try:
        with resources.connect(errand.destination, wanted, calling, on_report) as archive:
            if not (was_used := archive.is_used):
                _note_contact(errand)
            errors = _ask(errand, archive, began)
            broke_off = not archive.is_open
    except DoubtedError:
        _try(dispatch, resources, began)
        return
    reason = "; ".join(dict.fromkeys(errors))
    if broke_off and errors and was_used and _may_try_again(began):  # it may go on with a new one
        _try(dispatch, resources, began)
    elif broke_off and errors and not was_used:  # it stalls, or drops associations: the next one would fare no better
        _hold(dispatch, reason, resources)
    else:
        _end(dispatch, resources, reason)


def _ask(errand: Errand, archive: Archive, began: float) -> list[str]:
    """Send what is to be sent, and have it confirmed; return what went wrong.

    Raises DoubtedError where an association refuses that others were served on, if there is time to begin anew: an
    archive that takes one study on each says so in many ways, of which none is about this study.
    """
    pending = [one for one in errand.load() if one.state == "PENDING"]
    errors = send(errand, archive, pending)
    if errors and archive.is_used:
        failed = {one.part for one in errand.load() if one.state == "FAILED"}
        errand.keep([one for one in pending if one.part in failed])
        if archive.is_open and _may_try_again(began):
            raise DoubtedError
    try:
        return errors + confirm(errand, archive)
    except DoubtedError as doubt:
        if _may_try_again(began):
            raise
        return [*errors, str(doubt)]


def _may_try_again(began: float) -> bool:
    """Tell whether the lease leaves time for all of it once more."""
    return time.monotonic() - began < AGAIN_WITHIN_S


def _find_destination(dispatch: DispatchFacts, resources: Resources) -> DestinationSettings:
    found = next((one for one in resources.settings.destinations if one.name == dispatch.destination), None)
    if found is None:
        raise PermanentError(
            f"destination {dispatch.destination} is no longer configured: add it under `destinations` again, or "
            "deliver to the present ones by `knowmvg jobs retry`"
        )
    return found


def _read_parts(dispatch: DispatchFacts, resources: Resources) -> dict[str, Part]:
    with resources.sessions() as session:
        results = queries.load_results(session, dispatch.job_id)
    try:
        missing = [one.sop_instance_uid for one in results if not resources.storage.exists(one.key)]
    except OSError as error:
        raise TransientError(f"the results cannot be read from the storage ({error.strerror})") from error
    if missing:
        if fault := resources.storage.find_fault():
            raise TransientError(fault)
        raise PermanentError(f"result {missing[0]} is missing from the storage: restore it from the backup")
    return group_parts(results, resources)


def group_parts(results: Iterable[queries.StoredResult], resources: Resources) -> dict[str, Part]:
    """Return the parts of a job's results by name, each with what it may be sent as."""
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for one in results:
        candidate = Candidate(
            one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid,
            functools.partial(resources.storage.open, one.key),
        )  # fmt: skip
        candidates[one.part] = (*candidates.get(one.part, ()), candidate)
    return {name: Part(name, of_part) for name, of_part in candidates.items()}


def _note_contact(errand: Errand) -> None:
    with errand.resources.sessions.begin() as session:
        queries.note_contact(session, errand.destination.name, errand.resources.clock())


# ---- the end of a try ------------------------------------------------------------------------------------------------


def _end(dispatch: DispatchFacts, resources: Resources, failure: str, *, give_up: bool = False) -> None:
    """Keep what the try came to; the row's parts say what follows."""
    _commit(dispatch, resources, failure, resources.clock(), give_up=give_up)


def _hold(dispatch: DispatchFacts, failure: str, resources: Resources) -> None:
    """Nobody is there, or answers: hold everything for this destination, and nothing else."""
    now = resources.clock()
    resources.keep(lambda session: queries.hold_destination(session, dispatch.destination, failure, now))
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

    def end(session: Session) -> tuple[str | None, tuple[queries.Delivery, ...]]:
        state = queries.end_try(session, dispatch, resources.token, ending, now)
        confirmed = state == "DELIVERED"
        return state, queries.load_deliveries(session, dispatch.job_id, dispatch.destination) if confirmed else ()

    state, parts = resources.keep(end)
    _count(dispatch, resources.recorder, (state, parts), now)
    _log(dispatch, resources, state, failure)


def _count(
    dispatch: DispatchFacts, recorder: Recorder, ended: tuple[str | None, tuple[queries.Delivery, ...]], now: datetime
) -> None:
    state, parts = ended
    recorder.count("knowmvg_delivery_tries", dispatch.destination, OUTCOMES.get(state or "", "superseded"))
    if state == "DELIVERED":
        how = "+".join(sorted({one.confirmed_by or "none" for one in parts}))
        recorder.count("knowmvg_deliveries", dispatch.destination, how)
        recorder.observe("knowmvg_stage_seconds", (now - dispatch.since).total_seconds(), "delivered")


NOT_CONFIRMED = "the archive took the results but has not confirmed them yet"


def _log(dispatch: DispatchFacts, resources: Resources, state: str | None, failure: str) -> None:
    event = {"DELIVERED": "results delivered", "DEAD": "delivery given up", "CONFIRMING": "results taken"}.get(
        state or "", "delivery will be tried again" if state == "PENDING" else "delivery superseded"
    )
    log_event(
        logger, event, level=logging.WARNING if failure else logging.INFO, dispatch_id=dispatch.dispatch_id,
        job_id=dispatch.job_id, destination=dispatch.destination, attempt=dispatch.attempts, reason=failure or None,
    )  # fmt: skip
