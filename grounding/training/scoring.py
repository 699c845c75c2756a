"""Scores of a network under training: given the phrases, with and without the pixels. Not the published evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grounding.geometry import resize, stretch_contrast
from grounding.network.boxes import to_xyxy
from grounding.network.model import KnowMVG
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import Answer, Example, Prompt, RealImage

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


@torch.inference_mode()
def score(network: KnowMVG, batcher: Batcher, examples: Sequence[Example], size: int = 10) -> Score:
    """Score a network, left in evaluation mode, on examples, `size` at a time."""
    network.eval()
    device = next(network.parameters()).device
    threshold = network.config.decision.presence
    ious, blind, false = [], [], []
    for start in range(0, len(examples), size):
        batch = batcher.collate(examples[start : start + size]).on(device)
        boxes = network(batch.pixels, batch.text).boxes
        hidden = network(torch.full_like(batch.pixels, 0.5), batch.text).boxes
        if boxes is None or hidden is None:
            continue
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
    centres = (torch.arange(RASTER, device=cxcywh.device) + 0.5) / RASTER
    x1, y1, x2, y2 = (side.unsqueeze(-1) for side in to_xyxy(cxcywh).unbind(-1))
    across, down = (centres >= x1) & (centres <= x2), (centres >= y1) & (centres <= y2)
    return (down.unsqueeze(-1) & across.unsqueeze(-2) & used[..., None, None]).any(1)


def real_validation_example(real: RealImage, canvas: int) -> Example:
    """All rows of a held-out radiograph, worded as they are."""
    picture = stretch_contrast(resize(real.image, canvas, canvas))
    prompts = tuple(Prompt(r.phrase, (Answer(0, len(r.phrase), False, r.boxes),)) for r in real.rows)
    return Example(picture, prompts)
