"""What is learned: language, presence and place of boxes, semantic masks, and the choice of knowledge rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from grounding.network.boxes import paired_iou, soft_indicator, to_cxcywh
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import NetworkOutput


@dataclass(frozen=True, slots=True)
class Targets:
    """Truth of N phrases: boxes cxcywh float32[N, G, 4], valid bool[N, G] (none valid: not in the image).

    `located` bool[N]: the phrase counts for boxes at all. `row_match` bool[N, M]: bank rows of the phrase's entity;
    `row_boxes` float32[M, 4] corners.
    """

    boxes: Tensor
    valid: Tensor
    row_match: Tensor
    row_boxes: Tensor


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each term."""

    language: float = 1.0
    refined: float = 2.0
    coarse: float = 1.0
    presence: float = 2.0
    quality: float = 0.5
    mask: float = 1.0
    location: float = 0.1


def box_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Sum of absolute differences (five-fold) plus 1 - GIoU (two-fold), per pair: float32[..., 4] -> float32[...]."""
    distance = (predicted - truth).abs().sum(-1)
    return 5.0 * distance + 2.0 * (1 - paired_iou(predicted, truth)[1])


@torch.no_grad()
def match(boxes: DecodedBoxes, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Hungarian matching: indices (phrase, slot, truth) int64[K] of the pairs."""
    cost = box_loss(boxes.refined.unsqueeze(2), targets.boxes.unsqueeze(1))
    cost = cost + 0.5 * box_loss(boxes.coarse.unsqueeze(2), targets.boxes.unsqueeze(1))
    # Slots are alike at first: a surer or an earlier one is preferred, so that they take on roles.
    early = torch.arange(boxes.presence_logits.shape[1], device=cost.device, dtype=cost.dtype)
    preference = 0.4 * early - 3.0 * boxes.presence_logits.sigmoid()
    costs = (cost + preference.unsqueeze(-1)).nan_to_num(1e4).cpu().numpy()
    phrases, slots, truths = [], [], []
    for index, valid in enumerate(targets.valid.cpu().numpy()):
        columns = valid.nonzero()[0]
        rows, picked = linear_sum_assignment(costs[index][:, columns])
        phrases += [index] * len(rows)
        slots += rows.tolist()
        truths += columns[picked].tolist()
    device = targets.boxes.device
    return (
        torch.tensor(phrases, device=device, dtype=torch.long),
        torch.tensor(slots, device=device, dtype=torch.long),
        torch.tensor(truths, device=device, dtype=torch.long),
    )


def loss_language(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answer's tokens: logits float32[L, V] of the L labels of int64[S, T] that are not -100."""
    if not len(logits):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels[labels != -100])


def loss_mask(mask_logits: Tensor, targets: Targets) -> Tensor:
    """Binary cross-entropy and Dice against the filled true boxes with soft edges."""
    size = mask_logits.shape[-1]
    filled = soft_indicator(targets.boxes, size, 0.01) * targets.valid[..., None, None]
    truth = filled.amax(1)
    weight = 1.0 + 2.0 * truth
    entropy = (F.binary_cross_entropy_with_logits(mask_logits, truth, reduction="none") * weight).mean()
    scores = mask_logits.sigmoid()
    overlap, total = (scores * truth).sum((1, 2)), (scores + truth).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    present = targets.valid.any(1)
    return 2.0 * entropy + 0.5 * (dice * present).sum() / present.sum().clamp_min(1)


def loss_location(scores: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy of the chosen rows against rows of the phrase's entity whose prior box meets the true box."""
    rows = to_cxcywh(targets.row_boxes)
    iou = paired_iou(targets.boxes.unsqueeze(2), rows[None, None])[0] * targets.valid.unsqueeze(-1)
    wanted = iou.amax(1).square() * targets.row_match
    total = wanted.sum(-1, keepdim=True)
    usable = total.squeeze(-1) > 1e-4
    share = wanted / total.clamp_min(1e-4)
    entropy = -(share * scores.log_softmax(-1)).sum(-1)
    return (entropy * usable).sum() / usable.sum().clamp_min(1)


def losses(output: NetworkOutput, labels: Tensor, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """All terms, weighted; their sum is what is minimised."""
    terms = {"language": weights.language * loss_language(output.logits, labels)}
    boxes = output.boxes
    if boxes is None:
        return terms
    phrase, slot, truth = match(boxes, targets)
    matched = targets.boxes[phrase, truth]
    present = torch.zeros_like(boxes.presence_logits)
    present[phrase, slot] = 1.0
    terms["presence"] = weights.presence * F.binary_cross_entropy_with_logits(boxes.presence_logits, present)
    count = max(len(phrase), 1)
    refined, coarse = boxes.refined[phrase, slot], boxes.coarse[phrase, slot]
    terms["refined"] = weights.refined * box_loss(refined, matched).sum() / count
    terms["coarse"] = weights.coarse * box_loss(coarse, matched).sum() / count
    if boxes.quality_logits is not None:
        truth_iou = paired_iou(refined.detach(), matched)[0]
        entropy = F.binary_cross_entropy_with_logits(boxes.quality_logits[phrase, slot], truth_iou, reduction="sum")
        terms["quality"] = weights.quality * entropy / count
    if boxes.mask_logits is not None:
        terms["mask"] = weights.mask * loss_mask(boxes.mask_logits, targets)
    if output.row_scores is not None:
        terms["location"] = weights.location * loss_location(output.row_scores, targets)
    return terms
