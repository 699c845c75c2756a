"""Fits what a model's confidence means, on generated studies that it was not trained on, into its config.json.

The weights stay as they are. `python -m grounding.training.calibrate --model DIR --phantoms N`
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grounding.checkpoint import CONFIG, find_folder, load_predictor, read_config
from grounding.evaluation.calibration import calibrated, expected_error, fit_calibration, is_correct
from grounding.evaluation.cases import PhantomCases
from grounding.evaluation.evaluate import Course, examine
from grounding.evaluation.records import Case, Prediction, Predictor
from grounding.training.material import FIRST_VALIDATION_SEED

log = logging.getLogger(__name__)

FIRST_CALIBRATION_SEED = FIRST_VALIDATION_SEED + 1000

Numbers = tuple[float, float, float]


def calibrate(model: Path | str, phantoms: int, device: str = "auto", size: int = 256) -> Numbers:
    """Fit the calibration of a model folder on `phantoms` generated studies of `size` pixels, and write it there.

    Raises ModelError for a folder that is no model, and ValueError where the studies hold no hits or no misses.
    """
    folder = find_folder(model)
    predictor = load_predictor(folder, device).uncalibrated()
    cases = PhantomCases(range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + phantoms), size)
    numbers = fit(predictor, cases)
    write_calibration(folder, numbers)
    return numbers


def fit(predictor: Predictor, cases: Sequence[Case]) -> Numbers:
    """The calibration of a predictor whose scores are presence probabilities, free-running over `cases`."""
    predictions = [p for p in examine(predictor, cases, Course(controls=())).predictions if p.is_localized]
    presence = np.array([p.confidence for p in predictions], dtype=np.float64)
    quality = _quality(predictions)
    correct = np.array([is_correct(p) for p in predictions], dtype=np.float64)
    constant, of_presence, of_quality = (round(n, 6) for n in fit_calibration(presence, quality, correct))
    numbers = (constant, of_presence, of_quality)
    before, after = (expected_error(calibrated(presence, quality, n), correct) for n in ((), numbers))
    log.info("%d localised phrases, %.1f %% right", len(correct), 100 * correct.mean())
    log.info("calibration error %.4f, with the calibration %s: %.4f", before, numbers, after)
    return numbers


def _quality(predictions: Sequence[Prediction]) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Expected IoU of each prediction's surest box; None for a model without that head."""
    if any(p.uncertainty is None for p in predictions):
        return None
    return np.array([1 - (p.uncertainty or 0.0) for p in predictions], dtype=np.float64)


def write_calibration(folder: Path, numbers: Numbers) -> None:
    """Put a calibration into the config.json of a model folder; everything else in it stays."""
    config = read_config(folder)
    decision = config.decision.model_copy(update={"calibration": numbers})
    partial = folder / f"{CONFIG}.part"
    changed = config.model_copy(update={"decision": decision})
    partial.write_text(changed.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description="Fit what the confidence of a model means, on generated studies.")
    parser.add_argument("--model", required=True, help="model folder; its config.json is written")
    parser.add_argument("--phantoms", type=int, default=1000, help="generated studies of the validation seeds")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    calibrate(options.model, options.phantoms, options.device)


if __name__ == "__main__":
    main()
