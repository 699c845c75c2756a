"""Trains KnowMVG by a recipe (YAML): streams examples, follows the clock, keeps the best weights by validation.

A run can be killed and started again with the same command: it goes on from its last saved state.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from grounding.checkpoint import WEIGHTS, save_checkpoint, save_training_patients
from grounding.geometry import resize, stretch_contrast
from grounding.knowledge import KnowledgeBank, load_bank
from grounding.network.boxes import to_xyxy
from grounding.network.model import KnowMVG
from grounding.phantoms.study import make_study
from grounding.tokens import GroundingTokenizer
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import Answer, Example, Prompt, RealImage
from grounding.training.losses import LossWeights, losses
from grounding.training.material import FIRST_TRAINING_SEED, Stream, load_real, validation_phantoms
from grounding.training.recipe import Recipe, read_recipe

log = logging.getLogger(__name__)

RASTER = 128


@dataclass(frozen=True, slots=True)
class Score:
    """Phrase-given figures of one validation set: share with region IoU of at least 0.5, mean, and false groundings."""

    ap50: float
    miou: float
    false_share: float
    blind_miou: float

    def __str__(self) -> str:
        return f"AP50 {self.ap50:.3f} mIoU {self.miou:.3f} false {self.false_share:.2f} blind {self.blind_miou:.3f}"


def train(config_path: Path) -> None:
    """Train by the recipe at `config_path`; the best weights end in `run_dir`/best."""
    train_by(read_recipe(config_path))


def train_by(recipe: Recipe) -> None:
    """Train by a recipe that was read; the best weights end in its `run_dir`/best."""
    run = recipe.run_dir
    run.mkdir(parents=True, exist_ok=True)
    processes = recipe.processes
    if processes == 1:
        train_process(0, recipe, run)
        return
    meeting = run / "meeting"
    meeting.unlink(missing_ok=True)
    spawn: Any = importlib.import_module("torch.multiprocessing").spawn
    spawn(train_process, (recipe, run), nprocs=processes)


def keep_freed_memory() -> None:
    """Keep large freed blocks in the process (glibc only): each step asks for the same ones again.

    Fetching them anew from the system costs a fifth of the time in page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 1 << 28)  # M_TOP_PAD


def train_process(rank: int, recipe: Recipe, run: Path) -> None:
    """One of the equal processes of a run; each has its own material, gradients are averaged."""
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(asctime)s %(message)s")
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    if recipe.processes > 1:
        distributed.init_process_group(
            "gloo", init_method=(run / "meeting").absolute().as_uri(), rank=rank, world_size=recipe.processes
        )
    _Training(recipe, run, rank).run_to_end()


def prepare_tokens(recipe: Recipe, bank: KnowledgeBank, real: list[RealImage]) -> GroundingTokenizer:
    """The run's tokenizer: the one of the model that it starts from, else learned; kept in the run's folder."""
    folder = recipe.run_dir / "tokenizer"
    if not folder.exists():
        start = recipe.start
        learned = GroundingTokenizer.load(start) if start is not None else learn_tokens(recipe, bank, real)
        learned.save(folder)
    return GroundingTokenizer.load(folder)


def learn_tokens(recipe: Recipe, bank: KnowledgeBank, real: list[RealImage]) -> GroundingTokenizer:
    """A tokenizer of generated reports, the bank's words and the phrases of the real rows."""
    texts = [make_study(FIRST_TRAINING_SEED + seed, 64).report.text for seed in range(recipe.tokenizer_reports)]
    texts += [row.text for row in bank.rows] + [s for e in bank.entities for s in e.synonyms]
    texts += [row.phrase for image in real for row in image.rows]
    return GroundingTokenizer.train(texts, recipe.vocabulary)


class _Training:
    """State of a run: network, its running average, optimiser, clock and best score."""

    def __init__(self, recipe: Recipe, run: Path, rank: int) -> None:
        self.recipe, self.run, self.rank = recipe, run, rank
        self.bank = load_bank()
        self.real, self.real_validation = load_real(recipe.real, recipe.model.frame.canvas)
        self.tokens = prepare_tokens(recipe, self.bank, self.real)
        language = {
            **recipe.model.language_model, "vocab_size": len(self.tokens), "pad_token_id": self.tokens.pad,
            "bos_token_id": self.tokens.bos, "eos_token_id": self.tokens.eos,
        }  # fmt: skip
        self.config = recipe.model.model_copy(update={"language_model": language})
        self.network = KnowMVG(self.config, self.bank, self.tokens)
        if recipe.start is not None:
            self._start_from(recipe.start)
        self.network.language.requires_grad_(recipe.train_language)
        self.batcher = Batcher(
            self.tokens, self.bank, self.config.decoder.slots, self.config.language.max_prompt_tokens
        )
        self.optimizer = self._make_optimizer()
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.step, self.elapsed_s, self.best, self._recent = 0, 0.0, -1.0, 0.0
        self._resume()
        parameters = sum(p.numel() for p in self.network.parameters())
        log.info("%d parameters, %d real images, %d held out", parameters, len(self.real), len(self.real_validation))

    def _start_from(self, folder: Path) -> None:
        """Take every weight of a model folder that fits."""
        held = self.network.state_dict()
        fitting = {
            k: v.float() for k, v in load_file(folder / WEIGHTS).items() if k in held and held[k].shape == v.shape
        }
        self.network.load_state_dict(fitting, strict=False)
        log.info("started from %s: %d of %d tensors", folder, len(fitting), len(held))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self.recipe.optimizer
        language = [p for n, p in self.network.named_parameters() if n.startswith("language.")]
        rest = [p for n, p in self.network.named_parameters() if not n.startswith("language.")]
        groups = [{"params": rest, "peak": settings.rate}, {"params": language, "peak": settings.language_rate}]
        return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), weight_decay=settings.decay, fused=True)

    def _resume(self) -> None:
        state = self.run / "state.pt"
        if state.exists():
            saved = torch.load(state, weights_only=True)
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average = saved["average"]
            self.step, self.elapsed_s, self.best = saved["step"], saved["elapsed_s"], saved["best"]
            log.info("resumed at step %d", self.step)

    def _save_state(self) -> None:
        partial = self.run / "state.pt.part"
        torch.save(
            {
                "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average,
                "step": self.step, "elapsed_s": self.elapsed_s, "best": self.best,
            }, partial,
        )  # fmt: skip
        partial.replace(self.run / "state.pt")

    def run_to_end(self) -> None:
        """Steps until the clock of the recipe has run out; saves and scores every few minutes."""
        stream = Stream(self.recipe, self.batcher, self.real, self.recipe.seed + self.step + 500 * self.rank)
        loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=6)
        total_s, every_s = self.recipe.minutes * 60, self.recipe.checkpoint_minutes * 60
        next_save = self.elapsed_s + every_s
        sums: dict[str, float] = {}
        for batch in loader:
            started = time.process_time()
            share = min(self.elapsed_s / total_s, 1.0)
            for name, value in self._one_step(batch, share).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            if self.step % 50 == 0:
                means = " ".join(f"{k} {v / 50:.3f}" for k, v in sums.items())
                log.info("step %d %.1f min %.2f s/step %s", self.step, self.elapsed_s / 60, self._pace(), means)
                sums = {}
            agreed_s = self.elapsed_s
            self.elapsed_s += self._ticked(started)
            if agreed_s >= min(next_save, total_s) and self.rank == 0:
                self._score_and_save()
                next_save = agreed_s + every_s
            if agreed_s >= total_s:
                return

    def _ticked(self, started: float) -> float:
        """Processor seconds since `started`: other work on the machine neither shortens the schedule nor counts."""
        spent = time.process_time() - started
        self._recent = 0.95 * self._recent + 0.05 * spent if self._recent else spent
        return spent

    def _pace(self) -> float:
        return self._recent

    def _one_step(self, batch: TrainingBatch, share: float) -> dict[str, float]:
        settings = self.recipe.optimizer
        factor = min(1.0, (self.step + 1) / settings.warmup_steps) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.network.train()
        output = self.network(batch.pixels, batch.text)
        terms = losses(output, batch.text.labels, batch.targets, LossWeights())
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self._share_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self._update_average(settings.ema)
        return {name: float(value.detach()) for name, value in terms.items()}

    def _share_gradients(self) -> None:
        """Mean of all processes' gradients, and the first one's clock, so that they end together."""
        if self.recipe.processes == 1:
            return
        held = [p for p in self.network.parameters() if p.requires_grad]
        parts = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in held]
        flat = torch.cat([*parts, torch.tensor([self.elapsed_s if self.rank == 0 else 0.0])])
        distributed.all_reduce(flat)
        self.elapsed_s = float(flat[-1])
        flat /= self.recipe.processes
        for parameter, mean in zip(held, torch.split(flat[:-1], [p.numel() for p in held]), strict=True):
            parameter.grad = mean.view_as(parameter)

    @torch.no_grad()
    def _update_average(self, most: float) -> None:
        keep = min(most, (1 + self.step) / (20 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def _score_and_save(self) -> None:
        current = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        canvas = self.config.frame.canvas
        phantom = self._score(validation_phantoms(self.recipe.validation, canvas))
        log.info("validation step %d phantoms [%s]", self.step, phantom)
        value = phantom.miou + 0.5 * phantom.ap50 - 0.2 * phantom.false_share
        if self.real_validation:
            real = self._score([real_validation_example(image, canvas) for image in self.real_validation])
            log.info("validation step %d real [%s]", self.step, real)
            value += real.miou - 0.2 * real.false_share
        if self.recipe.select == "last" or value > self.best:
            self.best = value
            save_checkpoint(self.run / "best", self.network, self.tokens, self.bank)
            save_training_patients(self.run / "best", [i.patient for i in (*self.real, *self.real_validation)])
        self.network.load_state_dict(current)
        self._save_state()

    @torch.inference_mode()
    def _score(self, examples: list[Example]) -> Score:
        self.network.eval()
        ious, blind, false = [], [], []
        for start in range(0, len(examples), 10):
            batch = self.batcher.collate(examples[start : start + 10])
            boxes = self.network(batch.pixels, batch.text).boxes
            hidden = self.network(torch.full_like(batch.pixels, 0.5), batch.text).boxes
            if boxes is None or hidden is None:
                continue
            threshold = self.config.decision.presence
            present = batch.targets.valid.any(1)
            shown = boxes.presence_logits.sigmoid() >= threshold
            false += shown.any(1)[~present].tolist()
            ious += region_iou(boxes.refined, shown, batch)[present].tolist()
            shown = hidden.presence_logits.sigmoid() >= threshold
            blind += region_iou(hidden.refined, shown, batch)[present].tolist()
        if not ious:
            return Score(0.0, 0.0, 0.0, 0.0)
        found = np.array(ious)
        return Score(
            float((found >= 0.5).mean()),
            float(found.mean()),
            float(np.mean(false)) if false else 0.0,
            float(np.mean(blind)),
        )


def region_iou(predicted: Tensor, shown: Tensor, batch: TrainingBatch) -> Tensor:
    """float32[N]: union of the shown boxes against the union of the true ones, on a raster."""
    ours = raster(predicted, shown)
    truth = raster(batch.targets.boxes, batch.targets.valid)
    inside, union = (ours & truth).sum((1, 2)), (ours | truth).sum((1, 2))
    return inside.float() / union.clamp_min(1)


def raster(cxcywh: Tensor, used: Tensor) -> Tensor:
    """bool[N, RASTER, RASTER]: cells inside any used box of float32[N, M, 4]."""
    centres = (torch.arange(RASTER) + 0.5) / RASTER
    x1, y1, x2, y2 = (side.unsqueeze(-1) for side in to_xyxy(cxcywh).unbind(-1))
    across, down = (centres >= x1) & (centres <= x2), (centres >= y1) & (centres <= y2)
    return (down.unsqueeze(-1) & across.unsqueeze(-2) & used[..., None, None]).any(1)


def real_validation_example(real: RealImage, canvas: int) -> Example:
    """All rows of a held-out radiograph, worded as they are."""
    picture = stretch_contrast(resize(real.image, canvas, canvas))
    prompts = tuple(Prompt(r.phrase, (Answer(0, len(r.phrase), False, r.boxes),)) for r in real.rows)
    return Example(picture, prompts)


def main() -> None:
    """Command line of a training run."""
    parser = argparse.ArgumentParser(description="Train KnowMVG by a recipe.")
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args().config)


if __name__ == "__main__":
    main()
