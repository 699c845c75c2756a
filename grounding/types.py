"""Values that cross the border of the model: images and a report in, grounded phrases out.

Nothing here imports torch, so that every layer may use these types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""float32[H, W] in [0, 1], 0 = black (air), 1 = white (bone): MONOCHROME2 polarity."""

Laterality = Literal["left", "right", "bilateral"]
"""Side of the patient, never of the picture."""


class InvalidBoxError(ValueError):
    """Corners of a box are not finite, or not in order."""


class ModelError(Exception):
    """A model folder is missing, damaged or not what its configuration says; the text names the file and what to do."""


class OutOfMemoryError(Exception):
    """A study does not fit into memory, whatever was tried; the text says how large it is."""


class DeviceLostError(Exception):
    """The device that the model is on computes nothing any more, whatever it is asked: the process must begin anew."""


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in pixels of the image as stored; (0, 0) is the outer corner of the first pixel (PS3.3 C.18.6.1.1)."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.x1, self.y1, self.x2, self.y2]).all() and self.x1 <= self.x2 and self.y1 <= self.y2):
            raise InvalidBoxError(f"box corners must be finite and ordered, not {self.xyxy}")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, slots=True)
class ScoredBox:
    """A box and the model's confidence in it, in [0, 1]."""

    box: Box
    score: float


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a report's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Concept:
    """A coded concept (PS3.3 8): value, coding scheme designator, meaning."""

    code: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the patient a finding is: an anatomical concept and its side."""

    concept: Concept
    laterality: Laterality | None = None


@dataclass(frozen=True, slots=True)
class ReportText:
    """A report as the model reads it: the whole text and the spans of the sentences that may be grounded.

    `sentences` holds findings and impression only; indication, technique and comparison are in `text` but not in
    `sentences`. Spans are in order and do not overlap.
    """

    text: str
    sentences: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnostic phrase of the report and where it is in one image.

    `image` is the index of the image that `boxes` were computed on. A phrase that was looked for and not found has
    `localized` False and no boxes; a phrase that the report negates has `negated` True and was never looked for.
    """

    phrase: str
    source: Span | None
    image: int
    boxes: tuple[ScoredBox, ...]
    localized: bool
    negated: bool
    finding: Concept | None = None
    site: Site | None = None
    uncertainty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model said it. `sha256` is the digest of the checkpoint's files."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Grounding:
    """All findings of one report on its images, and the model that found them.

    `hallucinations` counts the phrases that the model made up: nothing in the report supports them, and none is told.
    """

    model: ModelIdentity
    findings: tuple[Finding, ...]
    hallucinations: int = 0


class Grounder(Protocol):
    """The role of the model in the node: a callable product, replaceable by a fake in tests."""

    @property
    def identity(self) -> ModelIdentity:
        """Name, version and digest of the model."""
        ...

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Find the diagnostic phrases of `report` and the boxes of each in every image of `images`."""
        ...


PreparedStudy = Any
"""A study as a model wants it, without the pictures it was made of; who made it alone knows what is in it."""


class BatchGrounder(Grounder, Protocol):
    """The model as a worker asks it: many studies at once, the next ones prepared while these are computed."""

    def prepare(self, images: Sequence[Image], report: ReportText) -> PreparedStudy:
        """Do what can be done for a study without the network. Any thread may call it, at any time."""
        ...

    def ground_prepared(self, studies: Sequence[PreparedStudy]) -> list[Grounding]:
        """Ground studies together: for each what `ground` gives for it alone, up to rounding."""
        ...
