"""What is learned: language, presence and place of boxes, semantic masks, attention, and the choice of knowledge rows.

Every term has a weight; a term of weight 0 is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from grounding.network.boxes import paired_iou, soft_indicator, to_cxcywh
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import NetworkOutput
from grounding.training.recipe import LossWeights


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


def loss_attention(attention: Tensor, targets: Targets, pairs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How little of a matched query's attention float32[N, M, H, W] lies in its true box: -log of the share."""
    phrase, slot, truth = pairs
    inside = soft_indicator(targets.boxes[phrase, truth], attention.shape[-1], 0.02)
    mass = (attention[phrase, slot] * inside).sum((1, 2))
    return -(mass + 1e-4).log().sum() / max(len(phrase), 1)


def loss_hypotheses(several: Tensor, truth: Tensor, weights: LossWeights) -> Tensor:
    """Box loss of K hypotheses float32[P, K, 4] of P pairs against float32[P, 4] -> float32[P]."""
    count = several.shape[1]
    if weights.several == "uncertain":
        apart = (several.unsqueeze(1) - several.unsqueeze(2)).abs().sum(-1)
        others = ~torch.eye(count, dtype=torch.bool, device=several.device)
        hinge = (weights.margin - apart[:, others]).clamp_min(0).mean(-1)
        return box_loss(several.mean(1), truth) + hinge
    each = box_loss(several, truth.unsqueeze(1))
    if weights.several == "mhp":
        share = each.new_full((count,), weights.share / (count - 1))
        share[0] = 1 - weights.share
        return (each * share).sum(-1)
    distance = (several.detach() - truth.unsqueeze(1)).abs().sum(-1)
    return (each * distance / distance.sum(-1, keepdim=True).clamp_min(1e-6)).sum(-1)


def losses(output: NetworkOutput, labels: Tensor, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """All terms, weighted; their sum is what is minimised."""
    terms = {"language": weights.language * loss_language(output.logits, labels)}
    if output.boxes is None:
        return terms
    wanted = first_only(targets) if weights.train_boxes == "first" else targets
    terms |= losses_boxes(output.boxes, wanted, weights)
    if output.row_scores is not None and weights.location:
        terms["location"] = weights.location * loss_location(output.row_scores, targets)
    return terms


def first_only(targets: Targets) -> Targets:
    """The same targets without any but the first (largest) box of each phrase."""
    valid = targets.valid.clone()
    valid[:, 1:] = False
    return replace(targets, valid=valid)


def losses_boxes(boxes: DecodedBoxes, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """The terms of the box decoder, weighted."""
    terms: dict[str, Tensor] = {}
    phrase, slot, truth = match(boxes, targets)
    matched, count = targets.boxes[phrase, truth], max(len(phrase), 1)
    if weights.presence:
        present = torch.zeros_like(boxes.presence_logits)
        present[phrase, slot] = 1.0
        terms["presence"] = weights.presence * F.binary_cross_entropy_with_logits(boxes.presence_logits, present)
    refined, coarse = boxes.refined[phrase, slot], boxes.coarse[phrase, slot]
    if boxes.hypotheses is None:
        terms["refined"] = weights.refined * box_loss(refined, matched).sum() / count
    else:
        several = loss_hypotheses(boxes.hypotheses[phrase, slot], matched, weights)
        terms["refined"] = weights.refined * several.sum() / count
    terms["coarse"] = weights.coarse * box_loss(coarse, matched).sum() / count
    if boxes.quality_logits is not None and weights.quality:
        truth_iou = paired_iou(refined.detach(), matched)[0]
        entropy = F.binary_cross_entropy_with_logits(boxes.quality_logits[phrase, slot], truth_iou, reduction="sum")
        terms["quality"] = weights.quality * entropy / count
    if boxes.mask_logits is not None and weights.mask:
        terms["mask"] = weights.mask * loss_mask(boxes.mask_logits, targets)
    if boxes.attention is not None and weights.attention:
        terms["attention"] = weights.attention * loss_attention(boxes.attention, targets, (phrase, slot, truth))
    return terms
