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
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed
from torch.utils.data import DataLoader, get_worker_info

from grounding.checkpoint import (
    WEIGHTS,
    check_weights,
    choose_device,
    read_config,
    save_checkpoint,
    save_training_patients,
)
from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank, load_bank
from grounding.network.model import KnowMVG
from grounding.network.pretrained import find_pretrained, with_digests
from grounding.network.sam import start_from_sam
from grounding.phantoms.study import make_study
from grounding.tokens import GroundingTokenizer
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import Example, RealImage
from grounding.training.losses import losses
from grounding.training.material import FIRST_TRAINING_SEED, Stream, load_real, validation_phantoms
from grounding.training.progress import Telling
from grounding.training.recipe import Recipe, RecipeError, read_recipe
from grounding.training.scoring import Score, real_validation_example, score

log = logging.getLogger(__name__)


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
    """The run's tokenizer: of the model that it starts from, of the pretrained one, or learned; kept in its folder."""
    folder = recipe.run_dir / "tokenizer"
    if not folder.exists():
        _first_tokens(recipe, bank, real).save(folder)
    return GroundingTokenizer.load(folder)


def _first_tokens(recipe: Recipe, bank: KnowledgeBank, real: list[RealImage]) -> GroundingTokenizer:
    if recipe.start is not None:
        check_start(recipe.start)
        return GroundingTokenizer.load(recipe.start)
    if recipe.model.image_text is not None:
        return GroundingTokenizer.pretrained(find_pretrained(recipe.model.image_text))
    return learn_tokens(recipe, bank, real)


def complete_config(config: KnowMVGConfig, tokens: GroundingTokenizer) -> KnowMVGConfig:
    """The recipe's model with what the run finds out: the vocabulary, and the digests of pretrained folders."""
    if config.image_text is not None:
        return with_digests(config)
    language = {
        **config.language_model, "vocab_size": len(tokens), "pad_token_id": tokens.pad, "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
    }  # fmt: skip
    return with_digests(config.model_copy(update={"language_model": language}))


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
        self.config = complete_config(recipe.model, self.tokens)
        self.device = choose_device(recipe.device)
        self.network = self._make_network().to(self.device)
        self.batcher = Batcher(
            self.tokens, self.bank, self.config.decoder.slots, self.config.language.max_prompt_tokens
        )
        self.optimizer = self._make_optimizer()
        self.average = {k: v.detach().clone() for k, v in self.network.own_state().items()}
        self.step, self.elapsed_s, self.best, self._recent, self.worse = 0, 0.0, -1.0, 0.0, 0
        self._resume()
        self.telling = Telling(run, recipe.tensorboard) if rank == 0 else None
        weights = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        log.info("%d weights to train on %s", weights, self.device)
        log.info("%d real images, %d held out", len(self.real), len(self.real_validation))

    def _make_network(self) -> KnowMVG:
        network = KnowMVG(self.config, self.bank, self.tokens)
        if self.recipe.start is not None:
            start_from(network, self.recipe.start)
        elif self.config.sam is not None:
            taken = start_from_sam(network.decoder, find_pretrained(self.config.sam))
            log.info("started the box decoder from SAM's: %d tensors", taken)
        if not self.recipe.train_language:
            network.language.requires_grad_(False)
        if self.recipe.gradient_checkpointing:
            network.checkpoint_gradients()
        return network

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self.recipe.optimizer
        language = [p for n, p in self.network.own_parameters() if n.startswith("language.")]
        rest = [p for n, p in self.network.own_parameters() if not n.startswith("language.")]
        groups = [{"params": rest, "peak": settings.rate}, {"params": language, "peak": settings.language_rate}]
        return torch.optim.AdamW(
            groups, lr=settings.rate, betas=settings.betas, weight_decay=settings.decay, fused=True
        )

    def _resume(self) -> None:
        state = self.run / "state.pt"
        if state.exists():
            saved = torch.load(state, weights_only=True, map_location=self.device)
            self.network.load_own_state(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average = saved["average"]
            self.step, self.elapsed_s, self.best = saved["step"], saved["elapsed_s"], saved["best"]
            self.worse = saved.get("worse", 0)
            log.info("resumed at step %d", self.step)

    def _save_state(self) -> None:
        partial = self.run / "state.pt.part"
        torch.save(
            {
                "network": self.network.own_state(), "optimizer": self.optimizer.state_dict(), "average": self.average,
                "step": self.step, "elapsed_s": self.elapsed_s, "best": self.best, "worse": self.worse,
            }, partial,
        )  # fmt: skip
        partial.replace(self.run / "state.pt")

    def run_to_end(self) -> None:
        """Steps until the recipe's minutes or steps have run out; saves and scores every few minutes."""
        recipe = self.recipe
        stream = Stream(recipe, self.batcher, self.real, recipe.seed + self.step + 500 * self.rank)
        loader = iter(DataLoader(stream, batch_size=None, num_workers=recipe.loaders, prefetch_factor=6,
                                 worker_init_fn=part_stream))  # fmt: skip
        total_s, every_s = recipe.minutes * 60, recipe.checkpoint_minutes * 60
        next_save = self.elapsed_s + every_s
        while True:
            started = time.process_time()
            share = min(max(self.elapsed_s / total_s, self.step / recipe.steps if recipe.steps else 0.0), 1.0)
            terms = self._one_step(islice(loader, recipe.accumulate), share)
            self.step += 1
            if self.telling is not None:
                self.telling.stepped(self.step, share, terms, self._figures())
            agreed_s = self.elapsed_s
            self.elapsed_s += self._ticked(started)
            over = agreed_s >= total_s or self.step == recipe.steps
            if (over or agreed_s >= next_save) and self.rank == 0:
                self._score_and_save()
                next_save = agreed_s + every_s
            if over:
                break
        if self.telling is not None:
            self.telling.close()

    def _figures(self) -> dict[str, float]:
        rate = self.optimizer.param_groups[0]["lr"]
        return {"minutes": self.elapsed_s / 60, "seconds_per_step": self._recent, "rate": rate}

    def _ticked(self, started: float) -> float:
        """Processor seconds since `started`: other work on the machine neither shortens the schedule nor counts."""
        spent = time.process_time() - started
        self._recent = 0.95 * self._recent + 0.05 * spent if self._recent else spent
        return spent

    def _one_step(self, batches: Iterable[TrainingBatch], share: float) -> dict[str, float]:
        settings = self.recipe.optimizer
        factor = min(1.0, (self.step + 1) / settings.warmup_steps) * (0.02 + 0.98 * fallen(settings.shape, share))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for batch in batches:
            for name, value in self._backward(batch.on(self.device)).items():
                means[name] = means.get(name, 0.0) + value / self.recipe.accumulate
        self._share_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self._update_average(settings.ema)
        return means

    def _backward(self, batch: TrainingBatch) -> dict[str, float]:
        """Add the gradients of one batch; its terms."""
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output = self.network(batch.pixels, batch.text)
        terms = losses(output, batch.text.labels, batch.targets, self.recipe.losses)
        total = torch.stack(list(terms.values())).sum() / self.recipe.accumulate
        if total.requires_grad:  # not where the language model is frozen and no phrase is to be grounded
            torch.autograd.backward(total)
        return {name: float(value.detach()) for name, value in terms.items()}

    def _share_gradients(self) -> None:
        """Mean of all processes' gradients, and the first one's clock, so that they end together."""
        if self.recipe.processes == 1:
            return
        held = [p for p in self.network.parameters() if p.requires_grad]
        parts = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in held]
        flat = torch.cat([*parts, parts[0].new_tensor([self.elapsed_s if self.rank == 0 else 0.0])])
        distributed.all_reduce(flat)
        self.elapsed_s = float(flat[-1])
        flat /= self.recipe.processes
        for parameter, mean in zip(held, torch.split(flat[:-1], [p.numel() for p in held]), strict=True):
            parameter.grad = mean.view_as(parameter)

    @torch.no_grad()
    def _update_average(self, most: float) -> None:
        keep = min(most, (1 + self.step) / (20 + self.step))
        for name, value in self.network.own_state().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def _score_and_save(self) -> None:
        current = {k: v.detach().clone() for k, v in self.network.own_state().items()}
        self.network.load_own_state(self.average)
        canvas = self.config.frame.canvas
        phantom = self._score("phantoms", validation_phantoms(self.recipe.validation, canvas))
        value = phantom.miou + 0.5 * phantom.ap50 - 0.2 * phantom.false_share
        if self.real_validation:
            real = self._score("real", [real_validation_example(image, canvas) for image in self.real_validation])
            value += real.miou - 0.2 * real.false_share
        self.worse += 1
        if self.recipe.select == "last" or value > self.best:
            self.best, self.worse = value, 0
            save_checkpoint(self.run / "best", self.network, self.tokens, self.bank)
            save_training_patients(self.run / "best", [i.patient for i in (*self.real, *self.real_validation)])
        self.network.load_own_state(current)
        if self.recipe.patience is not None and self.worse >= self.recipe.patience:
            log.info("no better weights in %d validations: the run ends", self.worse)
            # All processes read this clock, so that they end together.
            self.elapsed_s = max(self.elapsed_s, self.recipe.minutes * 60)
        self._save_state()

    def _score(self, kind: str, examples: list[Example]) -> Score:
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            found = score(self.network, self.batcher, examples)
        if self.telling is not None:
            self.telling.scored(self.step, kind, found)
        return found


def check_start(folder: Path) -> None:
    """Raise RecipeError where the folder that a run starts from is not there, ModelError where it is damaged."""
    if not (folder / WEIGHTS).is_file():
        raise RecipeError(f"start: there is no {WEIGHTS} in {folder}; train that model first, or take `start` out")
    check_weights(folder, read_config(folder))


def start_from(network: KnowMVG, folder: Path) -> None:
    """Take every weight of a model folder that fits; raises RecipeError where there is none, ModelError if damaged."""
    held = network.own_state()
    fitting = {k: v.float() for k, v in load_file(folder / WEIGHTS).items() if k in held and held[k].shape == v.shape}
    network.load_state_dict(fitting, strict=False)
    log.info("started from %s: %d of %d tensors", folder, len(fitting), len(held))


def fallen(shape: str, share: float) -> float:
    """From 1 to 0 as `share` of the run goes by."""
    return 0.5 * (1 + math.cos(math.pi * share)) if shape == "cosine" else 1 - share


def part_stream(worker: int) -> None:
    """Give each process that makes material seeds of its own."""
    told: Any = get_worker_info()
    told.dataset.seed += 50 * worker


def main() -> None:
    """Command line of a training run."""
    parser = argparse.ArgumentParser(description="Train KnowMVG by a recipe.")
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args().config)


if __name__ == "__main__":
    main()
