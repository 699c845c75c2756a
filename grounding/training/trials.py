"""The material of an ablation: generated studies and moved copies of real radiographs to train on, and test sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from grounding.config import Section
from grounding.geometry import Frame, stretch_contrast
from grounding.knowledge import KnowledgeBank
from grounding.phantoms.study import EMPHASIZED, make_study
from grounding.sets.manifest import ManifestRow, load_image, read_manifest
from grounding.training.examples import (
    PHANTOM_MOVES,
    Answer,
    Example,
    Prompt,
    anatomy_prompts,
    make_example,
    phantom_prompts,
    pick_prompts,
    real_example,
    spoken,
)
from grounding.training.frozen import Maker, Picture
from grounding.training.material import fold_patients, load_real
from grounding.training.recipe import RealSettings
from grounding.types import Box, Image

FIRST_TRAINING_SEED = 900_000_000
"""Generated studies from here on are for the heads; those of trunks, validation and evaluation have lower seeds."""
FIRST_TEST_SEED = 300_000


class Material(Section):
    """`phantoms` generated studies, and `copies` moved and exposed anew of each real film, of `prompts` prompts each.

    `tests` are manifests below the root of `real`; their patients are dealt to as many folds as there are seeds.
    """

    phantoms: int = Field(default=2000, ge=1)
    prompts: int = Field(default=3, ge=1)
    absent_share: float = Field(default=0.15, ge=0, le=1)
    anatomy_share: float = Field(default=0.3, ge=0, le=1)
    test_phantoms: int = Field(default=300, ge=1)
    real: RealSettings | None = None
    copies: int = Field(default=8, ge=1)
    tests: list[str] = Field(default_factory=list)


def training_makers(material: Material, bank: KnowledgeBank, canvas: int) -> dict[str, tuple[int, Maker]]:
    """How many pictures of each kind there are to train on, and what makes them."""
    makers: dict[str, tuple[int, Maker]] = {
        "phantoms": (material.phantoms, lambda number: _phantom(number, material, bank, canvas))
    }
    if material.real is not None:
        settings = material.real.model_copy(update={"validation_share": 0.0, "folds": None})
        films, _ = load_real(settings, canvas)

        def copy(number: int) -> Picture:
            film = films[number % len(films)]
            rng = np.random.default_rng([11, number])
            return Picture(real_example(rng, film, material.prompts, canvas), f"{film.patient}.{number}", film.patient)

        makers["real"] = (len(films) * material.copies, copy)
    return makers


def _phantom(number: int, material: Material, bank: KnowledgeBank, canvas: int) -> Picture:
    """A generated study, moved and exposed; now and then it is asked for what it does not show."""
    rng = np.random.default_rng([7, number])
    study = make_study(FIRST_TRAINING_SEED + number, rates=EMPHASIZED)
    prompts = phantom_prompts(study)
    picked = pick_prompts(rng, prompts, material.prompts)
    if rng.random() < material.absent_share:
        shown = {phrase.label for phrase in study.phrases if not phrase.negated}
        families = {entity.family for entity in bank.entities if entity.id in shown}
        absent = [e for e in bank.entities if e.family not in families | {"anatomy", "opacity"} and e.id not in shown]
        chosen = absent[int(rng.integers(len(absent)))]
        picked[-1:] = [spoken(rng, str(rng.choice(chosen.synonyms)), ())]
    if rng.random() < material.anatomy_share:
        anatomy = anatomy_prompts(study)
        picked.append(anatomy[int(rng.integers(len(anatomy)))])
    return Picture(make_example(rng, study.image, picked, PHANTOM_MOVES, canvas), f"phantom-{number}")


def real_tests(material: Material, canvas: int, folds: int) -> tuple[dict[str, tuple[int, Maker]], list[set[str]]]:
    """Test sets by name, with the generated one, and the patients of each fold."""
    tests: dict[str, tuple[int, Maker]] = {"phantom-test": (material.test_phantoms, lambda n: _test_phantom(n, canvas))}
    if material.real is None:
        return tests, []
    names = [*material.real.manifests, *material.tests]
    read = {name: read_manifest(material.real.root / name) for name in dict.fromkeys(names)}
    patients = {row.patient_name for rows in read.values() for row in rows}
    for name in material.tests:
        groups: dict[Path, list[ManifestRow]] = defaultdict(list)
        for row in read[name]:
            if row.boxes:
                groups[row.image].append(row)
        tests[str(Path(name).with_suffix(""))] = (len(groups), _Films(list(groups.values()), canvas))
    return tests, fold_patients(sorted(patients), max(folds, 2))


def _test_phantom(number: int, canvas: int) -> Picture | None:
    study = make_study(FIRST_TEST_SEED + number)
    phrases = [p for p in study.phrases if not p.negated and p.boxes]
    if not phrases:
        return None
    frame = Frame(study.image.shape[0], study.image.shape[1], canvas)
    example = _asked(study.image, frame, [(p.phrase, p.boxes) for p in phrases])
    return Picture(example, f"phantom-{number}", labels=tuple(p.label for p in phrases))


def _asked(image: Image, frame: Frame, phrases: Sequence[tuple[str, Sequence[Box]]]) -> Example:
    """A picture as the product sees it, and each phrase as a text of its own."""
    prompts = [
        Prompt(phrase, (Answer(0, len(phrase), False, tuple(map(frame.to_model, boxes))),)) for phrase, boxes in phrases
    ]
    return Example(stretch_contrast(frame.draw(image)), tuple(prompts))


class _Films:
    """The pictures of a manifest, each with all its phrases that have a box."""

    def __init__(self, groups: list[list[ManifestRow]], canvas: int) -> None:
        self.groups, self.canvas = groups, canvas

    def __call__(self, number: int) -> Picture:
        rows = self.groups[number]
        image = load_image(rows[0].image)
        frame = Frame(image.shape[0], image.shape[1], self.canvas)
        example = _asked(image, frame, [(row.phrase, row.boxes) for row in rows])
        return Picture(example, rows[0].image.stem, rows[0].patient_name, tuple(row.label or "" for row in rows))
