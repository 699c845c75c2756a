"""The two steps of a job: ground and write. Each is read → compute → one compare-and-set commit → ring.

A step takes a job's number and the process's resources. It may be run at any time and any number of times: a job that
is in another state, or that somebody else works on, is left alone. No transaction is open while pixels are decoded, the
model runs or the network waits. What follows, the way to each destination, is in `workers.deliver`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from io import BytesIO
from typing import Any

from pydicom import dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from dicom_node import queries, study
from dicom_node.config import Settings
from dicom_node.errors import NotApplicableError, PermanentError, TransientError
from dicom_node.file import read_dataset
from dicom_node.header import DECODE_ERRORS
from dicom_node.language import check_language
from dicom_node.logs import log_event
from dicom_node.orientation import Orientation, ground_stored, read_orientation, tells_orientation
from dicom_node.pixels import render
from dicom_node.report import Report, read_report
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr
from dicom_node.results.values import (
    SR_SOP_CLASSES,
    Equipment,
    Reference,
    ResultInput,
    ResultOptions,
    SrClass,
    select_marks,
)
from dicom_node.selection import Selection, select
from dicom_node.storage import result_key
from dicom_node.study import JobFacts, State
from grounding.types import Grounder, Grounding, Image, OutOfMemoryError
from workers.deliver import open_dispatches
from workers.resources import LEASE, RING_AGAIN, Resources

logger = logging.getLogger(__name__)

ADDENDUM_UNREAD = "report {uid} is an addendum alone and was not grounded: have the whole amended report sent"
ORIENTATION_UNTOLD = "image {uid} has no full Patient Orientation: it was taken to be stored as films hang"
OTHER_SIDE = "box {number} lies on the other side of the patient than its phrase says: check report and image"


@dataclass(frozen=True)
class Done:
    """What a step found out: columns of the job's row, rows to save in the same transaction, an event's detail."""

    values: dict[str, Any] = field(default_factory=dict)
    save: Callable[[Session], None] = lambda session: None
    detail: str = ""


@dataclass(frozen=True)
class Step:
    """One arrow of the straight path: the state it starts from, its queue, and its work."""

    name: str
    queue: str
    state: State
    work: Callable[[JobFacts, Resources], Done]

    @property
    def next_state(self) -> State:
        """The state that the job is in when the step is done."""
        return study.NEXT[self.state]


# ---- running a step --------------------------------------------------------------------------------------------------


def run_step(step: Step, job_id: int, resources: Resources) -> None:
    """Run `step` for a job, if it is due for it. What the node foresees ends in the job's row.

    Anything else is a bug: it is noted in the row, where it counts as a try, and raised.
    """
    with resources.sessions.begin() as session:
        job = queries.claim(session, job_id, step.state, resources.token, resources.clock(), LEASE)
    if job is None:
        return
    if reason := study.quarantine_reason(f"{step.name} this study", job.deaths):
        _end(job, "FAILED", f"{reason}; then run `knowmvg jobs retry {job.job_id}`", resources)
        return
    began = time.monotonic()
    try:
        done = step.work(job, resources)
    except NotApplicableError as error:
        _end(job, "NOT_APPLICABLE", str(error), resources)
    except PermanentError as error:
        _end(job, "FAILED", str(error), resources)
    except TransientError as error:
        _try_later(job, str(error), resources, foreseen=True)
    except Exception as error:
        reason = f"an error of the program ({type(error).__name__}); see the worker's log"
        _try_later(job, reason, resources, foreseen=False)
        raise
    else:
        _commit(step, job, done, time.monotonic() - began, resources)


def _commit(step: Step, job: JobFacts, done: Done, seconds: float, resources: Resources) -> None:
    """Move the job on, with all that the step found out, unless somebody else did; then ring for what follows."""
    now = resources.clock()
    values = done.values | {"timings": job.timings | {step.name: round(seconds, 3)}}
    values["due_at"] = now + RING_AGAIN  # it is rung for here

    def move(session: Session) -> tuple[bool, list[tuple[str, int]]]:
        moved = queries.advance(
            session, job.job_id, resources.token, step.state, step.next_state, now, detail=done.detail, **values
        )
        if not moved:
            return False, []
        done.save(session)
        return True, _what_follows(session, step, job, resources)

    moved, rings = resources.keep(move)
    facts: dict[str, Any] = {
        "job_id": job.job_id,
        "study_instance_uid": job.study_instance_uid,
        "seconds": round(seconds, 3),
    }
    if not moved:
        log_event(logger, "step superseded", step=step.name, **facts)
        return
    log_event(logger, EVENTS[step.name], **facts)
    for name, number in rings:
        resources.ring(name, number)


def _what_follows(session: Session, step: Step, job: JobFacts, resources: Resources) -> list[tuple[str, int]]:
    """Return what is to be rung for: the next step, or the dispatches, which are opened here."""
    if step.next_state == "WRITTEN":
        return [("deliver", dispatch_id) for dispatch_id in open_dispatches(session, job.job_id, resources)]
    return [(other.name, job.job_id) for other in STEPS if other.state == step.next_state]


def _end(job: JobFacts, state: State, failure: str, resources: Resources) -> None:
    now = resources.clock()
    if resources.keep(lambda session: queries.end_job(session, job.job_id, resources.token, state, failure, now)):
        log_event(logger, "job ended", job_id=job.job_id, study_instance_uid=job.study_instance_uid, state=state)


def _try_later(job: JobFacts, reason: str, resources: Resources, *, foreseen: bool) -> None:
    """Give the job back for its next try, or end it where it has had enough."""
    now = resources.clock()
    if not study.may_retry(job, now, foreseen=foreseen):
        _end(job, "FAILED", f"given up after {job.attempts} tries: {reason}; then run `knowmvg jobs retry`", resources)
        return
    due_at = now + study.backoff(job.attempts, f"job {job.job_id}")
    resources.keep(lambda session: queries.retry_later(session, job.job_id, resources.token, reason, due_at, now))
    log_event(
        logger,
        "step failed",
        level=logging.WARNING,
        job_id=job.job_id,
        study_instance_uid=job.study_instance_uid,
        attempt=job.attempts,
        again_at=due_at.isoformat(timespec="seconds"),
    )


# ---- ground ----------------------------------------------------------------------------------------------------------


def ground_study(job: JobFacts, resources: Resources) -> Done:
    """Find the phrases of the study's report in its images."""
    stored = _read_instances(job, resources)
    selection, report, addenda = _select(stored, resources)
    check_language(report)
    datasets = [_read_dataset(stored[uid], resources) for uid in selection.images]
    images, orientations = [render(ds) for ds in datasets], [read_orientation(ds) for ds in datasets]
    grounding = _ground(resources.load_grounder(), images, orientations, report)
    sizes = {index: (image.shape[0], image.shape[1]) for index, image in enumerate(images)}
    marks, _ = select_marks(
        grounding.findings, sizes, resources.settings.results.min_confidence, dict(enumerate(orientations))
    )
    warnings = [OTHER_SIDE.format(number=mark.number) for mark in marks if mark.on_other_side]
    warnings += [ADDENDUM_UNREAD.format(uid=uid) for uid in addenda]
    warnings += [ORIENTATION_UNTOLD.format(uid=ds.SOPInstanceUID) for ds in datasets if not tells_orientation(ds)]
    if grounding.hallucinations:
        log_event(logger, "phrases dropped", job_id=job.job_id, count=grounding.hallucinations)
    outcome = "RESULT" if marks else "NO_FINDING"  # kept with the selection, too, for a retry of what comes after
    return Done(
        values={"selection": selection.to_json() | {"outcome": outcome, "warnings": warnings}, "outcome": outcome},
        save=lambda session: queries.save_grounding(session, job.job_id, grounding, selection.images),
        detail=f"{len(grounding.findings)} phrases, {len(marks)} boxes, {len(warnings)} warnings",
    )


def _ground(grounder: Grounder, images: list[Image], orientations: list[Orientation], report: Report) -> Grounding:
    try:
        return ground_stored(grounder, images, orientations, report.to_report_text())
    except OutOfMemoryError as error:
        raise PermanentError(f"quarantined: {error}; then run `knowmvg jobs retry`") from error


def _select(
    stored: Mapping[str, queries.StoredInstance], resources: Resources
) -> tuple[Selection, Report, tuple[str, ...]]:
    """Return what is used, the report, and the reports that are addenda alone, which only reading them tells."""
    addenda: tuple[str, ...] = ()
    while True:
        selection = select((one.instance for one in stored.values()), addenda)
        report = read_report(_read_dataset(stored[selection.report], resources))
        if not report.is_addendum:
            return selection, report, addenda
        if selection.report in addenda:  # there is no other
            return selection, report, tuple(uid for uid in addenda if uid != selection.report)
        addenda = (*addenda, selection.report)


def _read_instances(job: JobFacts, resources: Resources) -> dict[str, queries.StoredInstance]:
    with resources.sessions() as session:
        instances = queries.instances_of(session, job.study_instance_uid)
    return {one.instance.sop_instance_uid: one for one in instances}


def _read_dataset(stored: queries.StoredInstance, resources: Resources, *, pixels: bool = True) -> Dataset:
    """Read an instance from storage; without `pixels`, its header."""
    if stored.removed_at is not None:
        raise PermanentError(
            f"instance {stored.instance.sop_instance_uid} was removed by the retention rule at {stored.removed_at:%F}; "
            "have the study sent again"
        )
    try:
        with resources.storage.open(stored.key) as file:
            return read_dataset(file, pixels=pixels)
    except FileNotFoundError as error:
        if not resources.storage.root.is_dir():
            raise TransientError(f"the storage {resources.storage.root} is away: mount it again") from error
        raise PermanentError(
            f"instance {stored.instance.sop_instance_uid} is missing from the storage: restore {stored.key} or have "
            "the study sent again"
        ) from error
    except (OSError, MemoryError) as error:
        raise TransientError(f"{stored.key} cannot be read from the storage ({type(error).__name__})") from error
    except DECODE_ERRORS as error:
        raise NotApplicableError(
            f"instance {stored.instance.sop_instance_uid} is damaged ({type(error).__name__}); "
            "have it sent as a new instance"
        ) from error


# ---- write -----------------------------------------------------------------------------------------------------------


def write_results(job: JobFacts, resources: Resources) -> Done:
    """Build the results of a grounded study and file them; what there is of them already is replaced by the same."""
    result = _read_result_input(job, resources)
    written = [_file(part, ds, job, resources) for part, ds in build_results(result, resources.settings)]
    return Done(
        save=lambda session: queries.save_results(session, job.job_id, written, resources.clock()),
        detail=f"{len(written)} instances",
    )


def build_results(result: ResultInput, settings: Settings) -> Iterable[tuple[str, Dataset]]:
    """Yield each result with the name of its part; the SR in every class that an archive may want."""
    sr_classes: tuple[SrClass, ...] = tuple(SR_SOP_CLASSES) if settings.results.sr else ()
    for sr_class in sr_classes:
        if (sr := build_sr(replace(result, sr_class=sr_class))) is not None:
            yield "sr", sr
    for index, image in enumerate(result.images if settings.results.gsps else ()):
        if (gsps := build_gsps(result, index)) is not None:
            yield f"gsps:{image.SOPInstanceUID}", gsps


def _read_result_input(job: JobFacts, resources: Resources) -> ResultInput:
    stored = _read_instances(job, resources)
    with resources.sessions() as session:
        grounding, image_uids = queries.load_grounding(session, job.job_id)
        previous = queries.previous_results(session, job.study_instance_uid, job.revision)
    settings = resources.settings
    header = _read_dataset(stored[(job.selection or {})["report"]], resources)
    return ResultInput(
        images=tuple(_read_dataset(stored[uid], resources, pixels=False) for uid in image_uids),
        report_header=header,
        report=read_report(header),
        grounding=grounding,
        created_at=job.step_since,
        local_timezone=job.step_since.astimezone().tzinfo or UTC,
        revision=job.revision,
        predecessors=tuple(map(_refer_to, previous)),
        equipment=Equipment(settings.node.institution, settings.node.station),
        options=ResultOptions.of(settings.results),
    )


def _refer_to(previous: queries.PreviousResult) -> Reference:
    return Reference(
        previous.sop_class_uid, previous.sop_instance_uid, previous.series_instance_uid, previous.study_instance_uid
    )


def _file(part: str, ds: Dataset, job: JobFacts, resources: Resources) -> queries.StoredResult:
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    key = result_key(job.study_instance_uid, job.revision, ds.SOPInstanceUID)
    try:
        file = resources.storage.put(key, buffer.getvalue())
    except OSError as error:
        raise TransientError(
            f"results cannot be kept in the storage ({error.strerror}): make room or mount it"
        ) from error
    return queries.StoredResult(
        part=part,
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        key=file.key,
        sha256=file.sha256,
    )


STEPS = (
    Step("ground", "gpu", "COMPLETE", ground_study),
    Step("write", "io", "GROUNDED", write_results),
)

EVENTS = {"ground": "study grounded", "write": "results written"}
