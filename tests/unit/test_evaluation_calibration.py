"""Calibration and risk against values worked by hand, and the fit against a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.evaluation.calibration import (
    calibrated,
    calibration_figures,
    expected_error,
    fit_calibration,
    is_correct,
    reliability_bins,
    risk_curve,
)
from grounding.types import Box
from tests.predictions import UNIT, make_judged, make_prediction

probability = st.floats(0, 1)


def test_expected_error_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.5, 0.1])
    correct = np.array([1.0, 0.0, 1.0, 0.0])
    # Bins of a fifteenth: {0.9, 0.9}: |0.9 - 0.5|, twice; {0.5}: |0.5 - 1|; {0.1}: |0.1 - 0|.
    assert expected_error(confidence, correct) == pytest.approx((0.8 + 0.5 + 0.1) / 4)
    assert reliability_bins(confidence, correct) == [
        [0.0667, 0.1333, 1, 0.1, 0.0],
        [0.4667, 0.5333, 1, 0.5, 1.0],
        [0.8667, 0.9333, 2, 0.9, 0.5],
    ]


def test_bins_of_equal_count_part_what_equal_widths_hold_together() -> None:
    confidence = np.linspace(0.94, 1.0, 15)
    correct = np.array([0.0] * 7 + [1.0] * 8)
    assert expected_error(confidence, correct) == pytest.approx(abs(confidence.mean() - 8 / 15))
    assert expected_error(confidence, correct, equal_counts=True) == pytest.approx(np.abs(confidence - correct).mean())


def test_certainty_that_is_right_has_no_error() -> None:
    ones = np.ones(7)
    assert expected_error(ones, ones) == expected_error(ones, ones, equal_counts=True) == 0


def test_risk_falls_where_confidence_knows() -> None:
    risks = risk_curve(np.array([0.2, 0.9, 0.8, 0.1]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert risks.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 4])


def test_equal_confidences_share_their_error_in_any_order() -> None:
    for correct in ([1.0, 0.0], [0.0, 1.0]):
        assert risk_curve(np.array([0.7, 0.7]), np.array(correct)).tolist() == [0.5, 0.5]


def test_figures_by_hand() -> None:
    judged = [(0.95, True), (0.85, True), (0.75, True), (0.65, False), (0.55, True), (0.45, False), (0.35, False)]
    figures = calibration_figures([make_judged(score, right=right) for score, right in [*judged, (0.25, False)]])
    assert (figures["n"], figures["accuracy"], figures["mean_confidence"]) == (8, 0.5, 0.6)
    assert figures["error_by_quartile"] == [1.0, 0.5, 0.5, 0.0]
    assert figures["risk_coverage"] == [
        [0.125, 0.0], [0.25, 0.0], [0.375, 0.0], [0.5, 0.25], [0.625, 0.2], [0.75, 0.3333], [0.875, 0.4286], [1.0, 0.5],
    ]  # fmt: skip
    assert figures["aurc"] == pytest.approx((1 / 4 + 1 / 5 + 2 / 6 + 3 / 7 + 4 / 8) / 8, abs=1e-4)
    assert figures["ece"] == pytest.approx((0.05 + 0.15 + 0.25 + 0.65 + 0.45 + 0.45 + 0.35 + 0.25) / 8, abs=1e-4)


def test_confidence_is_that_of_the_best_box_and_the_region_decides() -> None:
    second = Box(20, 0, 30, 10)
    half = make_prediction(boxes=(UNIT,), wanted=(UNIT, second))
    assert is_correct(half)  # exactly one half
    assert not is_correct(make_prediction(boxes=(UNIT,), wanted=(UNIT, second, Box(40, 0, 50, 10))))
    assert calibration_figures([half])["mean_confidence"] == 0.9


def test_localised_though_absent_is_wrong_and_not_localised_has_no_confidence() -> None:
    figures = calibration_figures([make_prediction(wanted=()), make_prediction(boxes=())])
    assert (figures["n"], figures["accuracy"], figures["ece"]) == (1, 0.0, 0.9)


def test_nothing_localised_gives_no_figures() -> None:
    figures = calibration_figures([make_prediction(boxes=())])
    assert (figures["n"], figures["ece"], figures["aurc"], figures["bins"]) == (0, None, None, [])


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    figures = calibration_figures([make_judged(i / 500, right=i > 250) for i in range(500)])
    curve = figures["risk_coverage"]
    assert isinstance(curve, list)
    assert len(curve) == 60
    assert curve[-1] == [1.0, pytest.approx(251 / 500)]


def test_without_numbers_the_presence_stays() -> None:
    assert calibrated([0.3, 1.0], [0.5, 0.5], ()).tolist() == [0.3, 1.0]


def test_calibrated_by_hand() -> None:
    # Even odds of IoU count nothing; presence 0.8 has odds of 4, squared 16; the constant doubles them.
    assert calibrated([0.8], [0.5], (np.log(2), 2.0, 1.0)).tolist() == pytest.approx([32 / 33])
    assert calibrated([0.8], [0.75], (0.0, 1.0, 1.0)).tolist() == pytest.approx([12 / 13])
    assert calibrated([0.8], None, (0.0, 1.0, 5.0)).tolist() == pytest.approx([0.8])


@given(probability, probability, probability, st.floats(-5, 5), st.floats(0, 4), st.floats(0, 4))
def test_calibrated_is_monotone_and_a_probability(
    low: float, high: float, quality: float, constant: float, one: float, two: float
) -> None:
    first, second = calibrated(sorted([low, high]), [quality, quality], (constant, one, two))
    assert 0 <= first <= second <= 1


def drawn(count: int, numbers: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Presences, qualities and hits of which `numbers` are the truth."""
    rng = np.random.default_rng(7)
    presence, quality = rng.uniform(0.5, 1, count), rng.uniform(0.2, 0.95, count)
    return presence, quality, (rng.random(count) < calibrated(presence, quality, numbers)).astype(np.float64)


def test_fit_finds_the_truth() -> None:
    truth = (-0.5, 0.6, 1.4)
    presence, quality, correct = drawn(20_000, truth)
    assert fit_calibration(presence, quality, correct) == pytest.approx(truth, abs=0.12)


def test_fit_makes_overconfident_scores_honest_on_other_phrases() -> None:
    presence, quality, correct = drawn(4000, (-1.5, 0.4, 1.0))
    numbers = fit_calibration(presence[:2000], quality[:2000], correct[:2000])
    other = slice(2000, None)
    assert expected_error(presence[other], correct[other]) > 0.25
    assert expected_error(calibrated(presence[other], quality[other], numbers), correct[other]) < 0.05


def test_fit_without_quality_uses_presence_alone() -> None:
    presence, _, correct = drawn(4000, (0.2, 1.0, 0.0))
    assert fit_calibration(presence, None, correct) == pytest.approx((0.2, 1.0, 0.0), abs=0.2)


def test_fit_leaves_out_what_would_count_against() -> None:
    presence, quality, correct = drawn(4000, (0.0, 1.0, 0.0))
    constant, of_presence, of_quality = fit_calibration(presence, 1 - presence, correct)
    assert of_presence > 0.5
    assert of_quality == 0.0
    assert fit_calibration(1 - presence, quality, correct)[1] == 0.0
    assert np.isfinite(constant)


def test_fit_of_separable_phrases_is_finite() -> None:
    numbers = fit_calibration(np.array([0.2, 0.3, 0.8, 0.9]), None, np.array([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(numbers).all()
    assert calibrated([0.2, 0.9], None, numbers).round().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("correct", [[], [1.0, 1.0], [0.0, 0.0]])
def test_fit_of_nothing_to_tell_apart_is_refused(correct: list[float]) -> None:
    with pytest.raises(ValueError, match="take more studies"):
        fit_calibration(np.full(len(correct), 0.5), None, np.array(correct))
