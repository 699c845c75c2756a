"""How the work of a worker is counted: what a step failed of, what archives answered, what came of a delivery."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from dicom_node.delivery import UNKNOWN_STATUS, read_status
from dicom_node.errors import NotApplicableError, PermanentError, TransientError
from dicom_node.recorder import OTHER, Recorder
from grounding.types import BatchGrounder, DeviceLostError, Grounding, OutOfMemoryError, PreparedStudy

CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (NotApplicableError, "not_applicable"),
    (PermanentError, "permanent"),
    (OutOfMemoryError, "out_of_memory"),
    (TransientError, "transient"),
    (DeviceLostError, "error"),
    (Exception, "error"),
)
"""The first that fits counts."""


@dataclass(frozen=True)
class FailuresCounted:
    """A `with` block whose failure is counted as one of a step."""

    recorder: Recorder
    step: str

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Count what ended the block, which goes on being raised."""
        if isinstance(error, Exception):
            cause = next(cause for kinds, cause in CAUSES if isinstance(error, kinds))
            self.recorder.count("knowmvg_step_failures", self.step, cause)


STAGES = {"ground": "grounded", "write": "written"}
"""What a job is after each step."""


def count_step(recorder: Recorder, step: str, seconds: float, waited: timedelta) -> None:
    """Count a step that was done: what its work took, and since when the job waited for its end."""
    recorder.observe("knowmvg_step_seconds", seconds, step)
    recorder.observe("knowmvg_stage_seconds", waited.total_seconds(), STAGES[step])


def ground_counted(grounder: BatchGrounder, studies: Sequence[PreparedStudy], recorder: Recorder) -> list[Grounding]:
    """Have the model ground studies together, and count how many these were and what that took."""
    began = time.monotonic()
    found = grounder.ground_prepared(studies)
    recorder.observe("knowmvg_batch_studies", len(studies))
    recorder.observe("knowmvg_batch_seconds", time.monotonic() - began)
    return found


def count_answer(recorder: Recorder, destination: str, status: int | None) -> None:
    """Count what an archive answered to a C-STORE; of a range of statuses that mean the same, the first."""
    meaning = read_status(status)
    label = "none" if status is None else f"0x{meaning.statuses.start:04X}"
    recorder.count(
        "knowmvg_store_answers", destination, meaning.verdict, OTHER if meaning.text == UNKNOWN_STATUS else label
    )


OUTCOMES = {"DELIVERED": "delivered", "DEAD": "given_up", "CONFIRMING": "taken", "PENDING": "again"}
"""Of a try at a dispatch, by the state that it is in afterwards."""
