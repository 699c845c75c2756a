"""Losses stay finite on bad boxes, match boxes one to one, and reward what they should."""

from __future__ import annotations

import torch

from grounding.network.boxes import paired_iou
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import NetworkOutput
from grounding.training.losses import LossWeights, Targets, box_loss, losses, match


def make_boxes(refined: list[list[float]], presence: list[float] | None = None) -> DecodedBoxes:
    boxes = torch.tensor([refined])
    return DecodedBoxes(boxes, boxes, torch.tensor([presence or [0.0] * len(refined)]), None, None)


def make_targets(boxes: list[list[float]], valid: list[bool]) -> Targets:
    return Targets(
        torch.tensor([boxes]), torch.tensor([valid]), torch.ones(1, 2, dtype=torch.bool), torch.rand(2, 4).sort(-1)[0]
    )


def test_each_true_box_gets_its_own_slot() -> None:
    left, right = [0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]
    phrase, slot, truth = match(
        make_boxes([right, [0.5, 0.1, 0.1, 0.1], left]), make_targets([left, right], [True, True])
    )
    assert phrase.tolist() == [0, 0]
    assert dict(zip(truth.tolist(), slot.tolist(), strict=True)) == {0: 2, 1: 0}


def test_a_phrase_without_truth_matches_nothing() -> None:
    phrase, _, _ = match(make_boxes([[0.5, 0.5, 0.1, 0.1]]), make_targets([[0.5, 0.5, 0.1, 0.1]], [False]))
    assert len(phrase) == 0


def test_degenerate_boxes_have_a_finite_loss_and_gradient() -> None:
    predicted = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1e-9, 1.0], [0.5, 0.5, -0.1, 0.2]], requires_grad=True)
    loss = box_loss(predicted, torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.2, 0.2]]))
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all()) and predicted.grad is not None
    assert bool(torch.isfinite(predicted.grad).all())


def test_giou_falls_with_the_distance_of_boxes_that_do_not_meet() -> None:
    anchor = torch.tensor([0.1, 0.1, 0.1, 0.1])
    near, far = torch.tensor([0.3, 0.1, 0.1, 0.1]), torch.tensor([0.9, 0.1, 0.1, 0.1])
    assert paired_iou(anchor, near)[0] == 0
    assert paired_iou(anchor, near)[1] > paired_iou(anchor, far)[1]


def test_an_absent_phrase_teaches_presence_alone() -> None:
    boxes = make_boxes([[0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]], [4.0, -4.0])
    output = NetworkOutput(torch.zeros(0, 5), boxes, None)
    terms = losses(output, torch.full((1, 2), -100), make_targets([[0.5, 0.5, 0.1, 0.1]], [False]), LossWeights())
    assert terms["refined"] == 0 and terms["coarse"] == 0 and terms["language"] == 0
    assert terms["presence"] > 1
