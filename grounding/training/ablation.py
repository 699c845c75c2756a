"""Trains the rows of an ablation under equal material, steps and seeds, and scores them phrase-given.

A frozen trunk (vision backbone and language model of a model folder) is shared by all rows, as the predecessor shares
its frozen encoder; only what a row is about is trained, from random weights. Finished runs are kept and skipped, and
several processes may work on one folder. Seed i is tested on the real patients of fold i, which it never trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from grounding.checkpoint import WEIGHTS, digest, find_folder, read_config, read_training_patients
from grounding.config import KnowMVGConfig, Section
from grounding.evaluation.metrics import Score, region_iou
from grounding.knowledge import load_bank
from grounding.network.boxes import to_cxcywh, to_xyxy
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import KnowMVG, NetworkOutput
from grounding.network.transvg import PhraseRegressor
from grounding.tokens import GroundingTokenizer
from grounding.training.comparison import markdown
from grounding.training.frozen import Deck, FrozenBatch, FrozenPicture, Trunk, freeze_all, gather
from grounding.training.locks import locked
from grounding.training.losses import Targets, losses
from grounding.training.medians import boxes_of, score_medians
from grounding.training.recipe import LossWeights, RecipeError
from grounding.training.train import check_start, keep_freed_memory
from grounding.training.trials import Material, real_tests, training_makers
from grounding.types import Box, ModelError

log = logging.getLogger(__name__)

MOST_TRUE_BOXES = 16
"""Reference boxes of a phrase that a test keeps."""


class Row(Section):
    """One row: what it changes in the trunk's configuration and in the losses.

    `network` `prior` is none: the median boxes of the same phrases, without any pixel.
    """

    name: str
    network: Literal["knowmvg", "transvg", "prior"] = "knowmvg"
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    losses: dict[str, Any] = Field(default_factory=dict)


class Steps(Section):
    """How each run is trained: AdamW, warm-up, then a cosine to almost nothing."""

    count: int = Field(default=600, ge=1)
    phantoms: int = Field(default=8, ge=0)
    real: int = Field(default=8, ge=0)
    rate: float = Field(default=1e-3, gt=0)
    decay: float = Field(default=0.02, ge=0)
    warmup: int = Field(default=60, ge=1)
    clip: float = Field(default=1.0, gt=0)


class Plan(Section):
    """An ablation. `references` are the rows that all others are compared with.

    `together` are test sets, by name, whose phrases are also reported as one set.
    """

    trunk: Path
    run_dir: Path
    seeds: list[int] = Field(min_length=1)
    threads: int = Field(default=1, ge=1)
    steps: Steps = Steps()
    material: Material
    losses: LossWeights = LossWeights()
    references: list[str] = Field(default_factory=list)
    together: list[list[str]] = Field(default_factory=list)
    rows: list[Row] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Pool:
    """All frozen pictures: generated and real ones to train on, and test sets by name."""

    phantoms: list[FrozenPicture]
    real: list[FrozenPicture]
    tests: dict[str, list[FrozenPicture]]
    folds: list[set[str]]


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        RecipeError: the file is not YAML, its keys or values are not allowed, or a row changes what is not there.
    """
    try:
        plan = Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        for row in plan.rows:
            loss_weights(plan, row)
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"the ablation {path} cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"the ablation {path} cannot be used: {wrong}") from error
    names = [row.name for row in plan.rows]
    missing = sorted(set(plan.references) - set(names))
    if missing or len(set(names)) < len(names):
        raise RecipeError(f"the ablation {path} cannot be used: rows need different names, and {missing} are no rows")
    sets = {"phantom-test", *(str(Path(name).with_suffix("")) for name in plan.material.tests)}
    unknown = sorted({name for names in plan.together for name in names} - sets)
    if unknown:
        raise RecipeError(f"the ablation {path} cannot be used: together: {unknown} are none of {sorted(sets)}")
    return plan


def loss_weights(plan: Plan, row: Row) -> LossWeights:
    """The plan's losses with the row's changes."""
    return LossWeights.model_validate({**plan.losses.model_dump(), **row.losses})


def row_config(trunk: KnowMVGConfig, row: Row) -> KnowMVGConfig:
    """The trunk's configuration with the row's changes; raises RecipeError for a key that is not there."""
    content = trunk.model_dump()
    for section, changes in row.changes.items():
        content[section] = {**content.get(section, {}), **changes}
    try:
        return KnowMVGConfig.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"the row {row.name!r} cannot be used: {error.errors()[0]['loc']}: {error}") from error


def load_trunk(folder: Path) -> tuple[KnowMVG, GroundingTokenizer]:
    """The network of a model folder; its decoder may be of another make than today's, backbone and language may not."""
    check_start(folder)
    config, tokens = read_config(folder), GroundingTokenizer.load(folder)
    network = KnowMVG(config, load_bank(), tokens)
    state = network.state_dict()
    weights = {k: v.float() for k, v in load_file(folder / WEIGHTS).items() if k in state and state[k].shape == v.shape}
    network.load_state_dict(weights, strict=False)
    held = {state[name].data_ptr() for name in weights} | {state[name].data_ptr() for name in network.borrowed()}
    absent = [n for n in state if n.startswith(("backbone.", "language.")) and state[n].data_ptr() not in held]
    if absent:
        raise ModelError(f"{folder / WEIGHTS} is no trunk for an ablation: it has no tensor {absent[0]}")
    return network, tokens


def ablate(path: Path, only: Sequence[str] = (), train: bool = True) -> str:
    """Run what is left of the plan at `path` and return its tables; `only` names rows, all others are left alone.

    Without `train` nothing is run: the tables show the runs that are there.

    Raises:
        RecipeError: the plan cannot be used. ModelError: the trunk cannot be read. ManifestError: a set cannot.
    """
    plan = read_plan(path)
    unknown = sorted(set(only) - {row.name for row in plan.rows})
    if unknown:
        raise RecipeError(f"the ablation {path} has no row called {', '.join(unknown)}")
    torch.set_num_threads(plan.threads)
    keep_freed_memory()
    folder = find_folder(plan.trunk)
    mark = digest(folder)
    (plan.run_dir / "runs").mkdir(parents=True, exist_ok=True)
    if train:
        _run_rows(plan, folder, mark, [row for row in plan.rows if not only or row.name in only])
    table = tables(plan, mark)
    (plan.run_dir / "tables.md").write_text(table + "\n", encoding="utf-8")
    return table


def _run_rows(plan: Plan, folder: Path, mark: str, rows: Sequence[Row]) -> None:
    network, tokens = load_trunk(folder)
    for row in rows:
        row_config(network.config, row)
    pool = make_pool(plan, network, tokens, mark)
    _warn_of_seen(pool, read_training_patients(folder))
    for place in range(len(plan.seeds)):
        for row in rows:
            path, print_ = run_path(plan, row, place), fingerprint(plan, mark, row, place)
            with locked(path.with_suffix(".lock")) as mine:
                if mine and _read_run(path, print_) is None:
                    run = run_one(plan, row, place, network, tokens, pool)
                    partial = path.with_suffix(".part")
                    partial.write_text(json.dumps({"fingerprint": print_, **run}), encoding="utf-8")
                    partial.replace(path)


def make_pool(plan: Plan, network: KnowMVG, tokens: GroundingTokenizer, mark: str) -> Pool:
    """Freeze the material of a plan, or read what is frozen already."""
    bank, canvas, material = load_bank(), network.config.frame.canvas, plan.material
    whole = hashlib.sha256(f"{mark} {material.model_dump_json()} {bank.sha256}".encode()).hexdigest()
    folder = plan.run_dir / "features" / whole[:12]
    makers = training_makers(material, bank, canvas)
    tests, folds = real_tests(material, canvas, len(plan.seeds))
    trunk, judge = Trunk(network, tokens, bank), Trunk(network, tokens, bank, MOST_TRUE_BOXES)
    log.info("features in %s", folder)
    trained = {name: freeze_all(trunk, folder / name, count, make) for name, (count, make) in makers.items()}
    judged = {
        name: freeze_all(judge, folder / name.replace("/", "_"), count, make) for name, (count, make) in tests.items()
    }
    return Pool(trained["phantoms"], trained.get("real", []), judged, folds)


def _warn_of_seen(pool: Pool, seen: frozenset[str]) -> None:
    known = {p.patient for pictures in pool.tests.values() for p in pictures} & seen
    if known:
        log.warning("the trunk was trained on %d of the test patients: figures on them are too good", len(known))


def make_network(row: Row, trunk: KnowMVG, tokens: GroundingTokenizer, seed: int) -> nn.Module:
    """A row's network with random weights of its seed; backbone and language model are the trunk's, frozen."""
    torch.manual_seed(seed)
    if row.network == "transvg":
        return PhraseRegressor(row_config(trunk.config, row), trunk.language.width)
    network = KnowMVG(row_config(trunk.config, row), load_bank(), tokens)
    network.backbone, network.language = trunk.backbone, trunk.language
    return network


def answer(network: nn.Module, batch: FrozenBatch) -> NetworkOutput:
    """Boxes of a frozen batch; no language is learned."""
    nothing = torch.zeros(0, 1)
    if isinstance(network, PhraseRegressor):
        return NetworkOutput(nothing, network(batch.features, batch.image_index, batch.words, batch.word_mask), None)
    if not isinstance(network, KnowMVG):
        raise TypeError(f"an ablation compares KnowMVG and PhraseRegressor, not {type(network).__name__}")
    return NetworkOutput(nothing, *network.decode(batch.features, batch.image_index, batch.states, batch.log_prior))


def union_hull(targets: Targets) -> Targets:
    """The smallest box around all true boxes of each phrase, for a network that gives one box alone."""
    corners = to_xyxy(targets.boxes)
    shown = targets.valid.unsqueeze(-1)
    low = corners[..., :2].masked_fill(~shown, 2.0).amin(1)
    high = corners[..., 2:].masked_fill(~shown, -1.0).amax(1)
    present = targets.valid.any(1, keepdim=True)
    hull = torch.where(present, to_cxcywh(torch.cat([low, high], -1)), targets.boxes[:, 0])
    return Targets(hull.unsqueeze(1), present, targets.row_match, targets.row_boxes)


def run_one(plan: Plan, row: Row, place: int, trunk: KnowMVG, tokens: GroundingTokenizer, pool: Pool) -> dict[str, Any]:
    """Train one row with one seed and score it: what a run's file holds beside its fingerprint."""
    started = time.process_time()
    held_out = pool.folds[place] if pool.folds else set()
    tests = {n: [p for p in pictures if not p.patient or p.patient in held_out] for n, pictures in pool.tests.items()}
    if row.network == "prior":
        seen = [*pool.phantoms, *(p for p in pool.real if p.patient not in held_out)]
        sets = {name: score_medians(seen, pictures) for name, pictures in tests.items()}
        return {"row": row.name, "seed": plan.seeds[place], "steps": 0, "seconds": 0.0, "parameters": 0, "losses": {},
                "sets": sets}  # fmt: skip
    network = make_network(row, trunk, tokens, plan.seeds[place])
    terms = train_head(network, plan, loss_weights(plan, row), plan.seeds[place], pool, held_out)
    trained = time.process_time()
    sets = {name: score(network, pictures) for name, pictures in tests.items()}
    figures = {name: float(np.mean([s[2] for s in scores])) for name, scores in sets.items() if scores}
    log.info("%s, seed %d: %.0f s, mIoU %s", row.name, plan.seeds[place], trained - started,
             {name: round(value, 3) for name, value in figures.items()})  # fmt: skip
    return {
        "row": row.name, "seed": plan.seeds[place], "steps": plan.steps.count, "seconds": round(trained - started, 1),
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad), "losses": terms, "sets": sets,
    }  # fmt: skip


def train_head(
    network: nn.Module, plan: Plan, weights: LossWeights, seed: int, pool: Pool, held_out: set[str]
) -> dict[str, float]:
    """Train in place on everything but `held_out`; returns the mean of each loss over the last steps."""
    steps = plan.steps
    rng = np.random.default_rng(seed)
    decks = [
        (Deck(pool.phantoms, rng), steps.phantoms),
        (Deck([p for p in pool.real if p.patient not in held_out], rng), steps.real),
    ]
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=steps.rate, betas=(0.9, 0.98), weight_decay=steps.decay)
    row_boxes = torch.from_numpy(load_bank().main_boxes())
    network.train()
    last: list[dict[str, float]] = []
    for step in range(steps.count):
        batch = gather([p for deck, count in decks for p in deck.draw(count)], row_boxes)
        for group in optimizer.param_groups:
            group["lr"] = steps.rate * _schedule(step, steps)
        terms = head_losses(network, batch, weights)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        torch.nn.utils.clip_grad_norm_(learned, steps.clip)
        optimizer.step()
        last = [*last[-49:], {name: float(value.detach()) for name, value in terms.items()}]
        if (step + 1) % 100 == 0:
            log.info("step %d: loss %.3f", step + 1, np.mean([sum(t.values()) for t in last]))
    return {name: round(float(np.mean([t[name] for t in last])), 4) for name in last[-1]}


def head_losses(network: nn.Module, batch: FrozenBatch, weights: LossWeights) -> dict[str, Tensor]:
    """The losses of one frozen batch; a network of one box learns the hull of a phrase's boxes."""
    targets = union_hull(batch.targets) if isinstance(network, PhraseRegressor) else batch.targets
    return losses(answer(network, batch), torch.full((1, 1), -100), targets, weights)


def _schedule(step: int, steps: Steps) -> float:
    return min(1.0, (step + 1) / steps.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps.count)))


@torch.inference_mode()
def score(network: nn.Module, pictures: Sequence[FrozenPicture]) -> list[tuple[str, str, float, bool]]:
    """(picture, label, region IoU, whether presence passed 0.5) of every phrase; phrases without a true box are none.

    A phrase that is given is shown: where no box passes, the surest one counts.
    """
    network.eval()
    row_boxes = torch.from_numpy(load_bank().main_boxes())
    found: list[tuple[str, str, float, bool]] = []
    for start in range(0, len(pictures), 16):
        chosen = pictures[start : start + 16]
        batch = gather(chosen, row_boxes)
        boxes = answer(network, batch).boxes
        if boxes is None:
            raise RuntimeError("a frozen batch without phrases cannot be scored")
        named = [(p.name, label) for p in chosen for label in p.labels]
        for index, (name, label) in enumerate(named):
            truth = boxes_of(batch.targets.boxes[index][batch.targets.valid[index]])
            given, passed = _shown(boxes, index)
            found.append((name, label, round(region_iou(given, truth), 5), passed))
    return found


def _shown(boxes: DecodedBoxes, index: int) -> tuple[list[Box], bool]:
    passed = boxes.presence_logits[index] >= 0
    best = torch.zeros_like(passed)
    best[boxes.presence_logits[index].argmax()] = True
    sure = bool(passed.any())
    return boxes_of(boxes.refined[index][passed if sure else best]), sure


def run_path(plan: Plan, row: Row, place: int) -> Path:
    """File of one run."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in row.name.lower())
    return plan.run_dir / "runs" / f"{plain}.seed{plan.seeds[place]}.json"


def fingerprint(plan: Plan, mark: str, row: Row, place: int) -> str:
    """What a run depends on, as a hash: trunk, material, steps, losses, the row and its seed and fold."""
    weights = loss_weights(plan, row)
    parts = [mark, *(part.model_dump_json() for part in (plan.material, plan.steps, weights)), row.network,
             json.dumps(row.changes, sort_keys=True), str(plan.seeds[place]), f"{place}/{len(plan.seeds)}"]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_run(path: Path, expected: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return run if run["fingerprint"] == expected else None


def _pooled(found: dict[str, dict[int, list[Score]]], names: Sequence[str]) -> dict[str, dict[int, list[Score]]]:
    """The scores of several sets as one, over the seeds that scored all of them."""
    seeds = set.intersection(*(set(found.get(name, {})) for name in names))
    return {" + ".join(names): {seed: [s for name in names for s in found[name][seed]] for seed in sorted(seeds)}}


def tables(plan: Plan, mark: str) -> str:
    """The Markdown tables of all finished runs, and how many are missing."""
    rows: dict[str, dict[str, dict[int, list[Score]]]] = {}
    missing = 0
    for row in plan.rows:
        for place, seed in enumerate(plan.seeds):
            run = _read_run(run_path(plan, row, place), fingerprint(plan, mark, row, place))
            missing += run is None
            for name, scores in (run or {"sets": {}})["sets"].items():
                if scores:
                    of_set = rows.setdefault(row.name, {}).setdefault(name, {})
                    of_set[seed] = [Score(image, label, iou, has_box) for image, label, iou, has_box in scores]
    for found in rows.values():
        for names in plan.together:
            found |= _pooled(found, names)
    sets = list(dict.fromkeys(name for found in rows.values() for name in found))
    head = (f"Points, mean over seeds [95 % interval]. {plan.steps.count} steps each; the trunk is frozen and shared; "
            f"phrase-given. {missing} runs missing.")  # fmt: skip
    return f"{head}\n\n{markdown(rows, sets, plan.references)}"
