"""The network's structure: switches, gates, gradients, bank rows, batches. Tiny random networks, no training."""

from __future__ import annotations

from typing import Any

import torch

from grounding.network.boxes import sample_per_image, sample_per_phrase, soft_indicator
from grounding.network.decoder import BoxDecoder, DecodedBoxes, move_box
from grounding.network.model import KnowMVG
from tests.model.networks import make_batch, make_batcher, make_examples, make_network


def boxes_of(network: KnowMVG, batch: Any = None) -> DecodedBoxes:
    batch = batch or make_batch()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    return boxes


def test_a_second_pass_without_bias_is_not_a_single_pass() -> None:
    control = make_network(attention={"use_global": False, "use_local": False})
    assert control.decoder.attention is not None
    assert control.decoder.attention.bias(
        control.decoder.attention.cues(None, None, torch.rand(1, 3, 4), 8), slice(1, 4), 6
    ) is None  # fmt: skip


def test_phrases_in_any_order_find_their_own_image() -> None:
    feature = torch.rand(3, 5, 6, 6)
    grid = torch.rand(4, 2, 3, 3, 2) * 2 - 1
    index = torch.tensor([2, 0, 2, 1])
    expected = sample_per_phrase(feature[index], grid)
    assert torch.allclose(sample_per_image(feature, grid, index), expected, atol=1e-6)


def test_a_soft_indicator_is_one_inside_and_zero_outside() -> None:
    inside = soft_indicator(torch.tensor([0.5, 0.5, 0.5, 0.5]), 8, 0.02)
    assert inside[3, 3] > 0.95 and inside[0, 0] < 0.05


def test_moving_a_box_is_in_units_of_its_size() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    moved = move_box(box, torch.tensor([0.5, -0.25, 0.0, 0.0]))
    assert torch.allclose(moved, torch.tensor([0.6, 0.4, 0.2, 0.4]))


def test_decoder_has_as_many_boxes_as_slots() -> None:
    network = make_network(decoder={"slots": 1})
    assert isinstance(network.decoder, BoxDecoder)
    assert boxes_of(network).refined.shape[1] == 1


def test_a_long_answer_is_labelled_only_where_the_model_speaks() -> None:
    batcher = make_batcher()
    example = make_examples()[0]
    sequence = batcher.sequence(example.prompts[1])
    tokens = batcher.tokens
    spoken = [label for label in sequence.labels if label >= 0]
    assert spoken.count(tokens.box) == 2 and spoken[-1] == tokens.eos
    assert [sequence.ids[end] for _, end, _ in sequence.phrases] == [tokens.box, tokens.box]
