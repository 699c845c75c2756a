"""Each other reading of the paper and each control is a switch that brings its own weights, learns and has a say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grounding.knowledge import load_bank
from grounding.network.boxes import soft_indicator
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import KnowMVG
from grounding.network.prompter import KnowledgePrompter, content_orders
from grounding.predictor import uncertainty
from grounding.training.losses import losses
from grounding.training.recipe import LossWeights
from tests.model.networks import copy_weights, make_batch, make_network, stir

Switch = tuple[str, dict[str, Any], str]
WITH_WEIGHTS: list[Switch] = [
    ("decoder", {"hypotheses": 3}, "decoder.hypothesis_tokens"),
    ("knowledge", {"prompt_type": "points"}, "prompter.points."),
    ("attention", {"mask_source": "similarity"}, "decoder.similarity."),
    ("attention", {"box_cue": "prompt"}, "decoder.corners."),
]
WITHOUT_WEIGHTS: list[tuple[str, dict[str, Any]]] = [
    ("attention", {"box_cue": "roi"}),
    ("attention", {"box_cue": "bias"}),
    ("knowledge", {"control": "random_rows"}),
    ("knowledge", {"control": "shuffled_locations"}),
]


def boxes_of(network: KnowMVG) -> DecodedBoxes:
    batch = make_batch()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    return boxes


def switched(section: str, change: dict[str, Any]) -> tuple[KnowMVG, KnowMVG]:
    """A network with every gate open, and one with a switch moved and all the weights that both have."""
    plain, changed = make_network(), make_network(**{section: change})
    stir(plain)
    stir(changed)
    copy_weights(plain, changed)
    return plain, changed


@pytest.mark.parametrize(("section", "change", "part"), WITH_WEIGHTS)
def test_a_reading_brings_weights_that_learn_and_change_the_boxes(
    section: str, change: dict[str, Any], part: str
) -> None:
    plain, changed = switched(section, change)
    own = {n: p for n, p in changed.named_parameters() if n.startswith(part)}
    assert own and not any(n.startswith(part) for n, _ in plain.named_parameters())
    assert not torch.allclose(boxes_of(plain).refined, boxes_of(changed).refined, atol=1e-6)
    batch = make_batch()
    terms = losses(changed(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in own.values())


@pytest.mark.parametrize(("section", "change"), WITHOUT_WEIGHTS)
def test_a_cue_or_a_control_has_the_same_weights_and_other_boxes(section: str, change: dict[str, Any]) -> None:
    plain, changed = switched(section, change)
    assert set(plain.state_dict()) == set(changed.state_dict())
    assert not torch.allclose(boxes_of(plain).refined, boxes_of(changed).refined, atol=1e-6)


def test_all_box_cues_are_different_readings() -> None:
    found = [boxes_of(switched("attention", {"box_cue": cue})[1]).refined for cue in ("roi", "bias", "prompt", "both")]
    assert all(not torch.allclose(a, b, atol=1e-6) for i, a in enumerate(found) for b in found[:i])


def test_a_control_keeps_the_scores_and_gives_each_row_the_content_of_another() -> None:
    rows = len(load_bank().rows)
    for control, own_text in (("random_rows", False), ("shuffled_locations", True)):
        text, place = content_orders(rows, control)
        assert bool((place != torch.arange(rows)).all()) and sorted(place.tolist()) == list(range(rows))
        assert torch.equal(text, torch.arange(rows)) is own_text
    plain, changed = switched("knowledge", {"control": "shuffled_locations"})
    batch = make_batch()
    scores = [network(batch.pixels, batch.text).row_scores for network in (plain, changed)]
    assert torch.equal(scores[0], scores[1])
    assert isinstance(plain.prompter, KnowledgePrompter) and isinstance(changed.prompter, KnowledgePrompter)
    assert not torch.equal(plain.prompter.get_buffer("maps"), changed.prompter.get_buffer("maps"))


def test_points_lie_where_the_prior_is_highest() -> None:
    network = make_network(knowledge={"prompt_type": "points", "top_k": 2})
    assert isinstance(network.prompter, KnowledgePrompter) and network.prompter.points is not None
    prior = torch.zeros(1, 4, 4)
    prior[0, 1, 2], prior[0, 3, 0] = 0.9, 0.3
    weights, tokens = network.prompter.points(prior)
    assert torch.allclose(weights, torch.tensor([[0.75, 0.25]]))
    moved, again = prior.clone(), network.prompter.points(prior.roll(1, 2))[1]
    moved[0, 1, 2] = 0.8
    assert torch.equal(network.prompter.points(moved)[1], tokens) and not torch.equal(again, tokens)


@pytest.mark.parametrize("two_pass", [True, False])
def test_the_prediction_is_the_mean_of_the_hypotheses_and_their_spread_its_doubt(two_pass: bool) -> None:
    network = make_network(decoder={"hypotheses": 3}, attention={"two_pass": two_pass})
    stir(network)
    boxes = boxes_of(network)
    assert boxes.hypotheses is not None and boxes.variance is not None
    assert boxes.hypotheses.shape == (*boxes.refined.shape[:2], 3, 4)
    assert boxes.coarse.shape == boxes.refined.shape and boxes.presence_logits.shape == boxes.refined.shape[:2]
    assert torch.allclose(boxes.refined, boxes.hypotheses.mean(2), atol=1e-6)
    expected = ((boxes.hypotheses - boxes.refined.unsqueeze(2)) ** 2).mean((2, 3))
    assert torch.allclose(boxes.variance, expected, atol=1e-6) and bool((boxes.variance > 0).all())


def test_without_hypotheses_there_is_no_variance() -> None:
    boxes = boxes_of(make_network())
    assert boxes.hypotheses is None and boxes.variance is None and boxes.attention is None


def test_the_attention_of_a_query_is_a_distribution_and_its_loss_asks_for_the_true_box() -> None:
    plain, seeing = switched("attention", {"maps": True})
    assert torch.allclose(boxes_of(plain).refined, boxes_of(seeing).refined, atol=1e-4)
    batch = make_batch()
    output = seeing(batch.pixels, batch.text)
    assert output.boxes is not None and output.boxes.attention is not None
    assert torch.allclose(output.boxes.attention.sum((2, 3)), torch.ones(()), atol=1e-4)
    terms = losses(output, batch.text.labels, batch.targets, LossWeights(attention=0.5))
    assert terms["attention"] > 0
    terms["attention"].backward()
    query = seeing.decoder.transformer.layers[-1].cross_attn_token_to_image.q_proj.weight
    assert query.grad is not None and bool(query.grad.abs().sum() > 0)


def test_a_second_pass_looks_less_outside_the_coarse_box() -> None:
    """The bias of the coarse box must reach the attention that is measured."""
    network = make_network(attention={"maps": True, "use_global": False, "box_cue": "bias"})
    plain = make_network(attention={"maps": True, "use_global": False, "use_local": False})
    copy_weights(network, plain)
    found = []
    for each in (network, plain):
        boxes = boxes_of(each)
        assert boxes.attention is not None
        inside = soft_indicator(boxes.coarse, boxes.attention.shape[-1], 0.02, 1.25)
        found.append((boxes.attention * inside).sum((2, 3)).mean())
    assert found[0] > found[1] + 0.1


def test_the_doubt_of_a_finding_is_the_spread_of_its_hypotheses() -> None:
    network = make_network(decoder={"hypotheses": 3, "uncertainty": False})
    stir(network)
    with torch.inference_mode():
        boxes = boxes_of(network)
    assert boxes.variance is not None and boxes.quality_logits is None
    best = int(boxes.presence_logits[0].argmax())
    assert uncertainty(boxes, 0) == pytest.approx(
        float(boxes.variance[0, best]) ** 0.5, abs=5e-5
    )  # told in steps of 1e-4
    assert uncertainty(boxes_of(make_network(decoder={"uncertainty": False})), 0) is None


def test_a_fourth_map_is_folded_into_the_fine_grid() -> None:
    """Thin lines: a finer map adds what it sees and changes no size."""
    maps = ["stage1", "stage2", "stage3", "stage4"]
    plain, finer = make_network(), make_network(vision={"out_features": maps})
    coarse, fine = (network.encode_images(make_batch().pixels) for network in (plain, finer))
    assert coarse.fine.shape == fine.fine.shape and coarse.coarse.shape == fine.coarse.shape
    fine.fine.sum().backward()
    weight = dict(finer.backbone.named_parameters())["detail.weight"]
    assert weight.grad is not None and bool(weight.grad.abs().sum() > 0)
