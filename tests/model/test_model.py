"""The network's structure: switches, gates, gradients, bank rows, batches. Tiny random networks, no training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from grounding.knowledge import load_bank
from grounding.network.boxes import sample_per_image, sample_per_phrase, soft_indicator
from grounding.network.decoder import BoxDecoder, DecodedBoxes, move_box
from grounding.network.model import KnowMVG
from grounding.training.losses import losses
from grounding.training.recipe import LossWeights
from tests.model.networks import OFF, copy_weights, make_batch, make_batcher, make_examples, make_network, stir


def boxes_of(network: KnowMVG, batch: Any = None) -> DecodedBoxes:
    batch = batch or make_batch()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    return boxes


def test_with_everything_off_only_the_predecessors_parts_exist_and_run() -> None:
    full, baseline = make_network(), make_network(**OFF)
    copy_weights(full, baseline)
    absent = {"prompter", "decoder.attention", "decoder.mask_head", "decoder.delta_head"}
    assert not [n for n, _ in baseline.named_parameters() if any(n.startswith(part) for part in absent)]
    boxes = boxes_of(baseline)
    assert torch.equal(boxes.coarse, boxes.refined)
    # One plain pass over image and tokens, written out again.
    batch = make_batch()
    with torch.no_grad():
        features = baseline.encode_images(batch.pixels)
        tokens = baseline.language.image_tokens(features.coarse)[batch.text.image_of_text]
        states = baseline.phrase_states(baseline.language(tokens, batch.text.token_ids, batch.text.mask), batch.text)
        query = baseline.box_query(states.box)
        index = batch.text.image_of_text[batch.text.text_of_phrase]
        expected = baseline.decoder(features, index, query, None, None)
    assert torch.equal(expected.refined, boxes.refined)


def test_the_full_network_refines_nothing_before_it_has_learned() -> None:
    boxes = boxes_of(make_network())
    assert torch.equal(boxes.coarse, boxes.refined)


def test_before_learning_the_coarse_box_of_the_full_network_is_that_of_one_without_global_and_local() -> None:
    full = make_network(knowledge={"prompts": False})
    plain = make_network(knowledge={"prompts": False, "prior_map": False}, attention={"two_pass": False})
    copy_weights(full, plain)
    assert torch.equal(boxes_of(full).refined, boxes_of(plain).refined)


@pytest.mark.parametrize(
    ("section", "switch", "part"),
    [
        ("knowledge", {"prompts": False}, None),
        ("knowledge", {"prior_map": False}, None),
        ("attention", {"use_global": False}, None),
        ("attention", {"use_local": False}, None),
        ("decoder", {"mask_head": False}, None),
    ],
)
def test_each_switch_changes_what_comes_out(section: str, switch: dict[str, bool], part: None) -> None:
    full, without = make_network(), make_network(**{section: switch})
    stir(full)
    copy_weights(full, without)
    assert not torch.allclose(boxes_of(full).refined, boxes_of(without).refined, atol=1e-6)


def test_a_second_pass_without_bias_is_not_a_single_pass() -> None:
    control = make_network(attention={"use_global": False, "use_local": False})
    assert control.decoder.attention is not None
    assert control.decoder.attention.bias(
        control.decoder.attention.cues(None, None, torch.rand(1, 3, 4), 8), slice(1, 4), 6
    ) is None  # fmt: skip


def test_every_component_receives_gradient() -> None:
    network = make_network()
    stir(network)
    network.train()
    batch = make_batch()
    output = network(batch.pixels, batch.text)
    terms = losses(output, batch.text.labels, batch.targets, LossWeights())
    torch.stack(list(terms.values())).sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # Key biases of attention shift all scores alike: softmax cannot see them.
    assert [name for name in without if "k_proj.bias" not in name] == []


def test_one_step_moves_the_output_of_every_branch() -> None:
    network = make_network()
    batch = make_batch()
    before = boxes_of(network, batch)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    terms = losses(network(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    after = boxes_of(network, batch)
    for name in ("coarse", "refined", "presence_logits", "quality_logits", "mask_logits"):
        assert not torch.equal(getattr(before, name), getattr(after, name)), name


def test_the_order_of_bank_rows_changes_nothing() -> None:
    bank = load_bank()
    turned = replace(bank, rows=tuple(reversed(bank.rows)))
    ordered, reordered = make_network(bank), make_network(turned)
    stir(ordered)
    copy_weights(ordered, reordered)
    batch = make_batch()
    flipped = replace(batch.text, log_prior=batch.text.log_prior.flip(1))
    assert torch.allclose(
        boxes_of(ordered, batch).refined, boxes_of(reordered, replace(batch, text=flipped)).refined, atol=1e-5
    )


def test_more_rows_than_there_are_means_all_rows() -> None:
    rows = len(load_bank().rows)
    all_rows, more = make_network(knowledge={"top_k": rows}), make_network(knowledge={"top_k": rows + 50})
    stir(all_rows)
    copy_weights(all_rows, more)
    assert torch.allclose(boxes_of(all_rows).refined, boxes_of(more).refined, atol=1e-6)


def test_no_row_means_prompts_off() -> None:
    none = make_network(knowledge={"top_k": 0, "prior_map": False})
    off = make_network(knowledge={"prompts": False, "prior_map": False})
    stir(none)
    copy_weights(none, off)
    assert none.prompter is None
    assert torch.equal(boxes_of(none).refined, boxes_of(off).refined)


def test_a_batch_gives_what_its_pictures_give_alone() -> None:
    network = make_network()
    stir(network)
    together = boxes_of(network)
    alone = []
    for example in make_examples():
        batch = make_batch([example])
        boxes = network(batch.pixels, batch.text).boxes
        alone += [] if boxes is None else [boxes]
    assert torch.allclose(together.refined, torch.cat([b.refined for b in alone]), atol=1e-4)
    assert torch.allclose(together.presence_logits, torch.cat([b.presence_logits for b in alone]), atol=1e-3)


def test_a_picture_without_a_phrase_to_ground_has_no_boxes_and_a_loss() -> None:
    network = make_network()
    batch = make_batch(make_examples()[2:])
    output = network(batch.pixels, batch.text)
    terms = losses(output, batch.text.labels, batch.targets, LossWeights())
    assert output.boxes is None
    assert set(terms) == {"language"} and bool(torch.isfinite(terms["language"]))


def test_regions_land_on_their_cells() -> None:
    ramp = torch.arange(8.0).expand(8, 8)
    feature = torch.stack([ramp, ramp.T]).unsqueeze(0).expand(3, -1, -1, -1).contiguous()
    boxes = torch.tensor([[[0.25, 0.75, 0.25, 0.25]], [[0.5, 0.5, 1.0, 1.0]], [[0.8, 0.2, 0.2, 0.1]]])
    from grounding.network.boxes import region_grid

    per_phrase = sample_per_phrase(feature, region_grid(boxes, 4, 1.0))
    centre = per_phrase.mean(2)[:, 0] + 0.5
    assert torch.allclose(centre, boxes[:, 0, :2] * 8, atol=0.06)
    shared = sample_per_image(feature[:1], region_grid(boxes, 4, 1.0), torch.zeros(3, dtype=torch.long))
    assert torch.allclose(per_phrase, shared, atol=1e-6)


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
