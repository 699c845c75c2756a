"""A training recipe: one validated YAML file says what is trained, on what, for how long, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from grounding.config import KnowMVGConfig, Section


class RecipeError(ValueError):
    """A recipe cannot be used; the text names the file, the keys and what is wrong with them."""


class BatchSizes(Section):
    """Examples of one process in one step: pictures of each kind, prompts on each, and reading lessons.

    `inserted` are real pictures with findings painted into them.
    """

    phantoms: int = Field(ge=1)
    real: int = Field(ge=0)
    inserted: int = Field(default=0, ge=0)
    prompts: int = Field(default=3, ge=1)
    real_prompts: int = Field(default=3, ge=1)
    lessons: int = Field(default=8, ge=0)


class RealShares(Section):
    """How often the phrases that are asked of real pictures are findings, zones of the lungs, or anatomy."""

    finding: float = Field(default=0.6, ge=0)
    zone: float = Field(default=0.2, ge=0)
    anatomy: float = Field(default=0.2, ge=0)


class OptimizerSettings(Section):
    """AdamW with warm-up, then a cosine or a straight line to almost nothing; `ema` is the average that is kept."""

    shape: Literal["cosine", "linear"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    rate: float = Field(gt=0)
    language_rate: float = Field(gt=0)
    decay: float = Field(default=0.02, ge=0)
    warmup_steps: int = Field(default=150, ge=1)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)


class LossWeights(Section):
    """Weight of each term, and how boxes are taught.

    `train_boxes` `first` teaches the largest true box of a phrase alone. `several` is how the hypotheses of a decoder
    that has them are taught: `mhp` gives the first 1 - `share` and the others the rest, `umhp` weights each by its
    part of the distances, `uncertain` teaches the mean and keeps them `margin` apart (uMedGround's three modes).
    `attention` needs `attention.maps` in the configuration.
    """

    language: float = Field(default=1.0, ge=0)
    refined: float = Field(default=2.0, ge=0)
    coarse: float = Field(default=1.0, ge=0)
    presence: float = Field(default=2.0, ge=0)
    quality: float = Field(default=0.5, ge=0)
    mask: float = Field(default=1.0, ge=0)
    location: float = Field(default=0.1, ge=0)
    attention: float = Field(default=0.1, ge=0)
    train_boxes: Literal["first", "all"] = "all"
    several: Literal["mhp", "umhp", "uncertain"] = "mhp"
    share: float = Field(default=0.05, ge=0, lt=1)
    margin: float = Field(default=0.01, ge=0)


class RealSettings(Section):
    """Manifests of real radiographs, relative to `root`; patients of `validation_share` are held out.

    `licences`: `stated` takes only films whose licence allows training, `any` all of them, for models that are
    measured and thrown away. With `folds`, the patients of `fold` (from 0) are kept out of the run altogether.

    Where rows name a split, it is kept: rows of test are never used, rows of val only to choose the weights. With
    `split_unit: patient` that goes for all rows of a patient who has one such row; `row` takes a split as it was
    published, even where the same patient stands on both sides. Pictures beyond `memory_gb` are read when needed.

    Zone scores give the box of a third of the lung, not of the shadow in it: as `findings` such a row is learned as it
    is worded ("opacity in the right lower lung zone"), as `places` the box is learned as that of the zone alone.
    """

    root: Path
    manifests: list[str]
    validation_share: float = Field(default=0.15, ge=0, lt=0.5)
    licences: Literal["stated", "any"] = "stated"
    folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)
    split_unit: Literal["patient", "row"] = "patient"
    zones: Literal["findings", "places"] = "findings"
    memory_gb: float = Field(default=1.2, ge=0)


class Recipe(Section):
    """Everything a run needs. `minutes` are of processor time of each process, which the schedule follows.

    Where `steps` are named, the run ends by what comes first, minutes or steps; `patience` ends it after so many
    validations without a better one. A step is of `accumulate` batches. `precision` is what the backbones compute in;
    with `gradient_checkpointing` they compute twice and keep less. `loaders` are processes that make the material.

    `real_shares` says which phrases are asked of real pictures.

    `select` says which weights are kept: the best by validation, or the last, for runs without patients to choose on.
    `absent_share` is that of the phrases asked of generated studies, of each finding, that are not in the picture;
    `blank_share` that of the pictures that show nothing, `anatomy_share` that of generated studies that are also asked
    for a structure of the patient. `start` is a model folder whose weights and tokens the run begins with; parts that
    it has not begin at random.
    """

    model: KnowMVGConfig
    vocabulary: int = Field(default=1600, ge=300)
    tokenizer_reports: int = Field(default=1500, ge=1)
    run_dir: Path
    start: Path | None = None
    train_language: bool = True
    seed: int = 7
    minutes: float = Field(gt=0)
    steps: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    accumulate: int = Field(default=1, ge=1)
    loaders: int = Field(default=1, ge=1)
    tensorboard: bool = True
    batch: BatchSizes
    real_shares: RealShares = RealShares()
    fresh_share: float = Field(default=0.4, gt=0, le=1)
    absent_share: float = Field(default=0.2, ge=0, lt=1)
    blank_share: float = Field(default=0.02, ge=0, le=1)
    anatomy_share: float = Field(default=0.35, ge=0, le=1)
    keep: int = Field(default=20_000, ge=1)
    processes: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    optimizer: OptimizerSettings
    losses: LossWeights = LossWeights()
    select: Literal["best", "last"] = "best"
    checkpoint_minutes: float = Field(default=5, gt=0)
    validation: int = Field(default=60, ge=1)
    real: RealSettings


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: the file is not YAML, or its keys or values are not allowed.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"the recipe {path} cannot be used: {wrong}") from error
