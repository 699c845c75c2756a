"""Losses stay finite on bad boxes, match boxes one to one, and reward what they should."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from grounding.network.boxes import paired_iou
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import NetworkOutput
from grounding.training.losses import Targets, box_loss, loss_attention, loss_hypotheses, losses, match
from grounding.training.recipe import LossWeights


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


THREE = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.4], [0.3, 0.5, 0.2, 0.2]]])
TRUTH = torch.tensor([[0.5, 0.5, 0.2, 0.2]])


def test_mhp_gives_almost_all_to_the_first_hypothesis() -> None:
    each = box_loss(THREE, TRUTH.unsqueeze(1))[0]
    expected = 0.95 * each[0] + 0.025 * (each[1] + each[2])
    assert torch.allclose(loss_hypotheses(THREE, TRUTH, LossWeights(several="mhp"))[0], expected)


def test_umhp_weights_each_hypothesis_by_its_share_of_the_distances() -> None:
    each = box_loss(THREE, TRUTH.unsqueeze(1))[0]
    assert torch.allclose(loss_hypotheses(THREE, TRUTH, LossWeights(several="umhp"))[0], (each[1] + each[2]) / 2)


def test_the_uncertain_box_teaches_the_mean_and_keeps_hypotheses_apart() -> None:
    weights = LossWeights(several="uncertain")
    of_mean = box_loss(THREE.mean(1), TRUTH)
    assert torch.allclose(loss_hypotheses(THREE, TRUTH, weights), of_mean)
    alike = TRUTH.unsqueeze(1).repeat(1, 3, 1)
    assert torch.allclose(loss_hypotheses(alike, TRUTH, weights), torch.tensor([0.01]), atol=1e-6)


def test_attention_wholly_inside_the_true_box_costs_nothing() -> None:
    targets = make_targets([[0.25, 0.25, 0.5, 0.5]], [True])
    inside, outside = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    inside[0, 0, 1, 1], outside[0, 0, 6, 6] = 1.0, 1.0
    pairs = (torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    assert loss_attention(inside, targets, pairs) < 0.01 < 5 < loss_attention(outside, targets, pairs)


def test_a_term_of_weight_nothing_is_left_out_and_the_first_box_alone_can_be_taught() -> None:
    targets = make_targets([[0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]], [True, True])
    boxes = make_boxes([[0.8, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2]])
    output, labels = NetworkOutput(torch.zeros(0, 5), boxes, torch.zeros(1, 2)), torch.full((1, 2), -100)
    both = losses(output, labels, targets, LossWeights())
    first = losses(output, labels, targets, LossWeights(train_boxes="first", location=0, presence=0))
    assert "location" in both and "presence" in both
    assert "location" not in first and "presence" not in first
    expected = box_loss(torch.tensor([0.3, 0.5, 0.2, 0.2]), torch.tensor([0.2, 0.5, 0.2, 0.2]))
    assert torch.allclose(first["refined"], 2 * expected) and torch.allclose(both["refined"], expected)


def test_a_weight_below_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="mask"):
        LossWeights(mask=-1)
