"""The life of a study: states, when it is complete, how often and how long a step is tried. Pure: `now` is passed in.

One job is one revision of a study. A study is complete when an image and a report are there and nothing new came for
the quiet period, or the maximum age is reached; what is used of it is decided in `selection` when it is grounded, so
that it is said at once where nothing can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
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
"""Of grounding and writing: they depend on this node alone, so what fails so often fails always."""

DELIVERY_PATIENCE = timedelta(days=7)
"""Of delivery: an archive that is away over a long weekend must not lose results."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job's row as steps and decisions see it. `step_since` is when the job came into its present state."""

    job_id: int
    study_instance_uid: str
    revision: int
    state: State
    attempts: int
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


def backoff(attempts: int) -> timedelta:
    """Return the pause after the attempt number `attempts` (from 1): 2 s, doubling, at most 15 minutes."""
    doublings = min(max(attempts, 1) - 1, 16)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def may_retry(job: JobFacts, now: datetime) -> bool:
    """Tell whether the step that failed may be tried again: deliveries for days, the others a few times."""
    if job.state == "WRITTEN":
        return now - job.step_since < DELIVERY_PATIENCE
    return job.attempts < MAX_ATTEMPTS


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
