"""Comparing runs: means, pairs, seeds and folds, and the table."""

from __future__ import annotations

import numpy as np
import pytest

from grounding.evaluation.metrics import Score
from grounding.training.comparison import difference, estimate, markdown


def scores(ious: list[float], start: int = 0) -> list[Score]:
    return [Score(f"image-{start + i // 2}", "nodule", iou, has_box=True) for i, iou in enumerate(ious)]


def test_an_estimate_is_the_mean_over_all_items_with_an_interval_around_it() -> None:
    found = estimate({1: scores([0.2, 0.4, 0.8, 0.6]), 2: scores([0.4, 0.6, 0.8, 0.4])})
    assert found.mean == pytest.approx([0.5, 0.525])
    assert (found.low < found.mean).all() and (found.mean < found.high).all()


def test_a_constant_gain_is_certain_however_much_the_items_differ() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.8, 60).tolist()
    gap = difference({1: scores([x + 0.1 for x in base])}, {1: scores(base)})
    assert gap is not None
    assert (gap.mean[1], gap.low[1], gap.high[1]) == pytest.approx((0.1, 0.1, 0.1))
    assert estimate({1: scores(base)}).high[1] - estimate({1: scores(base)}).low[1] > 0.05


def test_noise_of_both_signs_has_an_interval_that_holds_nothing() -> None:
    rng = np.random.default_rng(1)
    base, other = rng.uniform(0, 1, 80).tolist(), rng.uniform(0, 1, 80).tolist()
    gap = difference({1: scores(base)}, {1: scores(other)})
    assert gap is not None and gap.low[1] < 0 < gap.high[1]


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = [0.5] * 40
    one = difference({1: scores([0.6] * 40), 2: scores([0.6] * 40)}, {1: scores(base), 2: scores(base)})
    two = difference({1: scores([0.8] * 40), 2: scores([0.4] * 40)}, {1: scores(base), 2: scores(base)})
    assert one is not None and two is not None
    assert one.mean[1] == pytest.approx(two.mean[1]) and two.high[1] - two.low[1] > one.high[1] - one.low[1] + 0.1


def test_folds_are_taken_together_and_stay_with_their_seeds() -> None:
    folds = {1: scores([0.4] * 4), 2: scores([0.8] * 8, start=2)}
    assert estimate(folds).mean[1] == pytest.approx((4 * 0.4 + 8 * 0.8) / 12)


def test_only_seeds_that_both_have_are_compared_and_only_the_same_items() -> None:
    gap = difference({1: scores([0.5, 0.5]), 3: scores([1.0, 1.0])}, {1: scores([0.4, 0.4]), 2: scores([0.0, 0.0])})
    assert gap is not None and gap.mean[1] == pytest.approx(0.1)
    assert difference({1: scores([0.5])}, {2: scores([0.5])}) is None
    with pytest.raises(ValueError, match="different items"):
        difference({1: scores([0.5, 0.5])}, {1: scores([0.5])})


def test_the_table_shows_points_and_the_differences_to_the_references() -> None:
    rows = {
        "A": {"films": {1: scores([0.4, 0.6])}, "phantoms": {1: scores([0.5, 0.5])}},
        "B": {"films": {1: scores([0.5, 0.7])}},
        "C": {"films": {}},
    }
    table = markdown(rows, ["phantoms", "films"], ["A"])
    assert table.index("### phantoms") < table.index("### films (2 phrases")
    lines = table.splitlines()
    assert "| B | 1 | 100.0 [100.0, 100.0] | 60.0 [60.0, 60.0] | +50.0 [+50.0, +50.0] | +10.0 [+10.0, +10.0] |" in lines
    assert "| A | 1 | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] |  |  |" in lines
    assert not any(line.startswith("| C") for line in lines)
