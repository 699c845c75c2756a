"""Measures against values worked by hand, and their laws."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.evaluation.metrics import (
    Score,
    match_phrases,
    paired_difference,
    region_area,
    region_centre,
    region_iou,
    share,
    summarize,
    token_f1,
)
from grounding.types import Box

UNIT = Box(0, 0, 10, 10)
corner = st.integers(0, 20)
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), corner, corner, st.integers(1, 20), st.integers(1, 20))
regions = st.lists(boxes, min_size=1, max_size=4)


def painted(region: list[Box]) -> np.ndarray:
    mask = np.zeros((40, 40), dtype=bool)
    for box in region:
        mask[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    return mask


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([UNIT], [UNIT], 1.0),
        ([UNIT], [Box(10, 0, 20, 10)], 0.0),  # they touch
        ([UNIT], [Box(5, 0, 15, 10)], 50 / 150),
        ([UNIT], [Box(0, 0, 5, 10), Box(5, 0, 10, 10)], 1.0),  # two halves are the whole
        ([UNIT, Box(0, 0, 10, 5)], [UNIT], 1.0),  # an overlap counts once
        ([UNIT], [UNIT, Box(20, 20, 30, 30)], 0.5),
        ([], [UNIT], 0.0),
        ([UNIT], [], 0.0),
        ([], [], 0.0),
        ([Box(3, 3, 3, 3)], [Box(3, 3, 3, 3)], 0.0),  # no area
    ],
)
def test_region_iou_of(first: list[Box], second: list[Box], expected: float) -> None:
    assert region_iou(first, second) == pytest.approx(expected)


@given(regions, regions)
def test_region_iou_equals_counting_pixels(first: list[Box], second: list[Box]) -> None:
    one, two = painted(first), painted(second)
    assert region_iou(first, second) == pytest.approx((one & two).sum() / (one | two).sum())
    assert region_area(first) == pytest.approx(one.sum())


@given(regions, regions, st.floats(0.1, 50))
def test_region_iou_is_symmetric_and_free_of_scale(first: list[Box], second: list[Box], scale: float) -> None:
    iou = region_iou(first, second)
    assert region_iou(second, first) == pytest.approx(iou)
    grown = [[Box(*(scale * edge for edge in box.xyxy)) for box in region] for region in (first, second)]
    assert region_iou(*grown) == pytest.approx(iou)


@pytest.mark.parametrize(
    ("region", "centre"),
    [
        ([UNIT], (5, 5)),
        ([UNIT, UNIT], (5, 5)),  # an overlap counts once
        ([UNIT, Box(0, 0, 5, 10)], (5, 5)),
        ([UNIT, Box(10, 0, 30, 10)], (15, 5)),
        ([UNIT, Box(0, 20, 10, 50)], (5, (5 * 1 + 35 * 3) / 4)),
        ([], None),
        ([Box(3, 3, 3, 9)], None),
    ],
)
def test_region_centre_of(region: list[Box], centre: tuple[float, float] | None) -> None:
    found = region_centre(region)
    assert found == (None if centre is None else pytest.approx(centre))


@given(regions)
def test_region_centre_equals_counting_pixels(region: list[Box]) -> None:
    rows, columns = np.nonzero(painted(region))
    assert region_centre(region) == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))


def test_share_is_of_something() -> None:
    assert (share(1, 3), share(0, 4), share(0, 0)) == (0.3333, 0.0, None)


def test_paired_difference_by_hand() -> None:
    """Two images: the resamples are aa, ab and bb."""
    mean, low, high = paired_difference([0.9, 0.7, 0.2], [0.5, 0.5, 0.4], ["a", "a", "b"])
    assert (mean, low, high) == pytest.approx((0.4 / 3, -0.2, 0.3))


def test_paired_difference_is_surer_than_the_scores_apart() -> None:
    rng = np.random.default_rng(3)
    hard = rng.uniform(0, 0.9, 300)
    images = [str(i) for i in range(300)]
    mean, low, high = paired_difference(list(hard + 0.05), list(hard), images)
    assert (mean, low, high) == pytest.approx((0.05, 0.05, 0.05))  # every item is better by the same
    mean, low, high = paired_difference(list(hard), list(rng.permutation(hard)), images)
    assert low < mean < high
    assert low < 0 < high
    assert paired_difference(list(hard), list(hard), images) == (0, 0, 0)


@pytest.mark.parametrize(("a", "b", "images"), [([], [], []), ([1.0], [], ["x"]), ([1.0], [1.0], ["x", "y"])])
def test_paired_difference_needs_pairs(a: list[float], b: list[float], images: list[str]) -> None:
    with pytest.raises(ValueError, match="one score of each run for each item"):
        paired_difference(a, b, images)


def interval(summary: dict[str, object]) -> tuple[float, float]:
    low, high = cast(list[float], summary["miou_ci"])
    return low, high


def test_summary_by_hand() -> None:
    scores = [
        Score("a", "nodule", 1.0, True),
        Score("a", "nodule", 0.4, True),
        Score("b", "mass", 0.2, True),
        Score("b", "mass", 0.0, False),
    ]
    summary = summarize(scores)
    assert (summary["n"], summary["images"]) == (4, 2)
    assert (summary["ap10"], summary["ap30"], summary["ap50"]) == (0.75, 0.5, 0.25)
    assert summary["miou"] == 0.4
    assert summary["no_box_rate"] == 0.25
    labels = cast(dict[str, dict[str, object]], summary["by_label"])
    assert list(labels) == ["mass", "nodule"]
    means = {name: [value for key, value in label.items() if not key.endswith("_ci")] for name, label in labels.items()}
    assert means == {"mass": [2, 0.5, 0.0, 0.0, 0.1, 0.5], "nodule": [2, 1.0, 1.0, 0.5, 0.7, 0.0]}
    assert labels["mass"]["miou_ci"] == [0.1, 0.1]  # one image: nothing varies
    # Of two images, the resamples are aa (a quarter), ab (a half) and bb (a quarter).
    assert summary["ap30_ci"] == [0.0, 1.0]
    assert summary["miou_ci"] == [0.1, 0.7]


def test_threshold_itself_counts() -> None:
    assert summarize([Score("a", "x", 0.5, True)])["ap50"] == 1.0


def test_interval_is_over_images_not_phrases() -> None:
    """A hundred equal phrases of one image tell no more than one of them: the interval stays as wide."""
    few = [Score("a", "x", 1.0, True), Score("b", "x", 0.0, True)]
    many = [Score(name, "x", iou, True) for name, iou in (("a", 1.0), ("b", 0.0)) for _ in range(100)]
    assert summarize(few)["miou_ci"] == summarize(many)["miou_ci"] == [0.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=40))
def test_interval_holds_within_bounds_and_repeats(values: list[tuple[int, float]]) -> None:
    scores = [Score(str(image), "x", iou, True) for image, iou in values]
    summary = summarize(scores)
    assert summary == summarize(scores)
    low, high = interval(summary)
    assert 0 <= low <= high <= 1


def test_interval_of_many_images_is_near_the_normal_one() -> None:
    scores = [Score(str(i), "x", float(i % 2), True) for i in range(400)]
    low, high = interval(summarize(scores))
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)


def test_summary_of_nothing_has_no_figures() -> None:
    summary = summarize([])
    assert summary["n"] == 0
    assert summary["ap50"] is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("left effusion", "Left effusion.", 1.0),
        ("small left effusion", "left effusion", 0.8),
        ("nodule", "mass", 0.0),
        ("", "mass", 0.0),
        ("2.5 cm nodule", "25 cm nodule", 2 / 3),
        ("ground-glass opacity", "ground glass opacity", 1.0),
        ("left left", "left", 2 / 3),
    ],
)
def test_token_f1_of(first: str, second: str, expected: float) -> None:
    assert token_f1(first, second) == pytest.approx(expected)


@given(st.text(max_size=30), st.text(max_size=30))
def test_token_f1_is_symmetric_and_bounded(first: str, second: str) -> None:
    assert 0 <= token_f1(first, second) == token_f1(second, first) <= 1


def test_phrases_are_matched_once_each_most_alike_first() -> None:
    given_phrases = ["left effusion", "small left effusion", "heart"]
    assert match_phrases(given_phrases, ["small left effusion", "mass"]) == [(1, 0)]
    assert match_phrases(given_phrases, ["small left effusion", "left effusion"]) == [(0, 1), (1, 0)]
