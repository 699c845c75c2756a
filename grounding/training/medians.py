"""The prior-only row of an ablation: median boxes of the very phrases that the other rows train on, and no pixel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from grounding.evaluation.metrics import region_iou
from grounding.evaluation.prior import Known, build_table
from grounding.knowledge import load_bank
from grounding.network.boxes import to_xyxy
from grounding.training.frozen import FrozenPicture
from grounding.types import Box


def score_medians(
    training: Iterable[FrozenPicture], tests: Sequence[FrozenPicture]
) -> list[tuple[str, str, float, bool]]:
    """(picture, label, region IoU, whether the table has a box) of every phrase of `tests`."""
    bank = load_bank()
    table = build_table(known_phrases(training), bank)
    found = []
    for picture in tests:
        for place, (label, phrase) in enumerate(zip(picture.labels, picture.asked, strict=True)):
            given = [Box(*corners) for corners in table.look_up(bank.read_phrase(phrase))]
            found.append(
                (picture.name, label, round(region_iou(given, boxes_of(picture.truth(place))), 5), bool(given))
            )
    return found


def known_phrases(pictures: Iterable[FrozenPicture]) -> list[Known]:
    """The phrases that the pictures show, with their boxes."""
    known: list[Known] = []
    for picture in pictures:
        for place, phrase in enumerate(picture.asked):
            boxes = tuple(box.xyxy for box in boxes_of(picture.truth(place)))
            known += [(phrase, boxes)] if boxes else []
    return known


def boxes_of(cxcywh: Tensor) -> list[Box]:
    """float32[G, 4] of the canvas -> corners in shares of it, clipped to it."""
    corners = to_xyxy(cxcywh.float()).clamp(0, 1).tolist()
    return [Box(x1, y1, max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in corners]
