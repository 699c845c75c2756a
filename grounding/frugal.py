"""A grounder that lives with too little memory: smaller batches, then the processor, then it gives up and says so.

What cannot be grounded in the least memory is no bug and no reason to die: the study is set aside by name.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from grounding.predictor import Predictor
from grounding.types import Grounding, Image, ModelIdentity, OutOfMemoryError, ReportText

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""What torch says where the processor's memory is used up; it raises a bare RuntimeError then."""


class FrugalGrounder:
    """Grounds as its predictor does; where memory runs out, again with less. Implements `grounding.types.Grounder`."""

    def __init__(self, predictor: Predictor, tell: Callable[[str], None] = lambda step: None) -> None:
        """`tell` is called with each step that is taken: "small batches", "processor"."""
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
                return make().ground(images, report)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            release_memory()
        shapes = ", ".join(f"{rows} x {columns}" for rows, columns in (image.shape[:2] for image in images))
        raise OutOfMemoryError(
            f"the study does not fit into memory, not even in the smallest batches (images of {shapes}; "
            f"{len(report.sentences)} sentences): run the worker where there is more"
        )


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
