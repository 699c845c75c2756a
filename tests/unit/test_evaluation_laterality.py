"""Errors of side on a picture of 100 pixels, whose left half is the patient's right."""

from __future__ import annotations

import pytest

from grounding.evaluation.laterality import laterality_figures, lungs_midline, named_side, picture_midline, side_of
from grounding.evaluation.records import Midline
from grounding.types import Box
from tests.predictions import make_prediction

ON_RIGHT, ON_LEFT = Box(10, 0, 30, 20), Box(70, 0, 90, 20)


def test_midline_of_lungs_is_midway_between_their_inner_edges() -> None:
    assert lungs_midline(Box(5, 10, 40, 90), Box(56, 10, 95, 90)) == Midline(48.0, 0.0, "lungs")


def test_midline_of_a_picture_has_a_dead_zone() -> None:
    middle = picture_midline(200)
    assert (middle.x, middle.dead_zone, middle.of) == (100.0, 10.0, "picture")


@pytest.mark.parametrize(
    ("boxes", "side"),
    [
        ([ON_RIGHT], "right"),
        ([ON_LEFT], "left"),
        ([ON_RIGHT, ON_LEFT], None),  # their centre is the midline itself
        ([ON_RIGHT, Box(60, 0, 100, 40)], "left"),  # the larger one draws the centre over
        ([Box(40, 0, 50, 10), Box(45, 0, 55, 10)], "right"),  # what overlaps counts once
        ([], None),
        ([Box(10, 10, 10, 10)], None),  # no area
    ],
)
def test_side_of(boxes: list[Box], side: str | None) -> None:
    assert side_of(boxes, Midline(50, 0, "lungs")) == side


def test_dead_zone_decides_nothing() -> None:
    middle = picture_midline(100)
    assert side_of([Box(40, 0, 50, 10)], middle) is None  # centre at 45: within 5 pixels
    assert side_of([Box(39, 0, 49, 10)], middle) == "right"


@pytest.mark.parametrize(
    ("phrase", "side"),
    [("Left effusion", "left"), ("right-sided line", "right"), ("both lungs", None), ("nodule", None),
     ("left and right effusions", None)],
)  # fmt: skip
def test_named_side(phrase: str, side: str | None) -> None:
    assert named_side(phrase) == side


def test_figures_by_hand() -> None:
    predictions = [
        make_prediction("left nodule", (ON_LEFT,), (ON_LEFT,)),
        make_prediction("left nodule", (ON_RIGHT,), (ON_LEFT,)),  # against words and reference
        make_prediction("right mass", (ON_RIGHT,), (ON_LEFT,)),  # the reference contradicts the words
        make_prediction("right mass", (ON_LEFT,), ()),  # absent, and on the wrong side
        make_prediction("right mass", (), (ON_RIGHT,)),  # not localised
        make_prediction("mass", (ON_LEFT,), (ON_RIGHT,)),  # names no side
        make_prediction("right edema", (Box(48, 0, 54, 6),), (ON_RIGHT,), midline=picture_midline(100)),  # dead zone
    ]
    assert laterality_figures(predictions) == {
        "n": 5,
        "errors": 2,
        "rate": 0.4,
        "reference_errors": 1,
        "against_reference": {"n": 4, "errors": 2, "rate": 0.5},
        "midline": {"lungs": 4, "picture": 1},
    }


def test_no_sides_named_give_no_rate() -> None:
    figures = laterality_figures([make_prediction("nodule")])
    assert (figures["n"], figures["errors"], figures["rate"]) == (0, 0, None)
