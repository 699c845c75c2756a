"""The values of an evaluation: what is true of a picture (`Case`, `Reference`) and what was said of it (`Prediction`).

Every figure is a function of a list of predictions. Nothing here computes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from grounding.types import Box, Finding, Grounder, Image, ReportText, ScoredBox, Span

Progress = Callable[[int, int], None]
"""Called with the pictures done and their number."""

PatientSide = Literal["left", "right"]


class Predictor(Grounder, Protocol):
    """A grounder that can also be given the phrases."""

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        """Boxes of each of `phrases` in `image`, in the same order."""
        ...


@runtime_checkable
class ForcedPredictor(Predictor, Protocol):
    """A predictor that can be teacher-forced: it is told which characters of the report are phrases."""

    def ground_spans(self, image: Image, report: ReportText, spans: Sequence[Span]) -> Sequence[Finding]:
        """Boxes of the phrases at `spans` of `report`, each read where it stands, in the same order."""
        ...


@runtime_checkable
class GuardedPredictor(Predictor, Protocol):
    """A predictor that does not ask its network of a picture of one grey."""

    def unguarded(self) -> Predictor:
        """The same one, that does."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """A phrase and what is true of it. `boxes` is empty where the picture does not show it or the report denies it."""

    phrase: str
    label: str
    boxes: tuple[Box, ...]
    negated: bool = False
    source: Span | None = None


@dataclass(frozen=True, slots=True)
class Midline:
    """Where the patient's midline crosses the picture: a column in pixels, and how far from it no side is decided.

    `of` says what it was taken from: the inner edges of the lungs, or the middle of the picture.
    """

    x: float
    dead_zone: float
    of: Literal["lungs", "picture"]


@dataclass(frozen=True, slots=True)
class Case:
    """One picture with its report and reference phrases; `load` reads the pixels when their turn comes.

    `complete` says that the references are all phrases of the report, so that phrases can be counted.
    """

    name: str
    load: Callable[[], Image]
    report: ReportText
    references: tuple[Reference, ...]
    midline: Midline
    patient: str | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a predictor said of one reference phrase of the case with this number.

    `phrase` is the one that it found or was given, None where it found none like the reference. `iou` is that of the
    regions, 0 where either has no box. `size` is (rows, columns) of the picture that the boxes lie in.
    """

    case: int
    image: str
    reference: Reference
    midline: Midline
    size: tuple[int, int]
    phrase: str | None
    boxes: tuple[ScoredBox, ...]
    iou: float
    uncertainty: float | None = None

    @property
    def region(self) -> tuple[Box, ...]:
        """The predicted boxes without their scores."""
        return tuple(scored.box for scored in self.boxes)

    @property
    def is_localized(self) -> bool:
        """Whether any box was given."""
        return bool(self.boxes)

    @property
    def confidence(self) -> float | None:
        """Score of the best box."""
        return max((scored.score for scored in self.boxes), default=None)
