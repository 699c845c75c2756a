"""Where training material comes from: an endless stream of generated studies and real radiographs, in one worker."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch.utils.data import IterableDataset

from grounding.geometry import resize, stretch_contrast
from grounding.phantoms.study import EMPHASIZED, make_study
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import (
    PHANTOM_MOVES,
    AbsentPhrases,
    Example,
    Prompt,
    RealImage,
    RealRow,
    anatomy_prompts,
    inserted_example,
    licensed_patients,
    make_example,
    phantom_prompts,
    pick_prompts,
    real_example,
)
from grounding.training.lessons import ReadingLessons
from grounding.training.recipe import RealSettings, Recipe
from grounding.types import Image

log = logging.getLogger(__name__)

FIRST_TRAINING_SEED = 1_000_000
FIRST_VALIDATION_SEED = 500_000
REAL_SIDE = 320
MOST_BOXES = 4
ABSENT_IF_NORMAL = ("pleural effusion", "consolidation", "lung nodule", "lung mass", "pneumothorax", "atelectasis")


class Phantoms:
    """Generated studies: new ones from fresh seeds, or earlier ones kept as bytes."""

    def __init__(self, fresh_share: float, keep: int, first_seed: int) -> None:
        self.fresh_share, self.keep, self.next_seed = fresh_share, keep, first_seed
        self.kept: list[tuple[NDArray[np.uint8], list[Prompt], list[Prompt]]] = []

    def draw(self, rng: np.random.Generator) -> tuple[Image, list[Prompt], list[Prompt]]:
        """A picture float32[256, 256], the prompts of its report and those of its anatomy."""
        if len(self.kept) > 400 and rng.random() > self.fresh_share:
            pixels, prompts, anatomy = self.kept[int(rng.integers(len(self.kept)))]
            return pixels.astype(np.float32) / np.float32(255), prompts, anatomy
        study = make_study(self.next_seed, rates=EMPHASIZED)
        self.next_seed += 1
        prompts, anatomy = phantom_prompts(study), anatomy_prompts(study)
        kept = ((study.image * 255).astype(np.uint8), prompts, anatomy)
        if len(self.kept) < self.keep:
            self.kept.append(kept)
        else:
            self.kept[int(rng.integers(self.keep))] = kept
        return study.image, prompts, anatomy


class Stream(IterableDataset[TrainingBatch]):
    """Endless batches: `phantoms` generated and `real` real pictures in each."""

    def __init__(self, recipe: Recipe, batcher: Batcher, real: list[RealImage], seed: int) -> None:
        super().__init__()
        self.canvas = recipe.model.frame.canvas
        self.recipe, self.batcher, self.real, self.seed = recipe, batcher, real, seed
        self.absent = AbsentPhrases(batcher.bank)
        self.lessons = ReadingLessons(batcher.bank)

    def __iter__(self) -> Iterator[TrainingBatch]:
        rng = np.random.default_rng(self.seed)
        first = FIRST_TRAINING_SEED + (self.seed % 1000) * 1_000_000
        phantoms = Phantoms(self.recipe.fresh_share, self.recipe.keep, first)
        weights = np.array([1.0 if r.patient.startswith("cohen") else 0.35 for r in self.real])
        while True:
            yield self.batcher.collate(self._examples(rng, phantoms, weights))

    def _examples(self, rng: np.random.Generator, phantoms: Phantoms, weights: NDArray[np.float64]) -> list[Example]:
        sizes = self.recipe.batch
        examples = []
        for _ in range(sizes.phantoms + (0 if self.real else sizes.real)):
            image, prompts, anatomy = phantoms.draw(rng)
            picked = pick_prompts(rng, prompts, sizes.prompts)
            absent = self.absent.draw(rng, prompts)
            if absent is not None and rng.random() < self.recipe.absent_share:
                picked[-1:] = [absent]
            if rng.random() < self.recipe.anatomy_share:
                picked.append(anatomy[int(rng.integers(len(anatomy)))])
            examples.append(make_example(rng, image, picked, PHANTOM_MOVES, self.canvas))
        if self.real:
            share = weights / weights.sum()
            for index in rng.choice(len(self.real), sizes.real, p=share):
                examples.append(real_example(rng, self.real[index], sizes.real_prompts, self.canvas))
            for index in rng.choice(len(self.real), sizes.inserted, p=share):
                painted = inserted_example(rng, self.real[index], sizes.prompts, self.canvas)
                examples += [] if painted is None else [painted]
        for _ in range(sizes.lessons):
            number = int(rng.integers(len(examples)))
            taught = (*examples[number].prompts, self.lessons.draw(rng))
            examples[number] = Example(examples[number].image, taught)
        return examples


def validation_phantoms(count: int, canvas: int) -> list[Example]:
    """Generated studies of the validation seeds, every sentence, unmoved."""
    examples = []
    for seed in range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + count):
        study = make_study(seed)
        examples.append(Example(stretch_contrast(resize(study.image, canvas, canvas)), tuple(phantom_prompts(study))))
    return examples


def load_real(settings: RealSettings) -> tuple[list[RealImage], list[RealImage]]:
    """Real radiographs for training and validation, parted by patient; empty where the set is absent."""
    root = settings.root
    rows = [
        (root / m, json.loads(line)) for m in settings.manifests if (root / m).is_file() for line in _lines(root / m)
    ]
    if settings.manifests and not rows:
        log.warning("no real radiographs under %s: training on generated ones alone", root)
    if not rows:
        return [], []
    allowed = {row["patient"] for _, row in rows}
    if settings.licences == "stated":
        allowed = licensed_patients((row["patient"], row["license"]) for _, row in rows)
    if settings.folds is not None:
        allowed -= fold_patients(sorted({row["patient"] for _, row in rows}), settings.folds)[settings.fold]
    grouped: dict[tuple[Path, str], list[RealRow]] = defaultdict(list)
    for manifest, row in rows:
        if row["patient"] in allowed:
            grouped[(manifest.parent / row["image"], row["patient"])] += _real_rows(row)
    images = [RealImage(_picture(path), patient, tuple(found)) for (path, patient), found in grouped.items() if found]
    held = held_out(sorted({image.patient for image in images}), settings.validation_share)
    return [i for i in images if i.patient not in held], [i for i in images if i.patient in held]


def fold_patients(patients: list[str], folds: int) -> list[set[str]]:
    """The test patients of each fold of a cross-validation: every source dealt out in turn."""
    dealt: list[set[str]] = [set() for _ in range(folds)]
    by_source: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(set(patients)):
        by_source[patient.split("-")[0]].append(patient)
    for group in by_source.values():
        order = np.random.default_rng(len(group)).permutation(len(group))
        for place, index in enumerate(order):
            dealt[place % folds].add(group[index])
    return dealt


def held_out(patients: list[str], share: float) -> set[str]:
    """The patients of validation: every n-th of each source, so that the split never moves."""
    if share == 0:
        return set()
    step = max(2, round(1 / share))
    by_source: dict[str, list[str]] = defaultdict(list)
    for patient in patients:
        by_source[patient.split("-")[0]].append(patient)
    return {p for group in by_source.values() for p in group[step // 2 :: step]}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _picture(path: Path) -> Image:
    with PillowImage.open(path) as picture:
        grey = np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
    return resize(grey, REAL_SIDE, REAL_SIDE)


def _real_rows(row: dict[str, Any]) -> list[RealRow]:
    if row["phrase"] == "no finding":
        normal = row["label"].startswith("No finding (10") and not row["boxes"]
        return [RealRow(phrase, row["label"], ()) for phrase in ABSENT_IF_NORMAL] if normal else []
    if len(row["boxes"]) > MOST_BOXES or row["present"] != bool(row["boxes"]):
        return []
    if not row["present"] and row["phrase_source"] == "report":
        return []
    w, h = row["width"], row["height"]
    boxes = tuple(((x + bw / 2) / w, (y + bh / 2) / h, bw / w, bh / h) for x, y, bw, bh in row["boxes"])
    return [RealRow(row["phrase"], row["label"], boxes)]
