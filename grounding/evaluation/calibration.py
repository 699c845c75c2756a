"""What a confidence is worth: calibration error, error against coverage, and the map from a model's raw outputs.

The confidence of a phrase is the score of its best box; it is right when the IoU of the regions reaches `CORRECT_IOU`.
A phrase that the picture does not show is wrong whenever it is localised. Plain numpy; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grounding.evaluation.records import Prediction

Floats = NDArray[np.float64]

CORRECT_IOU = 0.5
BINS = 15
CURVE_POINTS = 60
EDGE = 1e-4
"""Probabilities are kept this far from 0 and 1 before they become log-odds."""

PENALTY = 1e-3
"""Ridge on the slopes of a fit, for each phrase: separable sets would else have none."""


def calibration_figures(predictions: Sequence[Prediction]) -> dict[str, object]:
    """How well the confidence tells the hits from the misses, over the `n` phrases that were localised.

    `ece` is the mean distance between confidence and accuracy over `BINS` bins of equal width, weighted by their
    phrases; `ece_adaptive` over bins of equal count. `bins` lists [low, high, n, mean confidence, accuracy].
    `risk_coverage` lists [coverage, error] when only the surest phrases are kept, `aurc` is the mean of that error over
    all coverages, and `error_by_quartile` the error of the quarters from the least to the most confident.
    """
    localized = [p for p in predictions if p.confidence is not None]
    confidence = np.array([p.confidence for p in localized], dtype=np.float64)
    correct = np.array([is_correct(p) for p in localized], dtype=np.float64)
    if not localized:
        return dict.fromkeys(("ece", "ece_adaptive", "aurc", "accuracy", "mean_confidence"), None) | {
            "n": 0, "bins": [], "risk_coverage": [], "error_by_quartile": [],
        }  # fmt: skip
    risks = risk_curve(confidence, correct)
    order = np.argsort(confidence, kind="stable")
    quarters = [part for part in np.array_split(1 - correct[order], 4) if len(part)]
    return {
        "n": len(localized),
        "accuracy": _round(correct.mean()),
        "mean_confidence": _round(confidence.mean()),
        "ece": _round(expected_error(confidence, correct)),
        "ece_adaptive": _round(expected_error(confidence, correct, equal_counts=True)),
        "aurc": _round(risks.mean()),
        "error_by_quartile": [_round(part.mean()) for part in quarters],
        "bins": reliability_bins(confidence, correct),
        "risk_coverage": _thinned(risks),
    }


def is_correct(prediction: Prediction) -> bool:
    """Whether the boxes are those of the phrase; never for a phrase that the picture does not show."""
    return bool(prediction.reference.boxes) and prediction.iou >= CORRECT_IOU


def expected_error(confidence: Floats, correct: Floats, *, equal_counts: bool = False) -> float:
    """Expected calibration error of float64[n] confidences against float64[n] of 0 and 1."""
    groups = _equal_counts(confidence) if equal_counts else _equal_widths(confidence)
    gaps = [len(g) * abs(confidence[g].mean() - correct[g].mean()) for g in groups if len(g)]
    return float(sum(gaps)) / len(confidence)


def reliability_bins(confidence: Floats, correct: Floats) -> list[list[float]]:
    """[low, high, n, mean confidence, accuracy] of the bins of equal width that hold anything."""
    return [
        [_round(i / BINS), _round((i + 1) / BINS), len(g), _round(confidence[g].mean()), _round(correct[g].mean())]
        for i, g in enumerate(_equal_widths(confidence))
        if len(g)
    ]


def _equal_widths(confidence: Floats) -> list[NDArray[np.intp]]:
    index = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    return [np.flatnonzero(index == i) for i in range(BINS)]


def _equal_counts(confidence: Floats) -> list[NDArray[np.intp]]:
    return list(np.array_split(np.argsort(confidence, kind="stable"), BINS))


def risk_curve(confidence: Floats, correct: Floats) -> Floats:
    """float64[n]: the error among the k surest, for k from 1 to n. Equal confidences share their error."""
    _, group = np.unique(confidence, return_inverse=True)
    error = (np.bincount(group, weights=1 - correct) / np.bincount(group))[group]
    surest_first = error[np.argsort(-confidence, kind="stable")]
    return np.asarray(np.cumsum(surest_first) / np.arange(1, len(error) + 1), dtype=np.float64)


def _thinned(risks: Floats) -> list[list[float]]:
    """At most `CURVE_POINTS` [coverage, error] of a curve, its end among them."""
    count = len(risks)
    kept = np.unique(np.linspace(1, count, min(count, CURVE_POINTS)).round().astype(int))
    return [[_round(k / count), _round(risks[k - 1])] for k in kept]


def calibrated(presence: ArrayLike, quality: ArrayLike | None, numbers: Sequence[float]) -> Floats:
    """Probability that a box is right, from its presence and its expected IoU, each in [0, 1].

    `numbers` are (constant, slope of the presence's log-odds, slope of the expected IoU's log-odds); without them the
    presence is returned as it is. Without an expected IoU its log-odds are 0.
    """
    if not numbers:
        return np.asarray(presence, dtype=np.float64)
    constant, of_presence, of_quality = numbers
    logit = constant + of_presence * _log_odds(presence)
    if quality is not None:
        logit = logit + of_quality * _log_odds(quality)
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float64)


def fit_calibration(presence: Floats, quality: Floats | None, correct: Floats) -> tuple[float, float, float]:
    """The `numbers` of `calibrated` that make these float64[n] most likely; `correct` holds 0 and 1.

    A logistic regression whose slopes may not be negative, so that the map is monotone: a feature that would count
    against is left out. Raises ValueError where there is nothing to tell apart.
    """
    if len(correct) == 0 or correct.min() == correct.max():
        raise ValueError("a calibration needs phrases that were hit and phrases that were missed; take more studies")
    features = [_log_odds(presence)] + ([] if quality is None else [_log_odds(quality)])
    best, numbers = -np.inf, np.zeros(3)
    for count in range(len(features) + 1):
        for used in combinations(range(len(features)), count):
            columns = np.stack([np.ones_like(correct), *(features[i] for i in used)], axis=1)
            weights = _logistic(columns, correct)
            fit = _log_likelihood(columns, correct, weights)
            if (weights[1:] >= 0).all() and fit > best:
                best, numbers = fit, np.zeros(3)
                numbers[[0, *(i + 1 for i in used)]] = weights
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _log_odds(probability: ArrayLike) -> Floats:
    p = np.clip(np.asarray(probability, dtype=np.float64), EDGE, 1 - EDGE)
    return np.asarray(np.log(p / (1 - p)), dtype=np.float64)


def _logistic(columns: Floats, correct: Floats) -> Floats:
    """Weights float64[k] of a ridge logistic regression by Newton's method; the first column is the constant."""
    weights = np.zeros(columns.shape[1])
    ridge = np.full(columns.shape[1], PENALTY * len(correct))
    ridge[0] = 1e-9 * len(correct)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
        slope = columns.T @ (correct - p) - ridge * weights
        curvature = (columns * (p * (1 - p))[:, None]).T @ columns + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(weights, dtype=np.float64)


def _log_likelihood(columns: Floats, correct: Floats, weights: Floats) -> float:
    """Penalised as the fit is, so that the fits of fewer features are comparable."""
    logit = columns @ weights
    plain = float((correct * logit - np.logaddexp(0, logit)).sum())
    return plain - PENALTY * len(correct) * float(np.square(weights[1:]).sum()) / 2


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)
