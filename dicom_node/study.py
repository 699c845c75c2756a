"""The life of a study: states, when it is complete, how often and how long a step is tried. Pure: `now` is passed in.

One job is one revision of a study. A study is complete when an image and a report are there and nothing new came for
the quiet period, or the maximum age is reached; what is used of it is decided in `selection` when it is grounded, so
that it is said at once where nothing can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from dicom_node.config import AssemblySettings
from dicom_node.errors import NotApplicableError
from dicom_node.instance import Instance
from dicom_node.selection import select_report

State = Literal["RECEIVING", "COMPLETE", "GROUNDED", "WRITTEN", "DELIVERED", "NOT_APPLICABLE", "FAILED", "CANCELLED"]

NEXT: dict[State, State] = {
    "RECEIVING": "COMPLETE",
    "COMPLETE": "GROUNDED",
    "GROUNDED": "WRITTEN",
    "WRITTEN": "DELIVERED",
}
"""The straight path; from each of these a job may also end otherwise."""

END_STATES: tuple[State, ...] = ("DELIVERED", "NOT_APPLICABLE", "FAILED", "CANCELLED")
WORKING_STATES: tuple[State, ...] = ("COMPLETE", "GROUNDED", "WRITTEN")
"""States from which a worker takes a job on."""

FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(minutes=15)

LONGEST_UNSEEN = timedelta(minutes=1)

MAX_ATTEMPTS = 5
"""Of grounding and writing where the program fails: what fails so often fails always."""

STEP_PATIENCE = timedelta(days=1)
"""Of grounding and writing where something is away or full: a disk may take an administrator's night. Deliveries have
the patience that their destination's settings say."""

MAX_DEATHS = 3
"""Workers that one piece of work may take with it before it is set aside: a fourth would die as well."""

QUARANTINED = "quarantined"
"""The word that the failure of such a job begins with."""

LONGEST_BATCH_S = 3.0

SPREAD = 0.25
"""A pause is longer or shorter by up to this share, so that what failed together does not come back together."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job's row as steps and decisions see it. `step_since` is when the job came into its present state."""

    job_id: int
    study_instance_uid: str
    revision: int
    state: State
    attempts: int
    deaths: int
    first_instance_at: datetime
    last_instance_at: datetime
    step_since: datetime
    created_at: datetime
    selection: dict[str, Any] | None
    model: dict[str, Any] | None
    outcome: str | None
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class Complete:
    """The study may be grounded. `last_instance_at` is what the verdict has seen: later arrivals void it."""

    last_instance_at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is to be done before `until`, unless something new comes."""

    last_instance_at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """The study is too old to wait on, for the reason given."""

    last_instance_at: datetime
    reason: str


Verdict = Complete | Waiting | NotApplicable


def completion(job: JobFacts, instances: Iterable[Instance], settings: AssemblySettings, now: datetime) -> Verdict:
    """Return whether the study of a job in RECEIVING may be grounded; `instances` are all of the study's."""
    missing = _describe_missing(tuple(instances), settings)
    quiet_at = job.last_instance_at + timedelta(seconds=settings.quiet_period_s)
    oldest_at = job.first_instance_at + timedelta(seconds=settings.max_age_s)
    if missing is None:
        until = min(quiet_at, oldest_at)
        return Complete(job.last_instance_at) if now >= until else Waiting(job.last_instance_at, until)
    if now < oldest_at:
        return Waiting(job.last_instance_at, oldest_at)
    return NotApplicable(job.last_instance_at, missing)


def look_again_at(first_instance_at: datetime, now: datetime, quiet_period: timedelta) -> datetime:
    """Return when a study is looked at that something came for at `now`: after the quiet period.

    A study that something keeps coming for is looked at all the same, so that its maximum age is seen.
    """
    return max(now, min(now + quiet_period, first_instance_at + LONGEST_UNSEEN))


def backoff(attempts: int, key: str = "") -> timedelta:
    """Return the pause after the attempt number `attempts` (from 1): 2 s, doubling, at most 15 minutes.

    With `key` the pause is spread: by up to a quarter more or less, always the same for the same key and attempt.
    """
    doublings = min(max(attempts, 1) - 1, 16)
    pause = min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)
    if not key:
        return pause
    share = int.from_bytes(sha256(f"{key} {attempts}".encode()).digest()[:4], "big") / 2**32
    return pause * (1 - SPREAD + 2 * SPREAD * share)


def may_retry(job: JobFacts, now: datetime, *, foreseen: bool) -> bool:
    """Tell whether a step that failed may be tried again: for a day where the failure was foreseen (something is away),
    a few times where it was a bug."""
    return now - job.step_since < STEP_PATIENCE if foreseen else job.attempts < MAX_ATTEMPTS


def batch_size(wanted: int, seconds_each: float | None) -> int:
    """Return how many studies are grounded at once: `wanted`, but not more than are done in a few seconds, by how long
    one took lately. An order to stop, and a study that is urgent, wait no longer than that."""
    return wanted if not seconds_each else max(1, min(wanted, int(LONGEST_BATCH_S / seconds_each)))


def quarantine_reason(work: str, deaths: int) -> str | None:
    """Return why work that took its worker with it so often is set aside, or None while it may be tried again."""
    if deaths < MAX_DEATHS:
        return None
    return (
        f"{QUARANTINED}: the worker died or hung {deaths} times while it tried to {work}; see its log, and look for "
        "memory (a worker that the system kills leaves no line) before it is retried"
    )


def _describe_missing(instances: tuple[Instance, ...], settings: AssemblySettings) -> str | None:
    """Return in plain words what the study lacks after the maximum age, or None if it lacks nothing."""
    waited = f"within {settings.max_age_s:g} s (assembly.max_age_s)"
    if not any(instance.role == "image" for instance in instances):
        named = sorted({uid for one in instances if one.role == "report" for uid in one.evidence_studies})
        elsewhere = f"; the report names images of study {', '.join(named)}: see its job" if named else ""
        return f"no image arrived {waited} of the report; the study is taken up again when one comes{elsewhere}"
    if not any(instance.role == "report" for instance in instances):
        return f"no report arrived {waited} of the image; the study is taken up again when one comes"
    try:
        select_report(instances)
    except NotApplicableError as error:
        return f"no complete report arrived {waited}: {error}"
    return None
