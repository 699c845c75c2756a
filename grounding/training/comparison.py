"""Rows of an ablation side by side: means over seeds, bootstrap intervals, and paired differences, as Markdown.

Rows are compared on the very same items, seed by seed. Images are drawn anew for each resample, and seeds too where
every seed scored every image; where each seed has its own fold of patients, the fold stays with its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grounding.evaluation.metrics import Score

RESAMPLES = 1000
Floats = NDArray[np.float64]
Runs = Mapping[int, Sequence[Score]]
"""Scores of one row on one set, by seed."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval, for AP50 and mIoU: each float64[2]."""

    mean: Floats
    low: Floats
    high: Floats

    def cell(self, measure: int, signed: bool = False) -> str:
        """Points with one decimal: `62.1 [60.0, 64.3]`."""
        form = "{:+.1f}" if signed else "{:.1f}"
        mean, low, high = (form.format(100 * float(x[measure])) for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def measures(scores: Sequence[Score]) -> Floats:
    """float64[n, 2]: whether the IoU is at least 0.5, and the IoU."""
    ious = np.array([score.iou for score in scores], dtype=np.float64)
    return np.stack([ious >= 0.5, ious], 1).astype(np.float64)


def estimate(runs: Runs) -> Estimate:
    """Mean over all items of all seeds, and its interval."""
    return _resampled({seed: ([s.image for s in scores], measures(scores)) for seed, scores in runs.items()})


def difference(runs: Runs, reference: Runs) -> Estimate | None:
    """Mean of the item-wise differences to `reference` over the seeds that both have; None where there are none.

    Raises:
        ValueError: the two were not scored on the same items.
    """
    pairs: dict[int, tuple[list[str], Floats]] = {}
    for seed in sorted(set(runs) & set(reference)):
        ours, theirs = runs[seed], reference[seed]
        if [(s.image, s.label) for s in ours] != [(s.image, s.label) for s in theirs]:
            raise ValueError(f"the runs of seed {seed} were scored on different items: score them on one material")
        pairs[seed] = ([s.image for s in ours], measures(ours) - measures(theirs))
    return _resampled(pairs) if pairs else None


def _resampled(parts: Mapping[int, tuple[Sequence[str], Floats]]) -> Estimate:
    names = {name: i for i, name in enumerate(sorted({n for images, _ in parts.values() for n in images}))}
    sums, counts = np.zeros((len(parts), len(names), 2)), np.zeros((len(parts), len(names)))
    for place, (images, values) in enumerate(parts.values()):
        group = np.array([names[image] for image in images], dtype=np.int64)
        np.add.at(sums[place], group, values)
        np.add.at(counts[place], group, 1)
    rng = np.random.default_rng(0)
    image_draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES).astype(np.float64)
    shared = bool(((counts > 0).all(0) | (counts == 0).all(0)).all())
    seeds = len(parts)
    seed_draws = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) if shared else np.ones((RESAMPLES, seeds))
    totals = np.einsum("rs,ru,suk->rk", seed_draws, image_draws, sums, optimize=True)
    weights = np.einsum("rs,ru,su->r", seed_draws, image_draws, counts, optimize=True)
    low, high = np.percentile(totals / np.maximum(weights, 1)[:, None], [2.5, 97.5], axis=0)
    return Estimate(sums.sum((0, 1)) / counts.sum(), low, high)


def markdown(rows: Mapping[str, Mapping[str, Runs]], sets: Sequence[str], references: Sequence[str]) -> str:
    """One table for each set: rows with AP50 and mIoU, and their differences to each of `references`.

    `rows` gives by row, then by set, the runs that are there; a row or set without runs is left out.
    """
    tables = []
    for name in sets:
        there = {row: found[name] for row, found in rows.items() if found.get(name)}
        if there:
            tables.append(_table(name, there, [r for r in references if r in there]))
    return "\n\n".join(tables)


def _table(name: str, rows: Mapping[str, Runs], references: Sequence[str]) -> str:
    items = {len(scores) for runs in rows.values() for scores in runs.values()}
    heads = ["Row", "Seeds", "AP50", "mIoU"] + [f"{m} − {r}" for r in references for m in ("AP50", "mIoU")]
    lines = [f"### {name} ({'–'.join(map(str, sorted({min(items), max(items)})))} phrases for each seed)", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row, runs in rows.items():
        whole = estimate(runs)
        cells = [row, str(len(runs)), whole.cell(0), whole.cell(1)]
        for reference in references:
            gap = None if reference == row else difference(runs, rows[reference])
            cells += ["", ""] if gap is None else [gap.cell(0, signed=True), gap.cell(1, signed=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
