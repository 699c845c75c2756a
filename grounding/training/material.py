"""Where training material comes from: an endless stream of generated studies and real radiographs, in one worker."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from grounding.geometry import resize, stretch_contrast
from grounding.knowledge import load_bank
from grounding.phantoms.study import EMPHASIZED, make_study
from grounding.sets.manifest import DicomReader, ManifestError, ManifestRow, load_image, read_manifest, read_size
from grounding.sets.splits import Part, read_part
from grounding.spans import align
from grounding.text import split_sentences
from grounding.training.absence import AbsentPhrases
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import (
    PHANTOM_MOVES,
    Example,
    Prompt,
    RealImage,
    RealRow,
    Sentence,
    anatomy_prompts,
    blank,
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
SMALLEST_SIDE = 320
MOST_BOXES = 4
ABSENT_IF_NORMAL = ("pleural effusion", "consolidation", "lung nodule", "lung mass", "pneumothorax", "atelectasis")
NORMAL = re.compile(r"No finding \(1[03] ")
"""Label of a picture in which three radiologists found none of the 10 or 13 findings of ChestX-Det."""
HELD_BACK: tuple[Part | None, ...] = (None, "train", "val", "test")
"""Parts of a set, the least held back first."""


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
        self.absent = AbsentPhrases(batcher.bank, recipe.absent_share)
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
            absent = self.absent.draw(rng, prompts, picked)
            if absent is not None:
                picked[sizes.prompts - 1 :] = [absent]
            if rng.random() < self.recipe.anatomy_share:
                picked.append(anatomy[int(rng.integers(len(anatomy)))])
            examples.append(make_example(rng, image, picked, PHANTOM_MOVES, self.canvas))
        if self.real:
            share = weights / weights.sum()
            for index in rng.choice(len(self.real), sizes.real, p=share):
                examples.append(
                    real_example(rng, self.real[index], sizes.real_prompts, self.canvas, self.recipe.real_shares)
                )
            for index in rng.choice(len(self.real), sizes.inserted, p=share):
                painted = inserted_example(rng, self.real[index], sizes.prompts, self.canvas)
                examples += [] if painted is None else [painted]
        examples = [blank(rng, e) if rng.random() < self.recipe.blank_share else e for e in examples]
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


def load_real(
    settings: RealSettings, canvas: int = 256, read_dicom: DicomReader | None = None
) -> tuple[list[RealImage], list[RealImage]]:
    """Real radiographs for training and validation, parted by patient; empty where the set is absent.

    Splits that rows name are kept (`RealSettings`); of the other patients some are held out. Pictures are kept as
    bytes, `picture_side` of the canvas on each side, up to `memory_gb`; from there on they are read at each use.

    Raises:
        ManifestError: a row is not as the contract says, or its picture is missing, damaged or of another size.
    """
    rows = _read_manifests(settings)
    if settings.manifests and not rows:
        log.warning("no real radiographs under %s: training on generated ones alone", settings.root)
    grouped: dict[tuple[Path, str, Part | None], list[ManifestRow]] = defaultdict(list)
    for row, part in parted(_allowed(rows, settings), settings.split_unit):
        if part != "test":
            grouped[row.image, row.patient_name, part] += [row] if _real_rows(row, settings.zones) else []
    shown = {key: found for key, found in grouped.items() if found}
    if rows and not shown:
        log.warning("none of %d rows may be trained on: see `licences`, `folds` and the rows' split", len(rows))
    held = held_out(sorted({patient for _, patient, part in shown if part is None}), settings.validation_share)
    shelf = Shelf(picture_side(canvas), settings.memory_gb * 1e9, read_dicom)
    training: list[RealImage] = []
    validation: list[RealImage] = []
    for (_, patient, part), found in shown.items():
        image = RealImage(
            shelf.take(found), patient, tuple(real for row in found for real in _real_rows(row, settings.zones))
        )
        (validation if part == "val" or (part is None and patient in held) else training).append(image)
    return training, validation


def _read_manifests(settings: RealSettings) -> list[ManifestRow]:
    """The rows of all manifests that are there, with the split that a manifest without val leaves open taken away."""
    rows = []
    for name in settings.manifests:
        if not (settings.root / name).is_file():
            log.warning("no manifest %s", settings.root / name)
            continue
        read = read_manifest(settings.root / name)
        splits = {row.split: _part(settings.root / name, row) for row in read}
        open_train = "val" not in splits.values()
        for row in read:
            part = splits[row.split]
            rows.append(replace(row, split=None if open_train and part == "train" else part))
    return rows


def _part(manifest: Path, row: ManifestRow) -> Part | None:
    try:
        return read_part(row.split)
    except ValueError as error:
        raise ManifestError(f"{manifest}, row {row.id!r}, field 'split': {error}") from error


def _allowed(rows: list[ManifestRow], settings: RealSettings) -> list[ManifestRow]:
    """The rows of patients whose licence allows training and who are not of the fold that is kept out."""
    patients = {row.patient_name for row in rows}
    allowed = set(patients)
    if settings.licences == "stated":
        allowed = licensed_patients((row.patient_name, row.license or "") for row in rows)
        if allowed != patients:
            log.info("%d of %d patients are left out for their licence", len(patients - allowed), len(patients))
    if settings.folds is not None:
        allowed -= fold_patients(sorted(patients), settings.folds)[settings.fold]
    return [row for row in rows if row.patient_name in allowed]


def parted(rows: list[ManifestRow], unit: Literal["patient", "row"]) -> list[tuple[ManifestRow, Part | None]]:
    """Each row with its part: its own split or, by patient, the one of the patient's rows that is furthest held out."""
    own = [read_part(row.split) for row in rows]
    if unit == "row":
        return list(zip(rows, own, strict=True))
    of_patient: dict[str, Part | None] = {}
    for row, part in zip(rows, own, strict=True):
        of_patient[row.patient_name] = max(of_patient.get(row.patient_name), part, key=HELD_BACK.index)
    moved = sum(part != "test" and of_patient[row.patient_name] == "test" for row, part in zip(rows, own, strict=True))
    if moved:
        log.info("%d rows of patients of a test split are left out (split_unit: row would train on them)", moved)
    return [(row, of_patient[row.patient_name]) for row in rows]


def picture_side(canvas: int) -> int:
    """Pixels on each side of a picture that is kept: a moved and enlarged canvas loses nothing."""
    return max(SMALLEST_SIDE, math.ceil(canvas * 1.25))


@dataclass(frozen=True, slots=True)
class PictureFile:
    """The picture of a row, read when it is called for: uint8[side, side], stretched to the square."""

    row: ManifestRow
    side: int
    read_dicom: DicomReader | None = None

    def __call__(self) -> NDArray[np.uint8]:
        """Read, check and shrink it; raises ManifestError."""
        try:
            image = load_image(self.row.image, self.read_dicom)
        except ManifestError as error:
            raise ManifestError(f"row {self.row.id!r}: {error}") from error
        self.compare(image.shape[1], image.shape[0])
        return np.rint(np.clip(resize(image, self.side, self.side), 0, 1) * 255).astype(np.uint8)

    def check(self) -> None:
        """Read the header alone, so that a wrong file stops a run at its beginning; raises ManifestError."""
        try:
            size = read_size(self.row.image, None if self.read_dicom is None else self._unread)
        except ManifestError as error:
            raise ManifestError(f"row {self.row.id!r}: {error}") from error
        self.compare(*size)

    def _unread(self, _: Path) -> tuple[int, int]:
        return self.row.width, self.row.height

    def compare(self, width: int, height: int) -> None:
        """Raise ManifestError where the row says another size."""
        if (width, height) != (self.row.width, self.row.height):
            raise ManifestError(
                f"row {self.row.id!r}: {self.row.image} has {width} x {height} pixels, "
                f"and the manifest says {self.row.width} x {self.row.height}"
            )


class Shelf:
    """Pictures in memory as long as there is room, and how to read the others."""

    def __init__(self, side: int, room: float, read_dicom: DicomReader | None) -> None:
        self.side, self.room, self.read_dicom = side, room, read_dicom

    def take(self, rows: list[ManifestRow]) -> NDArray[np.uint8] | PictureFile:
        """The picture of some rows, which must agree on its size; raises ManifestError."""
        file = PictureFile(rows[0], self.side, self.read_dicom)
        for row in rows[1:]:
            PictureFile(row, self.side).compare(rows[0].width, rows[0].height)
        self.room -= self.side**2
        if self.room >= 0:
            return file()
        file.check()
        return file


def fold_patients(patients: list[str], folds: int) -> list[set[str]]:
    """The test patients of each fold of a cross-validation: every source dealt out in turn."""
    dealt: list[set[str]] = [set() for _ in range(folds)]
    for group in _by_source(sorted(set(patients))):
        order = np.random.default_rng(len(group)).permutation(len(group))
        for place, index in enumerate(order):
            dealt[place % folds].add(group[index])
    return dealt


def held_out(patients: list[str], share: float) -> set[str]:
    """The patients of validation: every n-th of each source, so that the split never moves."""
    if share == 0:
        return set()
    step = max(2, round(1 / share))
    return {p for group in _by_source(patients) for p in group[step // 2 :: step]}


def _by_source(patients: list[str]) -> list[list[str]]:
    """Patients by the set that their name begins with ("nih-…"); those that stand alone in theirs, together."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for patient in patients:
        by_source[patient.split("-")[0]].append(patient)
    alone = [group[0] for group in by_source.values() if len(group) == 1]
    groups = [group for group in by_source.values() if len(group) > 1]
    return [*groups, alone] if alone else groups


def _real_rows(row: ManifestRow, zones: str) -> list[RealRow]:
    label, phrase = row.label or "", row.phrase
    if zones == "places" and row.present and row.phrase_source == "zone":
        phrase = phrase.partition(" in the ")[2] or phrase
    if row.phrase == "no finding":
        normal = NORMAL.match(label) and not row.boxes
        return [RealRow(phrase, label, ()) for phrase in ABSENT_IF_NORMAL] if normal else []
    if len(row.boxes) > MOST_BOXES or (not row.present and row.phrase_source == "report"):
        return []
    w, h = row.width, row.height
    boxes = tuple(
        ((b.x1 + b.x2) / 2 / w, (b.y1 + b.y2) / 2 / h, (b.x2 - b.x1) / w, (b.y2 - b.y1) / h) for b in row.boxes
    )
    return [RealRow(phrase, label, boxes, _sentence(row) if phrase == row.phrase else None)]


def _sentence(row: ManifestRow) -> Sentence | None:
    """The sentence of the row's report that holds its phrase word for word and names no other finding."""
    found = align(row.phrase, row.report) if row.report else None
    if found is None or not found.exact or row.report is None:
        return None
    place, text = found.span, row.report
    for span in split_sentences(text, 0, len(text)):
        if span.start <= place.start and place.end <= span.end:
            words, start, end = text[span.start : span.end], place.start - span.start, place.end - span.start
            outside = [name for name in load_bank().names_in(words) if name[0] < start or name[1] > end]
            return None if outside else Sentence(words, start, end)
    return None
