"""Cross-validation by patient on real radiographs: a model for each fold, measured on the patients that it never saw.

Beside the model stand its controls on the same items: the median-box table of the fold's own training patients, which
sees no pixel, and the model without pixels. Folds are trained one by one and may run at once; what they scored is kept
in the run's folder, and all folds together make the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grounding.checkpoint import load_predictor
from grounding.evaluation.cases import manifest_cases
from grounding.evaluation.evaluate import Course, examine
from grounding.evaluation.metrics import Score, summarize
from grounding.evaluation.prior import PriorPredictor, build_table, manifest_phrases
from grounding.evaluation.records import Prediction, Predictor
from grounding.knowledge import load_bank
from grounding.predictor import Predictor as LoadedPredictor
from grounding.sets.manifest import ManifestRow, read_manifest
from grounding.training.material import fold_patients
from grounding.training.recipe import Recipe, RecipeError
from grounding.training.train import train_by

MODEL, SHOWN, FREE, PRIOR, BLIND = "phrase", "shown", "free", "prior", "blind"
SCORES = "scores.json"

Scored = dict[str, dict[str, list[Score]]]
"""Scores by test set and by what gave them: the model with the phrase, the same told that what it is asked for is
shown, the model alone, the table, no pixels."""


@dataclass(frozen=True, slots=True)
class TestSet:
    """Rows that are reported together."""

    name: str
    rows: list[ManifestRow]


def crossvalidate(recipe: Recipe, folds: Iterable[int]) -> None:
    """Train and score `folds` of the recipe; a fold that has been scored is not done again.

    Raises:
        RecipeError: the recipe has no folds, or none of this number.
    """
    for fold in folds:
        done = folder_of(recipe, fold) / SCORES
        if not done.exists():
            chosen = fold_recipe(recipe, fold)
            train_by(chosen)
            scored = score_fold(chosen, load_predictor(chosen.run_dir / "best"))
            done.write_text(json.dumps(_plain(scored)), encoding="utf-8")


def fold_recipe(recipe: Recipe, fold: int) -> Recipe:
    """The recipe of one fold, in a folder of its own."""
    if recipe.real.folds is None or not 0 <= fold < recipe.real.folds:
        raise RecipeError(f"real.folds is {recipe.real.folds}: there is no fold {fold}; set folds and count from 0")
    real = recipe.real.model_copy(update={"fold": fold})
    return recipe.model_copy(update={"real": real, "run_dir": folder_of(recipe, fold)})


def folder_of(recipe: Recipe, fold: int) -> Path:
    """Where a fold keeps its run."""
    return recipe.run_dir / f"fold-{fold}"


def test_sets(recipe: Recipe) -> list[TestSet]:
    """Every manifest of the recipe, and the rows of each whose phrase stands in a report."""
    sets = []
    for manifest in recipe.real.manifests:
        path = recipe.real.root / manifest
        rows = [row for row in read_manifest(path) if row.present]
        name = manifest.removesuffix(".jsonl")
        sets.append(TestSet(name, rows))
        spoken = [row for row in rows if row.phrase_source == "report"]
        if spoken and len(spoken) < len(rows):
            sets.append(TestSet(f"{name}, report phrases", spoken))
    return sets


def score_fold(recipe: Recipe, predictor: LoadedPredictor) -> Scored:
    """Scores of a fold's model and of its controls on the patients that the fold kept out."""
    sets = test_sets(recipe)
    kept_out = patients_of_fold(recipe)
    known = [row for each in sets for row in each.rows if row.patient_name not in kept_out]
    prior = PriorPredictor(build_table(manifest_phrases(known), load_bank()))
    scored: Scored = {}
    for each in sets:
        rows = [row for row in each.rows if row.patient_name in kept_out]
        if rows:
            scored[each.name] = _score(rows, predictor, prior)
    return scored


def patients_of_fold(recipe: Recipe) -> set[str]:
    """The patients that the recipe's fold keeps out, as training chooses them."""
    rows = [row for name in recipe.real.manifests for row in read_manifest(recipe.real.root / name)]
    return fold_patients(sorted({row.patient_name for row in rows}), recipe.real.folds or 2)[recipe.real.fold]


def _score(rows: list[ManifestRow], predictor: LoadedPredictor, prior: Predictor) -> dict[str, list[Score]]:
    given = examine(predictor, manifest_cases(rows), Course(("phrase",), ("blind",), prior))
    told = examine(predictor.assuming_shown(), manifest_cases(rows), Course(("phrase",), ()))
    scores = {
        MODEL: _scores(given.runs["phrase", ""].predictions),
        SHOWN: _scores(told.predictions),
        PRIOR: _scores(given.runs["phrase", PRIOR].predictions),
        BLIND: _scores(given.runs["phrase", BLIND].predictions),
    }
    reported = [row for row in rows if row.report and row.phrase_source == "report"]
    if reported:
        alone = examine(predictor, manifest_cases(reported), Course(("free",), ()))
        scores[FREE] = _scores(alone.predictions)
    return scores


def _scores(predictions: Sequence[Prediction]) -> list[Score]:
    return [Score(p.image, p.reference.label, p.iou, has_box=p.is_localized) for p in predictions if p.reference.boxes]


def _plain(scored: Scored) -> dict[str, Any]:
    return {name: {by: [asdict(s) for s in scores] for by, scores in given.items()} for name, given in scored.items()}


def pooled(recipe: Recipe) -> Scored:
    """The scores of all folds that are done, together."""
    together: Scored = {}
    for fold in range(recipe.real.folds or 0):
        path = folder_of(recipe, fold) / SCORES
        if path.exists():
            for name, given in json.loads(path.read_text(encoding="utf-8")).items():
                held = together.setdefault(name, {})
                for by, scores in given.items():
                    held.setdefault(by, []).extend(Score(**score) for score in scores)
    return together


def table(scored: Scored) -> str:
    """Markdown: a row for each set; mIoU and AP50 with their intervals, and beside them mIoU / AP50 of the others.

    `not localised counts 0` is the model as it is used; the first two columns are told that the phrase is shown, as
    regressors and the table are.
    """
    lines = [
        "| set | n | images | mIoU | AP50 | not localised counts 0 | free-running | median boxes | without pixels |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, given in scored.items():
        figures = {by: summarize(scores) for by, scores in given.items()}
        model = figures[SHOWN]
        controls = " | ".join(_pair(figures.get(by)) for by in (MODEL, FREE, PRIOR, BLIND))
        lines.append(
            f"| {name} | {model['n']} | {model['images']} | {_with_interval(model, 'miou')} "
            f"| {_with_interval(model, 'ap50')} | {controls} |"
        )
    return "\n".join(lines)


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci"]
    return f"{figures[name]:.3f} ({low:.3f} to {high:.3f})"


def _pair(figures: Mapping[str, Any] | None) -> str:
    return "–" if figures is None else f"{figures['miou']:.2f} / {figures['ap50']:.2f} (n {figures['n']})"
