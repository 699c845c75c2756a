"""How urgent a study is, by what its instances and their senders say, and which of the jobs that wait come next. Pure.

No phrase of a report counts: only what the order said (in headers and in the C-STORE), and rules of the configuration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dicom_node.config import PrioritySettings
from dicom_node.instance import Instance

Priority = Literal["STAT", "ROUTINE"]

PRIORITIES: tuple[Priority, ...] = ("STAT", "ROUTINE")
"""The first comes first."""

URGENT = ("STAT", "HIGH")
"""Values of Requested Procedure Priority, and of the retired Study Priority ID (it has no STAT), that count as STAT."""

PLACES = 4
"""Every so many places one is kept for a routine study that has waited too long: neither then waits for ever."""


@dataclass(frozen=True, slots=True)
class Urgency:
    """How urgent a study is, and who says so."""

    priority: Priority = "ROUTINE"
    why: str = ""


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits for a worker, and since when."""

    job_id: int
    priority: Priority
    since: datetime


def urgency_of(received: Iterable[tuple[Instance, str]], settings: PrioritySettings) -> Urgency:
    """Return how urgent a study is; `received` are its instances with the calling AE titles of who sent them.

    A rule of the configuration counts before what headers say, and these before the priority of a C-STORE.
    """
    used = [(instance, sender) for instance, sender in received if instance.role != "other"]
    senders = {sender for _, sender in used}
    for rule in settings.rules:
        if rule.calling_ae_title in senders:
            return Urgency(rule.priority, f"rule for {rule.calling_ae_title}")
    if settings.header and any(instance.procedure_priority in URGENT for instance, _ in used):
        return Urgency("STAT", "priority of the order, in a header")
    if settings.c_store and any(instance.c_store_priority == "HIGH" for instance, _ in used):
        return Urgency("STAT", "priority of a C-STORE")
    return Urgency()


def choose_next(
    waiting: Iterable[WaitingJob], room: int, now: datetime, longest_wait: timedelta, given: int = 0
) -> tuple[int, ...]:
    """Return the jobs that come next, at most `room`: STAT before routine, of each what waits longest.

    Of every four places one is kept for a routine job that has waited longer than `longest_wait`; `given` is how many
    places were given before.
    """
    by_age = sorted(waiting, key=lambda job: (job.since, job.job_id))
    urgent = deque(job for job in by_age if job.priority == "STAT")
    routine = deque(job for job in by_age if job.priority != "STAT")
    chosen: list[int] = []
    while len(chosen) < room and (urgent or routine):
        is_kept = (given + len(chosen)) % PLACES == PLACES - 1
        is_overdue = bool(routine) and now - routine[0].since > longest_wait
        line = routine if not urgent or (is_kept and is_overdue) else urgent
        chosen.append(line.popleft().job_id)
    return tuple(chosen)
