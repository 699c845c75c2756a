"""The phrase-given regressor: one box per phrase, from picture and words; padding has no say; it can learn."""

from __future__ import annotations

from dataclasses import replace

import torch

from grounding.network.boxes import paired_iou
from grounding.network.transvg import PRESENT, PhraseRegressor, TransVG, phrase_words
from grounding.training.ablation import union_hull
from grounding.training.examples import Example
from grounding.training.losses import Targets, losses
from grounding.training.recipe import LossWeights
from tests.model.networks import make_batch, make_examples, prompt, square_box, tiny_config, tiny_image


def make_regressor(seed: int = 0) -> TransVG:
    torch.manual_seed(seed)
    return TransVG(tiny_config())


def test_each_phrase_has_one_box_in_the_picture_and_no_language_is_learned() -> None:
    batch = make_batch()
    output = make_regressor().eval()(batch.pixels, batch.text)
    assert output.boxes is not None and output.row_scores is None and len(output.logits) == 0
    assert output.boxes.refined.shape == (len(batch.text.text_of_phrase), 1, 4)
    assert bool(((output.boxes.refined > 0) & (output.boxes.refined < 1)).all())
    assert bool((output.boxes.presence_logits == PRESENT).all())


def test_a_picture_without_a_phrase_has_no_box() -> None:
    batch = make_batch(make_examples()[2:])
    assert make_regressor()(batch.pixels, batch.text).boxes is None


def test_words_of_a_phrase_are_those_between_its_ends() -> None:
    text = make_batch().text
    words, mask = phrase_words(text.token_ids, text)
    for row, (found, used) in enumerate(zip(words, mask, strict=True)):
        whole = text.token_ids[text.text_of_phrase[row]]
        assert torch.equal(found[used], whole[text.phrase_start[row] : text.phrase_end[row]])


def test_padding_has_no_say_and_words_have() -> None:
    torch.manual_seed(0)
    network, regressor = make_regressor().eval(), PhraseRegressor(tiny_config(), 16).eval()
    features = network.backbone(make_batch().pixels)
    words, mask = torch.randn(2, 6, 16), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    index = torch.tensor([0, 1])
    boxes = regressor(features, index, words, mask).refined
    padded, said = words.clone(), words.clone()
    padded[1, 3:] = 9.0
    said[1, 0] = 9.0
    assert torch.allclose(regressor(features, index, padded, mask).refined, boxes, atol=1e-6)
    assert not torch.allclose(regressor(features, index, said, mask).refined[1], boxes[1], atol=1e-5)
    assert not torch.allclose(regressor(features, index.flip(0), words, mask).refined, boxes, atol=1e-5)


def test_several_true_boxes_become_the_smallest_box_around_them() -> None:
    boxes = torch.tensor([[[0.2, 0.3, 0.2, 0.2], [0.7, 0.6, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0]]]).repeat(2, 1, 1)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    hull = union_hull(Targets(boxes, valid, torch.ones(2, 1, dtype=torch.bool), torch.zeros(1, 4)))
    assert torch.allclose(hull.boxes[0, 0], torch.tensor([0.45, 0.5, 0.7, 0.6]))
    assert hull.valid.tolist() == [[True], [False]]


def test_it_learns_three_squares_by_heart() -> None:
    squares = [(6, 8, 30, 30), (34, 10, 60, 40), (8, 36, 26, 58)]
    examples = [
        Example(tiny_image(square, seed), (prompt("nodule", "nodule", square_box(square)),))
        for seed, square in enumerate(squares)
    ]
    batch, network = make_batch(examples), make_regressor().train()
    targets = replace(union_hull(batch.targets))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(80):
        terms = losses(network(batch.pixels, batch.text), batch.text.labels, targets, LossWeights())
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    assert paired_iou(boxes.refined[:, 0], targets.boxes[:, 0])[0].min() > 0.7
