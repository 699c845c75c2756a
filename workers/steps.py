"""The two steps of a job: ground and write. Each is read → compute → one compare-and-set commit → ring.

`ground` comes in two parts besides, so that studies can be prepared and then grounded together (`workers.batches`). A
step takes a job's number and the process's resources. It may be run at any time and any number of times: a job that
is in another state, or that somebody else works on, is left alone. No transaction is open while pixels are decoded, the
model runs or the network waits. What follows, the way to each destination, is in `workers.deliver`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from dicom_node import queries, study
from dicom_node.config import Settings
from dicom_node.errors import NotApplicableError, PermanentError, TransientError
from dicom_node.language import check_language
from dicom_node.logs import log_event
from dicom_node.orientation import Orientation, as_stored, read_orientation, tells_orientation, turn_images
from dicom_node.pixels import render
from dicom_node.report import Report, read_report
from dicom_node.results.encoding import Encoder
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr, recast_sr
from dicom_node.results.values import (
    SR_SOP_CLASSES,
    Equipment,
    Reference,
    ResultInput,
    ResultOptions,
    select_marks,
)
from dicom_node.selection import Selection, select
from dicom_node.storage import result_key
from dicom_node.study import JobFacts, State
from grounding.types import DeviceLostError, Grounding, OutOfMemoryError, PreparedStudy
from workers.counting import FailuresCounted, count_step, ground_counted
from workers.deliver import open_dispatches
from workers.reading import read_dataset, read_instances
from workers.resources import LEASE, RING_AGAIN, Resources

logger = logging.getLogger(__name__)

ADDENDUM_UNREAD = "report {uid} is an addendum alone and was not grounded: have the whole amended report sent"
ORIENTATION_UNTOLD = "image {uid} has no full Patient Orientation: it was taken to be stored as films hang"
OTHER_SIDE = "box {number} lies on the other side of the patient than its phrase says: check report and image"


@dataclass(frozen=True)
class Done:
    """What a step found out: columns of the job's row, rows to save in the same transaction, an event's detail.

    `seconds` is how long it took, where that is not the time that the work itself ran.
    """

    values: dict[str, Any] = field(default_factory=dict)
    save: Callable[[Session], None] = lambda session: None
    detail: str = ""
    seconds: float | None = None


Work = Callable[[], Done]


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
    """Run `step` for a job, if it is due for it."""
    job = claim(step, job_id, resources)
    if job is not None:
        run_claimed(step, job, lambda: step.work(job, resources), resources)


def load_model(resources: Resources) -> None:
    """Load the model before a study is claimed: a worker that is killed meanwhile was not killed by a study.

    Why a model cannot be loaded stands in the row of the job that needs it: there it is tried again.
    """
    try:
        resources.load_grounder()
    except Exception as error:  # noqa: BLE001 - it is raised again where it is noted
        log_event(logger, "model not loaded", level=logging.WARNING, reason=type(error).__name__)


def claim(step: Step, job_id: int, resources: Resources) -> JobFacts | None:
    """Take a job for this process; None if it is not there to be taken."""
    with resources.sessions.begin() as session:
        return queries.claim(session, job_id, step.state, resources.token, resources.clock(), LEASE)


def run_claimed(step: Step, job: JobFacts, work: Work, resources: Resources) -> None:
    """Do the work of `step` for a job that is claimed. What the node foresees ends in the job's row.

    Anything else is a bug: it is noted in the row, where it counts as a try, and raised.
    """
    if reason := study.quarantine_reason(f"{step.name} this study", job.deaths):
        resources.recorder.count("knowmvg_step_failures", step.name, "quarantined")
        _end(job, "FAILED", f"{reason}; then run `knowmvg jobs retry {job.job_id}`", resources)
        return
    began = time.monotonic()
    try:
        with FailuresCounted(resources.recorder, step.name):
            done = work()
    except NotApplicableError as error:
        _end(job, "NOT_APPLICABLE", str(error), resources)
    except PermanentError as error:
        _end(job, "FAILED", str(error), resources)
    except OutOfMemoryError as error:
        _end(job, "FAILED", f"quarantined: {error}; then run `knowmvg jobs retry`", resources)
    except TransientError as error:
        _try_later(job, str(error), resources, foreseen=True)
    except DeviceLostError:
        raise  # this process must end: it keeps its leases as one that died
    except Exception as error:
        reason = f"an error of the program ({type(error).__name__}); see the worker's log"
        _try_later(job, reason, resources, foreseen=False)
        raise
    else:
        _commit(step, job, done, time.monotonic() - began if done.seconds is None else done.seconds, resources)


def run_each(step: Step, claimed: Iterable[tuple[JobFacts, Work]], resources: Resources) -> list[Exception]:
    """Do the work of several claimed jobs, one after the other; return the bugs, which keep no other job from its end.

    Whoever raises the first of them logs it; the others are logged here. Raises what the database raises, and
    DeviceLostError.
    """
    bugs: list[Exception] = []
    for job, work in claimed:
        try:
            run_claimed(step, job, work, resources)
        except (*queries.DATABASE_ERRORS, DeviceLostError):
            raise
        except Exception as error:
            if bugs:
                logger.exception("step failed")
            bugs.append(error)
    return bugs


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
    count_step(resources.recorder, step.name, seconds, now - job.step_since)
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


@dataclass(frozen=True)
class Prepared:
    """A study that is ready for the model. Its pictures are not kept; `sizes` are their rows and columns."""

    study: PreparedStudy
    selection: Selection
    addenda: tuple[str, ...]
    orientations: tuple[Orientation, ...]
    sizes: tuple[tuple[int, int], ...]
    untold: tuple[str, ...]
    """Images that do not tell how they are stored."""
    seconds: float


def ground_study(job: JobFacts, resources: Resources) -> Done:
    """Find the phrases of the study's report in its images."""
    return conclude(job, (prepared := prepare_study(job, resources)), ground_alone(prepared, resources), resources)


def prepare_study(job: JobFacts, resources: Resources) -> Prepared:
    """Read what is used of a study, and make it ready for the model; any thread may do that."""
    began = time.monotonic()
    stored = read_instances(job, resources)
    selection, report, addenda = _select(stored, resources)
    check_language(report)
    datasets = [read_dataset(stored[uid], resources) for uid in selection.images]
    images, orientations = [render(ds) for ds in datasets], tuple(map(read_orientation, datasets))
    return Prepared(
        study=resources.load_grounder().prepare(turn_images(images, orientations), report.to_report_text()),
        selection=selection,
        addenda=addenda,
        orientations=orientations,
        sizes=tuple((image.shape[0], image.shape[1]) for image in images),
        untold=tuple(ds.SOPInstanceUID for ds in datasets if not tells_orientation(ds)),
        seconds=time.monotonic() - began,
    )


def ground_alone(prepared: Prepared, resources: Resources) -> Grounding:
    """Have the model ground one study."""
    return ground_counted(resources.load_grounder(), [prepared.study], resources.recorder)[0]


def ground_together(studies: Sequence[Prepared], resources: Resources) -> list[Grounding] | None:
    """Have the model ground studies at once; None where that fails, whoever's fault it is: then each goes alone."""
    try:
        return ground_counted(resources.load_grounder(), [one.study for one in studies], resources.recorder)
    except OutOfMemoryError as error:
        log_event(logger, "batch failed", level=logging.WARNING, studies=len(studies), reason=error)
    except DeviceLostError:
        raise
    except Exception:
        logger.exception("batch failed")
    return None


def conclude(
    job: JobFacts, prepared: Prepared, grounding: Grounding, resources: Resources, *, together: int = 1
) -> Done:
    """Return what was found in a study; `together`: in how many studies at once."""
    grounding = as_stored(grounding, prepared.orientations, prepared.sizes)
    selection = prepared.selection
    confidence = resources.settings.results.min_confidence
    sizes, orientations = dict(enumerate(prepared.sizes)), dict(enumerate(prepared.orientations))
    marks, _ = select_marks(grounding.findings, sizes, confidence, orientations)
    warnings = [OTHER_SIDE.format(number=mark.number) for mark in marks if mark.on_other_side]
    warnings += [ADDENDUM_UNREAD.format(uid=uid) for uid in prepared.addenda]
    warnings += [ORIENTATION_UNTOLD.format(uid=uid) for uid in prepared.untold]
    if grounding.hallucinations:
        log_event(logger, "phrases dropped", job_id=job.job_id, count=grounding.hallucinations)
    outcome = "RESULT" if marks else "NO_FINDING"  # kept with the selection, too, for a retry of what comes after
    beside = f", in a batch of {together}" if together > 1 else ""
    return Done(
        values={"selection": selection.to_json() | {"outcome": outcome, "warnings": warnings}, "outcome": outcome},
        save=lambda session: queries.save_grounding(session, job.job_id, grounding, selection.images),
        detail=f"{len(grounding.findings)} phrases, {len(marks)} boxes, {len(warnings)} warnings{beside}",
    )


def _select(
    stored: Mapping[str, queries.StoredInstance], resources: Resources
) -> tuple[Selection, Report, tuple[str, ...]]:
    """Return what is used, the report, and the reports that are addenda alone, which only reading them tells."""
    addenda: tuple[str, ...] = ()
    while True:
        selection = select((one.instance for one in stored.values()), addenda)
        report = read_report(read_dataset(stored[selection.report], resources))
        if not report.is_addendum:
            return selection, report, addenda
        if selection.report in addenda:  # there is no other
            return selection, report, tuple(uid for uid in addenda if uid != selection.report)
        addenda = (*addenda, selection.report)


# ---- write -----------------------------------------------------------------------------------------------------------


def write_results(job: JobFacts, resources: Resources) -> Done:
    """Build the results of a grounded study and file them; what there is of them already is replaced by the same."""
    result, encoder = _read_result_input(job, resources), Encoder()
    written = [
        _file(part, ds, encoder.encode(ds), job, resources) for part, ds in build_results(result, resources.settings)
    ]
    return Done(
        save=lambda session: queries.save_results(session, job.job_id, written, resources.clock()),
        detail=f"{len(written)} instances",
    )


def build_results(result: ResultInput, settings: Settings) -> Iterable[tuple[str, Dataset]]:
    """Yield each result with the name of its part; the SR in every class that an archive may want."""
    sr = build_sr(result) if settings.results.sr else None
    if sr is not None:
        yield "sr", sr
        for other in SR_SOP_CLASSES.keys() - {result.sr_class}:
            yield "sr", recast_sr(sr, replace(result, sr_class=other))
    for index, image in enumerate(result.images if settings.results.gsps else ()):
        if (gsps := build_gsps(result, index)) is not None:
            yield f"gsps:{image.SOPInstanceUID}", gsps


def _read_result_input(job: JobFacts, resources: Resources) -> ResultInput:
    stored = read_instances(job, resources)
    with resources.sessions() as session:
        grounding, image_uids = queries.load_grounding(session, job.job_id)
        previous = queries.previous_results(session, job.study_instance_uid, job.revision)
    settings = resources.settings
    header = read_dataset(stored[(job.selection or {})["report"]], resources)
    return ResultInput(
        images=tuple(read_dataset(stored[uid], resources, pixels=False) for uid in image_uids),
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


def _file(part: str, ds: Dataset, content: bytes, job: JobFacts, resources: Resources) -> queries.StoredResult:
    key = result_key(job.study_instance_uid, job.revision, ds.SOPInstanceUID)
    try:
        file = resources.storage.put(key, content)
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


GROUND = Step("ground", "gpu", "COMPLETE", ground_study)
STEPS = (GROUND, Step("write", "io", "GROUNDED", write_results))

EVENTS = {"ground": "study grounded", "write": "results written"}
