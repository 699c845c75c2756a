"""Builder of predictions whose figures can be worked by hand."""

from __future__ import annotations

from grounding.evaluation.metrics import region_iou
from grounding.evaluation.records import Midline, Prediction, Reference
from grounding.types import Box, ScoredBox

MIDDLE = Midline(50.0, 0.0, "lungs")
UNIT = Box(0, 0, 10, 10)


def make_prediction(
    phrase: str = "nodule",
    boxes: tuple[Box, ...] = (UNIT,),
    wanted: tuple[Box, ...] = (UNIT,),
    *,
    score: float = 0.9,
    case: int = 0,
    midline: Midline = MIDDLE,
    label: str = "nodule",
    negated: bool = False,
    uncertainty: float | None = None,
) -> Prediction:
    """What a predictor said of `phrase` in a picture of 100 x 100 pixels; the true boxes are `wanted`."""
    return Prediction(
        case=case,
        image=f"picture-{case}",
        reference=Reference(phrase, label, wanted, negated),
        midline=midline,
        size=(100, 100),
        phrase=phrase,
        boxes=tuple(ScoredBox(box, score) for box in boxes),
        iou=region_iou(boxes, wanted),
        uncertainty=uncertainty,
    )


def make_judged(score: float, *, right: bool) -> Prediction:
    """A localised phrase with this confidence, hit exactly or missed altogether."""
    return make_prediction(boxes=(UNIT,), wanted=(UNIT,) if right else (Box(50, 50, 60, 60),), score=score)
