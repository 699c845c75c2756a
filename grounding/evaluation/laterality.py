"""Errors of side: a phrase says left or right of the patient, and its boxes lie on the other side of the midline.

The patient's right is at the left of the picture, as films hang. Pure numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from grounding.evaluation.metrics import region_centre, share
from grounding.evaluation.records import Midline, PatientSide, Prediction
from grounding.knowledge import read_side
from grounding.types import Box

FALLBACK_DEAD_ZONE = 0.05
"""Share of the picture's width, to each side of its middle, that is neither left nor right where no lungs are known."""


def lungs_midline(right_lung: Box, left_lung: Box) -> Midline:
    """Midway between the inner edges of the lungs: decided on both sides of it, without a dead zone."""
    return Midline((right_lung.x2 + left_lung.x1) / 2, 0.0, "lungs")


def picture_midline(width: int) -> Midline:
    """The middle of a picture of `width` pixels, for patients of whom no lungs are known; with a dead zone."""
    return Midline(width / 2, FALLBACK_DEAD_ZONE * width, "picture")


def side_of(boxes: Sequence[Box], midline: Midline) -> PatientSide | None:
    """The patient's side on which the centre of area of the boxes' union lies; None in the dead zone or without area.

    The centre must lie further from the midline than its dead zone.
    """
    centre = region_centre(boxes)
    if centre is None or abs(centre[0] - midline.x) <= midline.dead_zone:
        return None
    return "right" if centre[0] < midline.x else "left"


def named_side(phrase: str) -> PatientSide | None:
    """The one side that a phrase names; None for none, and for both."""
    side = read_side(phrase)
    return None if side == "bilateral" else side


def laterality_figures(predictions: Sequence[Prediction]) -> dict[str, object]:
    """Errors of side among the phrases that name one side and were localised (`n` of them), present or not.

    `errors`, `rate`: the boxes' centre of area lies on the other side of the midline than the phrase says. One within
    the dead zone is no error, and stays in `n`. `reference_errors` counts the same of the reference boxes: what the
    words, the boxes or the midline of the set get wrong.
    `against_reference`: of those whose reference boxes lie on a side, the ones that lie on the other.
    `midline` counts the phrases by what the midline was taken from.
    """
    named = [(side, p) for p in predictions if p.is_localized and (side := named_side(p.reference.phrase))]
    given = [(side, side_of(p.region, p.midline)) for side, p in named]
    truth = [(side, side_of(p.reference.boxes, p.midline)) for side, p in named]
    pairs = [(true, found) for (_, true), (_, found) in zip(truth, given, strict=True) if true]
    errors, against = sum(map(_opposed, given)), sum(map(_opposed, pairs))
    return {
        "n": len(named),
        "errors": errors,
        "rate": share(errors, len(named)),
        "reference_errors": sum(map(_opposed, truth)),
        "against_reference": {"n": len(pairs), "errors": against, "rate": share(against, len(pairs))},
        "midline": {of: sum(p.midline.of == of for _, p in named) for of in ("lungs", "picture")},
    }


def _opposed(sides: tuple[PatientSide | None, PatientSide | None]) -> bool:
    return None not in sides and sides[0] != sides[1]
