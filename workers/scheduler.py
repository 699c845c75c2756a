"""The sweep: one cheap look at the rows that are due. It frees the leases of the dead, closes studies, opens
dispatches, rings, and lets the retention rule remove what is no longer needed.

Any number of schedulers may run: what they do is compare-and-set, or a ring too many, which is harmless.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from dicom_node import queries, study
from dicom_node.logs import log_event
from dicom_node.priority import urgency_of
from dicom_node.storage import Storage
from workers.deliver import open_dispatches
from workers.ownership import is_alive
from workers.resources import RING_AGAIN, RING_SOON, Resources
from workers.steps import STEPS

logger = logging.getLogger(__name__)

SWEEP_S = 1.0
"""Between two looks at the rows that are due, at most."""

SOON_S = 0.1
"""… and at least: a stream of studies does not make them without end."""

BATCH = 200
"""Rows looked at in one sweep; the rest waits for the next."""

LOOK = 500
"""Instances whose studies the retention rule looks at in one transaction."""


def sweep(resources: Resources) -> None:
    """Look once at everything that is due."""
    free_leases_of_the_dead(resources)
    close_studies(resources)
    open_written_jobs(resources)
    ring_for_due_jobs(resources)
    ring_for_due_errands(resources)
    queries.copy_log(resources.sessions)
    resources.recorder.set("knowmvg_scheduler_swept_timestamp_seconds", resources.clock().timestamp())


def pause_s(resources: Resources) -> float:
    """Return how long the next sweep may wait: until the next study's quiet period is over, SWEEP_S at most."""
    now = resources.clock()
    with resources.sessions() as session:
        due_at = queries.next_receiving(session, now)
    return SWEEP_S if due_at is None else min(max((due_at - now).total_seconds(), SOON_S), SWEEP_S)


def free_leases_of_the_dead(resources: Resources) -> None:
    """Give jobs back whose worker on this host has died; elsewhere they wait for the end of the lease."""
    if resources.owners is None:
        return
    with resources.sessions() as session:
        tokens = queries.lease_tokens(session)
    for token in tokens:
        if not is_alive(resources.owners, token):
            with resources.sessions.begin() as session:
                freed = queries.free_leases(session, token, resources.clock())
            log_event(logger, "worker died", level=logging.WARNING, jobs=freed)


def close_studies(resources: Resources) -> None:
    """Move the studies on that are complete, or that waited too long for what is missing."""
    now, settings = resources.clock(), resources.settings.assembly
    with resources.sessions() as session:
        jobs = queries.due_receiving(session, now, BATCH)
    for job in jobs:
        with resources.sessions() as session:
            stored = queries.instances_of(session, job.study_instance_uid)
        verdict = study.completion(job, [one.instance for one in stored], settings, now)
        urgency = urgency_of(((one.instance, one.calling_ae_title) for one in stored), resources.settings.priority)
        with resources.sessions.begin() as session:
            closed = queries.close_job(session, job.job_id, verdict, now, urgency)
        if closed and isinstance(verdict, study.Complete):
            waited = now - job.first_instance_at
            resources.recorder.observe("knowmvg_stage_seconds", waited.total_seconds(), "complete")
        if closed and not isinstance(verdict, study.Waiting):
            event = "study complete" if isinstance(verdict, study.Complete) else "study not applicable"
            log_event(
                logger, event, job_id=job.job_id, study_instance_uid=job.study_instance_uid, revision=job.revision,
                priority=urgency.priority,
            )  # fmt: skip


def ring_for_due_jobs(resources: Resources) -> None:
    """Ring for every job that is due and nobody works on; each again only after a while."""
    steps = {step.state: step.name for step in STEPS}
    now = resources.clock()
    with resources.sessions.begin() as session:
        due = queries.jobs_to_ring(session, now, BATCH)
        queries.rung(session, [job_id for job_id, _ in due], now, now + RING_AGAIN)
    unheard = _ring([(steps[state], job_id) for job_id, state in due], resources)
    if unheard:
        with resources.sessions.begin() as session:
            queries.rung(session, unheard, now + RING_AGAIN, now + RING_SOON)


def open_written_jobs(resources: Resources) -> None:
    """Open the dispatches of jobs that are WRITTEN: retried ones, and those for destinations that are new."""
    with resources.sessions() as session:
        job_ids = queries.undispatched_jobs(session, resources.clock(), BATCH)
    for job_id in job_ids:
        with resources.sessions.begin() as session:
            open_dispatches(session, job_id, resources)


def ring_for_due_errands(resources: Resources) -> None:
    """Ring for every dispatch, and every storage commitment asked for, that is due and that nobody works on."""
    now = resources.clock()
    with resources.sessions.begin() as session:
        dispatches = queries.dispatches_to_ring(session, now, BATCH)
        queries.dispatches_rung(session, dispatches, now, now + RING_AGAIN)
        requests = queries.requests_to_ring(session, now, BATCH)
        queries.requests_rung(session, requests, now + RING_AGAIN)
    unheard = _ring([("deliver", dispatch_id) for dispatch_id in dispatches], resources)
    untold = _ring([("tell", request_id) for request_id in requests], resources)
    if unheard or untold:
        with resources.sessions.begin() as session:
            queries.dispatches_rung(session, unheard, now + RING_AGAIN, now + RING_SOON)
            queries.requests_rung(session, untold, now + RING_SOON)


def _ring(rings: Sequence[tuple[str, int]], resources: Resources) -> list[int]:
    """Ring, and return the numbers that went unheard: all from the first, so that not each waits for a broker."""
    for position, (task, number) in enumerate(rings):
        if not resources.ring(task, number):
            return [number for _, number in rings[position:]]
    return []


def apply_retention(resources: Resources) -> None:
    """Remove received bytes whose results every destination has confirmed long enough ago; rows stay."""
    days = resources.settings.retention.inputs_days
    if days is None:
        return
    before, removed, last = resources.clock() - timedelta(days=days), 0, None
    while removed < BATCH:  # those that cannot be removed are passed over: others do not wait for them
        with resources.sessions() as session:
            kept = queries.kept_studies(session, before, last, LOOK)
            studies = queries.removable_studies(session, before, {study for _, study in kept}) if kept else ()
        removed += sum(_remove_inputs(resources, study_instance_uid, before) for study_instance_uid in studies)
        if len(kept) < LOOK:
            return
        last = kept[-1]


def _remove_inputs(resources: Resources, study_instance_uid: str, before: datetime) -> int:
    remove = functools.partial(_remove, resources.storage)
    with resources.sessions.begin() as session:
        removed = queries.remove_inputs(session, study_instance_uid, before, remove, resources.clock())
    if removed:
        log_event(logger, "inputs removed", study_instance_uid=study_instance_uid, count=removed)
    return removed


def _remove(storage: Storage, key: str) -> bool:
    """Remove a file, and tell whether that could be done; the others need not wait for it."""
    try:
        storage.remove(key)
    except OSError as error:
        log_event(logger, "input cannot be removed", level=logging.WARNING, key=key, reason=error.strerror)
        return False
    return True
