"""Measures of grounding: overlap of regions, shares above thresholds, intervals over images, likeness of phrases.

Pure numbers; what was scored and how is decided in `evaluate`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grounding.types import Box

THRESHOLDS = {"ap10": 0.1, "ap30": 0.3, "ap50": 0.5}
MEASURES = (*THRESHOLDS, "miou")
RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """One scored phrase: the picture it belongs to, its label, its region IoU, and whether any box was given."""

    image: str
    label: str
    iou: float
    has_box: bool


def region_area(boxes: Sequence[Box]) -> float:
    """Area of the union of `boxes`, in square pixels."""
    return _areas(boxes, [])[0]


def region_iou(first: Sequence[Box], second: Sequence[Box]) -> float:
    """IoU of two unions of boxes, exact; 0 where either is empty. For one box each it is the box IoU."""
    one, two, both = _areas(first, second)
    union = one + two - both
    return both / union if union > 0 else 0.0


def _areas(first: Sequence[Box], second: Sequence[Box]) -> tuple[float, float, float]:
    """Areas of the first region, the second, and their intersection, on the grid of all corner coordinates."""
    boxes = [*first, *second]
    if not boxes:
        return 0.0, 0.0, 0.0
    xs, ys, cells = _grid(boxes)
    one, two = _covered(first, xs, ys), _covered(second, xs, ys)
    return (float(cells[one].sum()), float(cells[two].sum()), float(cells[one & two].sum()))


def region_centre(boxes: Sequence[Box]) -> tuple[float, float] | None:
    """(x, y) of the centre of area of the union of `boxes`; None where it has no area."""
    if not boxes:
        return None
    xs, ys, cells = _grid(boxes)
    covered = np.where(_covered(boxes, xs, ys), cells, 0.0)
    area = float(covered.sum())
    if area <= 0:
        return None
    x = float((covered.sum(axis=0) * (xs[:-1] + xs[1:]) / 2).sum()) / area
    return x, float((covered.sum(axis=1) * (ys[:-1] + ys[1:]) / 2).sum()) / area


def _grid(boxes: Sequence[Box]) -> tuple[Floats, Floats, Floats]:
    """Sorted x and y of all corners, and float64[len(ys) - 1, len(xs) - 1]: the areas of the cells between them."""
    xs = np.unique([edge for box in boxes for edge in (box.x1, box.x2)])
    ys = np.unique([edge for box in boxes for edge in (box.y1, box.y2)])
    return xs, ys, np.diff(ys)[:, None] * np.diff(xs)[None, :]


def _covered(boxes: Sequence[Box], xs: Floats, ys: Floats) -> NDArray[np.bool_]:
    mask = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    for box in boxes:
        left, right = np.searchsorted(xs, [box.x1, box.x2])
        top, bottom = np.searchsorted(ys, [box.y1, box.y2])
        mask[top:bottom, left:right] = True
    return mask


def summarize(scores: Sequence[Score], *, seed: int = 0) -> dict[str, object]:
    """AP10, AP30, AP50, mIoU with 95 % intervals, the rate of phrases without a box, and all of it by label.

    `ap50` is a share in [0, 1] and `ap50_ci` its interval [low, high] (bootstrap over images, `RESAMPLES` resamples);
    all are None where nothing was scored.
    """
    if not scores:
        empty: dict[str, object] = {"n": 0, "images": 0}
        return (
            empty
            | {key: None for name in MEASURES for key in (name, f"{name}_ci")}
            | {"no_box_rate": None, "by_label": {}}
        )
    values = _values(scores)
    means, intervals = values.mean(axis=0), _intervals([score.image for score in scores], values, seed)
    figures: dict[str, object] = {"n": len(scores), "images": len({score.image for score in scores})}
    for index, name in enumerate(MEASURES):
        figures[name] = _rounded(means[index])
        figures[f"{name}_ci"] = [_rounded(intervals[0, index]), _rounded(intervals[1, index])]
    figures["no_box_rate"] = _rounded(np.mean([not score.has_box for score in scores]))
    figures["by_label"] = _by_label(scores, values, seed)
    return figures


def _values(scores: Sequence[Score]) -> Floats:
    """float64[n, 4]: one column per measure."""
    ious = np.array([score.iou for score in scores])
    return np.stack([*(ious >= threshold for threshold in THRESHOLDS.values()), ious], axis=1).astype(np.float64)


def _intervals(images: Sequence[str], values: Floats, seed: int) -> Floats:
    """float64[2, k] of float64[n, k]: 2.5 and 97.5 percentiles of the means over resampled images."""
    names = {name: index for index, name in enumerate(sorted(set(images)))}
    group = np.array([names[image] for image in images])
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, group, values)
    counts = np.bincount(group, minlength=len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    means = (draws @ sums) / (draws @ counts)[:, None]
    return np.asarray(np.percentile(means, [2.5, 97.5], axis=0), dtype=np.float64)


def _by_label(scores: Sequence[Score], values: Floats, seed: int) -> dict[str, dict[str, object]]:
    table: dict[str, dict[str, object]] = {}
    for label in sorted({score.label for score in scores}):
        chosen = [index for index, score in enumerate(scores) if score.label == label]
        of_label = [scores[index] for index in chosen]
        means = values[chosen].mean(axis=0)
        low, high = _intervals([score.image for score in of_label], values[chosen], seed)
        figures: dict[str, object] = {"n": len(chosen)}
        for i, name in enumerate(MEASURES):
            figures |= {name: _rounded(means[i]), f"{name}_ci": [_rounded(low[i]), _rounded(high[i])]}
        figures["no_box_rate"] = _rounded(np.mean([not score.has_box for score in of_label]))
        table[label] = figures
    return table


def paired_difference(
    a: Sequence[float], b: Sequence[float], images: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `a` - `b` over the same items, and its 95 % interval (bootstrap over the items' images).

    Raises ValueError where the lists differ in length or are empty.
    """
    if not len(a) == len(b) == len(images) > 0:
        raise ValueError(f"one score of each run for each item is needed, not {len(a)}, {len(b)} and {len(images)}")
    gaps = np.subtract(a, b, dtype=np.float64)[:, None]
    low, high = _intervals(images, gaps, seed)[:, 0]
    return float(gaps.mean()), float(low), float(high)


def share(part: int, whole: int) -> float | None:
    """`part` of `whole`, to four places; None of nothing."""
    return round(part / whole, 4) if whole else None


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)


def phrase_tokens(phrase: str) -> list[str]:
    """Words and numbers of a phrase, lower case, without punctuation."""
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", phrase.lower())


def token_f1(first: str, second: str) -> float:
    """Likeness of two phrases in [0, 1]: F1 of their words, counted as often as they occur."""
    one, two = Counter(phrase_tokens(first)), Counter(phrase_tokens(second))
    shared = (one & two).total()
    return 2 * shared / (one.total() + two.total()) if shared else 0.0


def match_phrases(given: Sequence[str], wanted: Sequence[str], *, minimum: float = 0.5) -> list[tuple[int, int]]:
    """Pairs (index in `given`, index in `wanted`) alike by at least `minimum`, most alike first, each used once."""
    pairs = [(token_f1(g, w), i, j) for i, g in enumerate(given) for j, w in enumerate(wanted)]
    matched: list[tuple[int, int]] = []
    for _, i, j in sorted(
        (pair for pair in pairs if pair[0] >= minimum), key=lambda pair: (-pair[0], pair[1], pair[2])
    ):
        if all(i != used_i and j != used_j for used_i, used_j in matched):
            matched.append((i, j))
    return matched
