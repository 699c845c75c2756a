"""Controls: the same questions about a picture, or with words, that have been changed on purpose.

Each control is a function of (cases, number of the case, its picture) that returns the changed case and picture;
nothing here asks a predictor. What the answers mean is counted by `flip_figures` and `mirror_figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from grounding.evaluation.laterality import named_side, side_of
from grounding.evaluation.metrics import region_iou, share
from grounding.evaluation.records import Case, Midline, Prediction
from grounding.geometry import resize
from grounding.knowledge import swap_sides
from grounding.types import Box, Image, ReportText, Span

GREY = 0.5

Change = Callable[[Sequence[Case], int, Image], tuple[Case, Image]]


def unchanged(cases: Sequence[Case], number: int, image: Image) -> tuple[Case, Image]:
    """The case as it is."""
    return cases[number], image


def blind(cases: Sequence[Case], number: int, image: Image) -> tuple[Case, Image]:
    """Every pixel of one grey: what is still found comes from the words alone."""
    return cases[number], np.full_like(image, GREY)


def other_picture(cases: Sequence[Case], number: int, image: Image) -> tuple[Case, Image]:
    """The picture of the next case (the first after the last) of another patient, stretched to the size of this one.

    A radiograph, but not this patient's. Cases that name no patient are taken for different ones; where there is no
    other patient at all the picture stays.
    """
    own = cases[number].patient
    for step in range(1, len(cases)):
        other = cases[(number + step) % len(cases)]
        if own is None or other.patient != own:
            return cases[number], resize(other.load(), image.shape[0], image.shape[1])
    return cases[number], image


def swapped_words(cases: Sequence[Case], number: int, image: Image) -> tuple[Case, Image]:
    """Left for right in report and phrases, over the picture as it is: words and picture contradict each other."""
    return swap_case(cases[number]), image


def mirrored(cases: Sequence[Case], number: int, image: Image) -> tuple[Case, Image]:
    """The mirrored picture with left for right in the words: everything agrees again, on the other side."""
    width = image.shape[1]
    case = swap_case(cases[number])
    references = tuple(replace(r, boxes=mirror_boxes(r.boxes, width)) for r in case.references)
    midline = Midline(width - case.midline.x, case.midline.dead_zone, case.midline.of)
    return replace(case, references=references, midline=midline), np.ascontiguousarray(image[:, ::-1])


CONTROLS: dict[str, Change] = {
    "blind": blind,
    "other_picture": other_picture,
    "swapped_words": swapped_words,
    "mirrored": mirrored,
}
"""The controls by their names in the figures. The table of medians, which sees nothing, is in `prior`."""


def swap_case(case: Case) -> Case:
    """The case with left for right in its report and phrases; places in the text follow, boxes stay."""
    text = case.report.text

    def moved(span: Span) -> Span:
        return Span(len(swap_sides(text[: span.start])), len(swap_sides(text[: span.end])))

    references = tuple(
        replace(r, phrase=swap_sides(r.phrase), source=None if r.source is None else moved(r.source))
        for r in case.references
    )
    report = ReportText(swap_sides(text), tuple(moved(sentence) for sentence in case.report.sentences))
    return replace(case, report=report, references=references)


def mirror_boxes(boxes: Sequence[Box], width: int) -> tuple[Box, ...]:
    """Boxes in the mirrored picture of `width` pixels."""
    return tuple(Box(width - box.x2, box.y1, width - box.x1, box.y2) for box in boxes)


def flip_figures(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, object]:
    """How often the boxes follow the words to the other side, over predictions of the same references in order.

    `n` phrases name one side and were localised on a side of the midline. With left and right swapped, `flipped` of
    them lie on the other side although the picture has not changed, `gone` are no longer localised, and the rest stay.
    """
    pairs = [(side, b, a) for b, a in zip(before, after, strict=True) if (side := _own_side(b))]
    flipped = sum(side_of(a.region, a.midline) not in (side, None) for side, _, a in pairs)
    gone = sum(not a.is_localized for _, _, a in pairs)
    return {
        "n": len(pairs),
        "flipped": flipped,
        "flip_rate": share(flipped, len(pairs)),
        "gone": gone,
        "gone_rate": share(gone, len(pairs)),
    }


def _own_side(prediction: Prediction) -> str | None:
    named = named_side(prediction.reference.phrase)
    return side_of(prediction.region, prediction.midline) if named else None


def mirror_figures(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, object]:
    """Mean IoU between the mirrored boxes of a phrase and those that it got in the mirrored picture.

    Over the `equivariance_n` phrases that were localised in the picture as it is; not localised in the other counts 0.
    """
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b.is_localized]
    ious = [region_iou(mirror_boxes(b.region, b.size[1]), a.region) for b, a in pairs]
    return {
        "equivariance_n": len(ious),
        "equivariance_miou": round(float(np.mean(ious)), 4) if ious else None,
    }
