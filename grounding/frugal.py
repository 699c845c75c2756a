"""A grounder that lives with too little memory: smaller batches, then the processor, then it gives up and says so.

What cannot be grounded in the least memory is no bug and no reason to die: the study is set aside by name.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from grounding.predictor import Predictor, Study
from grounding.types import DeviceLostError, Grounding, Image, ModelIdentity, OutOfMemoryError, ReportText

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""What torch says where the processor's memory is used up; it raises a bare RuntimeError then."""


class FrugalGrounder:
    """Grounds as its predictor does; where memory runs out, again with less.

    Implements `grounding.types.BatchGrounder`.
    """

    def __init__(self, predictor: Predictor, tell: Callable[[str], None] = lambda step: None) -> None:
        """`tell` is called with each step that is taken: "one by one", "small batches", "processor"."""
        self._predictor, self._tell = predictor, tell

    @property
    def identity(self) -> ModelIdentity:
        """Name, version and digest of the model."""
        return self._predictor.identity

    @property
    def device(self) -> torch.device:
        """Where the network computes, while it fits there."""
        return self._predictor.device

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Find the phrases of `report` and the boxes of each. Raises OutOfMemoryError where nothing helps."""
        return self.ground_prepared([self.prepare(images, report)])[0]

    def prepare(self, images: Sequence[Image], report: ReportText) -> Study:
        """Prepare a study for `ground_prepared`. Raises OutOfMemoryError where there is not even memory for that."""
        try:
            return self._predictor.prepare(images, report)
        except (MemoryError, RuntimeError) as error:
            raise_unless_out_of_memory(error)
        release_memory()
        raise too_large([(image.shape[0], image.shape[1]) for image in images], report)

    def ground_prepared(self, studies: Sequence[Study]) -> list[Grounding]:
        """Ground studies together. Raises OutOfMemoryError where several do not fit; one alone is tried with less."""
        if len(studies) == 1:
            return [self._ground_with_less(studies[0])]
        try:
            return self._predictor.ground_prepared(studies)
        except (MemoryError, RuntimeError) as error:
            raise_unless_out_of_memory(error)
        self._tell("one by one")
        release_memory()
        raise OutOfMemoryError(f"{len(studies)} studies do not fit into memory together: ground each alone")

    def _ground_with_less(self, study: Study) -> Grounding:
        steps: list[tuple[str, Callable[[], Predictor]]] = [
            ("", lambda: self._predictor),
            ("small batches", self._predictor.in_small_batches),
        ]
        if self.device.type != "cpu":
            steps.append(("processor", self._predictor.on_cpu))
        for name, make in steps:
            if name:
                self._tell(name)
            try:
                return make().ground_prepared([study])[0]
            except (MemoryError, RuntimeError) as error:
                raise_unless_out_of_memory(error)
            release_memory()
        raise too_large([(canvas.frame.height, canvas.frame.width) for canvas in study.canvases], study.report)


def too_large(shapes: Sequence[tuple[int, int]], report: ReportText) -> OutOfMemoryError:
    """Name a study that nothing helps."""
    images = ", ".join(f"{rows} x {columns}" for rows, columns in shapes)
    return OutOfMemoryError(
        f"the study does not fit into memory, not even in the smallest batches (images of {images}; "
        f"{len(report.sentences)} sentences): run the worker where there is more"
    )


def raise_unless_out_of_memory(error: MemoryError | RuntimeError) -> None:
    """Raise an error again that is no want of memory; one of the device itself, which it does not survive, by name."""
    if is_out_of_memory(error):
        return
    if isinstance(error, torch.AcceleratorError):
        raise DeviceLostError(str(error).partition("\n")[0]) from error
    raise error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory, of a GPU or of the host, was used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


def release_memory() -> None:
    """Give back what a failed try still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
