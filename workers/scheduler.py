"""The sweep: one cheap look at the rows that are due. It frees the leases of the dead, closes studies, and rings.

Any number of schedulers may run: what they do is compare-and-set, or a ring too many, which is harmless.
"""

from __future__ import annotations

import logging

from dicom_node import queries, study
from dicom_node.logs import log_event
from workers.ownership import is_alive
from workers.resources import RING_AGAIN, Resources
from workers.steps import STEPS

logger = logging.getLogger(__name__)

BATCH = 200
"""Rows looked at in one sweep; the rest waits for the next."""


def sweep(resources: Resources) -> None:
    """Look once at everything that is due."""
    free_leases_of_the_dead(resources)
    close_studies(resources)
    ring_for_due_jobs(resources)


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
            instances = [one.instance for one in queries.instances_of(session, job.study_instance_uid)]
        verdict = study.completion(job, instances, settings, now)
        with resources.sessions.begin() as session:
            closed = queries.close_job(session, job.job_id, verdict, now)
        if closed and not isinstance(verdict, study.Waiting):
            event = "study complete" if isinstance(verdict, study.Complete) else "study not applicable"
            log_event(
                logger, event, job_id=job.job_id, study_instance_uid=job.study_instance_uid, revision=job.revision
            )


def ring_for_due_jobs(resources: Resources) -> None:
    """Ring for every job that is due and nobody works on; each again only after a while."""
    steps = {step.state: step.name for step in STEPS}
    now = resources.clock()
    with resources.sessions.begin() as session:
        due = queries.jobs_to_ring(session, now, BATCH)
        queries.rung(session, [job_id for job_id, _ in due], now, now + RING_AGAIN)
    for job_id, state in due:
        resources.ring(steps[state], job_id)
