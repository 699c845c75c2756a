"""The structural tests that any reading of the paper has to pass, by their numbers (`test_01_` to `test_13_`).

They are the list that the reference design sets for itself: switches, gates, gradients, the order of bank rows, cached
generation, batches, frames, bad input, what cannot be reached, the phrases of ChestX-ray8, blindness and learning.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from grounding.checkpoint import default_checkpoint
from grounding.copying import Emission
from grounding.evaluation.metrics import Score, region_iou, summarize
from grounding.evaluation.prior import PriorPredictor, build_table
from grounding.geometry import Frame
from grounding.knowledge import load_bank
from grounding.network.boxes import paired_iou, region_grid, sample_per_image, sample_per_phrase
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import KnowMVG
from grounding.predictor import Predictor
from grounding.processor import Processor
from grounding.sets.chestx_ray8 import position, positioned_phrase
from grounding.training.ablation import load_trunk
from grounding.training.examples import Example
from grounding.training.losses import Targets, losses
from grounding.training.recipe import LossWeights
from grounding.types import Box, Image, ModelIdentity, ReportText
from tests.model.networks import (
    OFF,
    copy_weights,
    make_batch,
    make_batcher,
    make_examples,
    make_network,
    prompt,
    square_box,
    stir,
    tiny_image,
    tiny_tokens,
)

GATES = {
    "prompts": (
        {"knowledge": {"prior_map": False}},
        {"knowledge": {"prompts": False, "prior_map": False}},
        "prompter.",
    ),
    "prior map": ({}, {"knowledge": {"prior_map": False}}, "prompter."),
    "global": ({}, {"attention": {"use_global": False}}, "decoder.attention.global_weight"),
    "local": ({}, {"attention": {"use_local": False}}, "decoder.attention.near."),
    "mask head": ({}, {"decoder": {"mask_head": False}}, "decoder.mask_head."),
    "expected IoU": ({}, {"decoder": {"uncertainty": False}}, "decoder.score_head.2"),
    "hypotheses": ({"decoder": {"hypotheses": 3}}, {}, "decoder.hypothesis_tokens"),
}
"""Each switch: the configuration with it, the one without it, and the weights that it is about."""

NIH_BOXES = Path(__file__).parents[3] / "shared" / "data" / "annotations" / "nih_bbox_list_2017.jsonl"


def boxes_of(network: KnowMVG, batch: Any = None) -> DecodedBoxes:
    batch = batch or make_batch()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    return boxes


def backward(network: KnowMVG) -> None:
    batch = make_batch()
    terms = losses(network(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
    torch.autograd.backward(torch.stack(list(terms.values())).sum())


# ---- 1: all switches off is the predecessor --------------------------------------------------------------------------


def medground(network: KnowMVG, coarse: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """MedGround's decoder written out from transformers' parts: boxes float32[N, M, 4] and presence logits."""
    weights, settings = network.state_dict(), network.config.decoder
    hidden = F.relu(F.linear(states, weights["box_query.0.weight"], weights["box_query.0.bias"]))
    query = F.linear(hidden, weights["box_query.2.weight"], weights["box_query.2.bias"])
    sam = SamMaskDecoderConfig(
        hidden_size=settings.width, num_attention_heads=settings.heads, num_hidden_layers=settings.depth,
        mlp_dim=settings.mlp_width,
    )  # fmt: skip
    sam._attn_implementation = "sdpa"
    two_way: Any = SamTwoWayTransformer(sam)
    name = "decoder.transformer."
    two_way.load_state_dict({k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)})
    n, width, size = len(states), settings.width, coarse.shape[-1]
    tokens = torch.cat([weights["decoder.learned_tokens"] + query[:, None], query[:, None]], 1)
    centres = (torch.arange(size) + 0.5) / size
    turns = 2 * math.pi * torch.exp2(torch.linspace(-1, 5, width // 4)) * centres[:, None]
    wave = torch.cat([turns.sin(), turns.cos()], 1)
    across, down = wave[None].expand(size, -1, -1), wave[:, None].expand(-1, size, -1)
    code = torch.cat([across, down], -1).permute(2, 0, 1).expand(n, -1, -1, -1)
    out, keys = two_way(tokens[:, None], coarse, code, None)
    queries, cells = out[:, 0, 1 : 1 + settings.slots], keys[:, 0]
    asked = F.linear(queries, weights["decoder.heat.weight"], weights["decoder.heat.bias"])
    feature = cells.transpose(1, 2).reshape(n, width, size, size)
    heat = (torch.einsum("nmc,nchw->nmhw", asked, feature) / width**0.5).flatten(2).softmax(-1)
    heat = heat.unflatten(2, (size, size))
    place = torch.stack([(heat.sum(2) * centres).sum(-1), (heat.sum(3) * centres).sum(-1)], -1)

    def head(which: str, given: Tensor) -> Tensor:
        inner = F.relu(F.linear(given, weights[f"decoder.{which}.0.weight"], weights[f"decoder.{which}.0.bias"]))
        return F.linear(inner, weights[f"decoder.{which}.2.weight"], weights[f"decoder.{which}.2.bias"])

    offset = head("coarse_head", queries)
    centre = torch.sigmoid(torch.logit(place.clamp(0.01, 0.99)) + offset[..., :2])
    return torch.cat([centre, torch.sigmoid(offset[..., 2:])], -1), head("score_head", queries)[..., 0]


@torch.inference_mode()
def test_01_with_every_switch_off_it_is_medground_bit_for_bit() -> None:
    network, batch = make_network(**OFF), make_batch()
    stir(network)
    features = network.encode_images(batch.pixels)
    states = network.language(features.tokens[batch.text.image_of_text], batch.text.token_ids, batch.text.mask)
    index = batch.text.image_of_text[batch.text.text_of_phrase]
    boxes, presence = medground(network, features.coarse[index], network.phrase_states(states, batch.text).box)
    found = boxes_of(network, batch)
    assert torch.equal(found.refined, boxes) and torch.equal(found.coarse, boxes)
    assert torch.equal(found.presence_logits, presence)


def test_01_with_every_switch_off_no_part_of_the_paper_has_weights() -> None:
    parts = ("prompter", "decoder.attention", "decoder.mask_head", "decoder.delta_head", "decoder.hypothesis_tokens")
    assert not [n for n, _ in make_network(**OFF).named_parameters() if n.startswith(parts)]


# ---- 2: closed gates -------------------------------------------------------------------------------------------------


def test_02_with_closed_gates_the_full_network_gives_its_coarse_box() -> None:
    boxes = boxes_of(make_network())
    assert torch.equal(boxes.coarse, boxes.refined)


def test_02_with_closed_gates_the_coarse_box_is_that_of_one_pass() -> None:
    full = make_network(knowledge={"prompts": False})
    plain = make_network(knowledge={"prompts": False, "prior_map": False}, attention={"two_pass": False})
    copy_weights(full, plain)
    assert torch.equal(boxes_of(full).refined, boxes_of(plain).refined)


# ---- 3: every switch learns and has a say ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATES)
def test_03_each_switch_has_weights_that_learn_and_a_say(name: str) -> None:
    on, off, part = GATES[name]
    network, without = make_network(**on), make_network(**off)
    stir(network)
    copy_weights(network, without)
    found, other = boxes_of(network), boxes_of(without)
    if name == "expected IoU":
        assert found.quality_logits is not None and other.quality_logits is None
    else:
        assert not torch.allclose(found.refined, other.refined, atol=1e-6)
    backward(network)
    own = {n: p for n, p in network.named_parameters() if n.startswith(part)}
    # Key biases of attention shift all scores alike: softmax cannot see them.
    blind = [n for n, p in own.items() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert own and [n for n in blind if "k_proj.bias" not in n] == []


def test_03_every_weight_of_the_full_network_learns() -> None:
    network = make_network()
    stir(network)
    backward(network.train())
    blind = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert [name for name in blind if "k_proj.bias" not in name] == []


def test_03_one_step_moves_what_every_branch_gives() -> None:
    network, batch = make_network(), make_batch()
    before = boxes_of(network, batch)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    backward(network)
    optimizer.step()
    after = boxes_of(network, batch)
    for name in ("coarse", "refined", "presence_logits", "quality_logits", "mask_logits"):
        assert not torch.equal(getattr(before, name), getattr(after, name)), name


# ---- 4: the bank is a set --------------------------------------------------------------------------------------------


def test_04_the_order_of_bank_rows_changes_nothing() -> None:
    bank = load_bank()
    turned = replace(bank, rows=tuple(reversed(bank.rows)))
    ordered, reordered = make_network(bank), make_network(turned)
    stir(ordered)
    copy_weights(ordered, reordered)
    batch = make_batch()
    flipped = replace(batch.text, log_prior=batch.text.log_prior.flip(1))
    found = boxes_of(reordered, replace(batch, text=flipped))
    assert torch.allclose(boxes_of(ordered, batch).refined, found.refined, atol=1e-5)


def test_04_more_rows_than_there_are_means_all_rows() -> None:
    rows = len(load_bank().rows)
    all_rows, more = make_network(knowledge={"top_k": rows}), make_network(knowledge={"top_k": rows + 50})
    stir(all_rows)
    copy_weights(all_rows, more)
    assert torch.allclose(boxes_of(all_rows).refined, boxes_of(more).refined, atol=1e-6)


def test_04_no_row_means_prompts_off() -> None:
    none = make_network(knowledge={"top_k": 0, "prior_map": False})
    off = make_network(knowledge={"prompts": False, "prior_map": False})
    stir(none)
    copy_weights(none, off)
    assert none.prompter is None
    assert torch.equal(boxes_of(none).refined, boxes_of(off).refined)


# ---- 5: teacher forcing is generation --------------------------------------------------------------------------------


@torch.inference_mode()
def test_05_the_state_of_a_box_is_the_same_forced_and_generated() -> None:
    network, tokens = make_network(seed=3), tiny_tokens()
    network.language.lm.model.embed_tokens.weight[tokens.box] *= 3  # random weights seldom close a phrase
    processor = Processor(network.config, tokens, load_bank())
    seen = network.encode_images(processor.pixels(tiny_image())).tokens
    texts = ["Opacity in the right upper lung zone and a nodule.", "Pleural effusion, left.", "The heart is enlarged."]
    read = [(text, processor.encode(text)) for text in texts]
    answers, cached = network.language.generate(seen, [t for _, t in read], tokens)
    batch = processor.forced_batch([(s, t, a) for (s, t), a in zip(read, answers, strict=True)])
    states = network.language(seen.expand(len(texts), -1, -1), batch.token_ids, batch.mask)
    forced = network.phrase_states(states, batch)
    assert len(forced.box) >= 3
    assert torch.allclose(cached.box, forced.box, atol=1e-3)
    assert torch.allclose(cached.phrase, forced.phrase, atol=1e-3)


# ---- 6: a batch is its parts -----------------------------------------------------------------------------------------


@torch.inference_mode()
def test_06_a_batch_of_images_with_three_one_and_no_box_gives_what_each_gives_alone() -> None:
    network, examples = make_network(), make_examples()
    stir(network)
    together, alone = boxes_of(network), []
    for example in examples:
        batch = make_batch([example])
        boxes = network(batch.pixels, batch.text).boxes
        alone.append(boxes)
    assert [0 if boxes is None else len(boxes.refined) for boxes in alone] == [3, 1, 0]
    for name, within in (("refined", 1e-4), ("presence_logits", 1e-3), ("mask_logits", 1e-3)):
        apart = torch.cat([getattr(boxes, name) for boxes in alone if boxes is not None])
        assert torch.allclose(getattr(together, name), apart, atol=within), name


# ---- 7: frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (640, 640)])
def test_07_letterbox_and_fill_mean_the_same_box(shape: tuple[int, int]) -> None:
    height, width = shape
    box = Box(0.2 * width, 0.3 * height, 0.7 * width, 0.9 * height)
    marked: Image = np.zeros(shape, np.float32)
    marked[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = 1
    for mode in ("fill", "letterbox"):
        frame = Frame(height, width, 128, mode)  # type: ignore[arg-type]
        target = frame.to_model(box)
        assert np.allclose(frame.to_image(target).xyxy, box.xyxy, atol=1e-3)
        feature = torch.tensor(frame.draw(marked))[None, None]
        inside = sample_per_phrase(feature, region_grid(torch.tensor([[target]]), 7, 0.9))
        around = sample_per_phrase(feature, region_grid(torch.tensor([[target]]), 2, 2.6))
        assert inside.mean() > 0.97 and around.mean() < 0.03, mode


def test_07_regions_land_on_their_cells() -> None:
    ramp = torch.arange(8.0).expand(8, 8)
    feature = torch.stack([ramp, ramp.T]).unsqueeze(0).expand(3, -1, -1, -1).contiguous()
    boxes = torch.tensor([[[0.25, 0.75, 0.25, 0.25]], [[0.5, 0.5, 1.0, 1.0]], [[0.8, 0.2, 0.2, 0.1]]])
    per_phrase = sample_per_phrase(feature, region_grid(boxes, 4, 1.0))
    assert torch.allclose(per_phrase.mean(2)[:, 0] + 0.5, boxes[:, 0, :2] * 8, atol=0.06)
    shared = sample_per_image(feature[:1], region_grid(boxes, 4, 1.0), torch.zeros(3, dtype=torch.long))
    assert torch.allclose(per_phrase, shared, atol=1e-6)


# ---- 8: bad input ----------------------------------------------------------------------------------------------------


def test_08_degenerate_boxes_have_a_finite_loss() -> None:
    network, batch = make_network(), make_batch()
    thin = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 1e-9, 1.0], [1.0, 1.0, 0.0, 2.0]])
    boxes = thin.expand(len(batch.text.text_of_phrase), -1, -1).clone()
    targets = Targets(boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), batch.targets.row_match,
                      batch.targets.row_boxes)  # fmt: skip
    terms = losses(network(batch.pixels, batch.text), batch.text.labels, targets, LossWeights())
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_08_a_batch_without_a_box_has_a_finite_loss() -> None:
    network, batch = make_network(), make_batch(make_examples()[2:])
    output = network(batch.pixels, batch.text)
    terms = losses(output, batch.text.labels, batch.targets, LossWeights())
    assert output.boxes is None and set(terms) == {"language"} and bool(torch.isfinite(terms["language"]))


def test_08_an_empty_report_and_an_unknown_entity_are_no_accident() -> None:
    network = make_network()
    predictor = Predictor(network, tiny_tokens(), load_bank(), ModelIdentity("t", "0", "0"))
    assert predictor.ground([tiny_image()], ReportText("", ())).findings == ()
    (finding,) = predictor.ground_phrases(tiny_image(), ["purple monkey"])
    assert finding.finding is None
    assert not load_bank().log_prior("purple monkey").any()


def test_08_no_box_scores_nothing() -> None:
    assert region_iou([], [Box(0, 0, 1, 1)]) == 0.0
    assert summarize([Score("a", "x", 0.0, has_box=False)])["ap10"] == 0.0


# ---- 9: the truth cannot be reached ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ground", "ground_phrases"])
def test_09_prediction_takes_no_truth(name: str) -> None:
    method = getattr(Predictor, name)
    allowed = {"ground": ["self", "images", "report"], "ground_phrases": ["self", "image", "phrases"]}[name]
    assert list(inspect.signature(method).parameters) == allowed
    given = [hint for key, hint in get_type_hints(method).items() if key != "return"]
    assert not any("Box" in str(hint) or "Reference" in str(hint) or "Finding" in str(hint) for hint in given)


def test_09_a_report_carries_no_boxes() -> None:
    assert [field.name for field in fields(ReportText)] == ["text", "sentences"]


# ---- 10: ChestX-ray8's phrases and the blind table -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("centre", "words"),
    [
        ((0.449, 0.5), "right"), ((0.45, 0.5), "middle"), ((0.55, 0.5), "middle"), ((0.551, 0.5), "left"),
        ((0.5, 0.299), "top"), ((0.5, 0.3), "middle"), ((0.5, 0.6), "middle"), ((0.5, 0.601), "bottom"),
        ((0.2, 0.2), "right top"), ((0.9, 0.7), "left bottom"), ((0.2, 0.7), "right bottom"), ((0.9, 0.1), "left top"),
    ],
)  # fmt: skip
def test_10_the_position_follows_from_the_centre_of_the_box(centre: tuple[float, float], words: str) -> None:
    assert position(*centre) == words
    x, y = (1024 * value for value in centre)
    assert positioned_phrase("Mass", (x - 8, y - 8, 16, 16)) == f"Mass, position: {words}"


@pytest.mark.skipif(not NIH_BOXES.is_file(), reason="the box list of ChestX-ray8 is not here")
def test_10_the_position_rule_makes_the_phrases_of_the_published_list() -> None:
    """Of its 984 boxes (838 with a position) 976 are here."""
    rows = [json.loads(line) for line in NIH_BOXES.read_text(encoding="utf-8").splitlines()]
    phrases = [positioned_phrase(row["label"], tuple(box)) for row in rows for box in row["boxes"]]
    placed = [phrase.partition(", position: ")[2] for phrase in phrases if "position" in phrase]
    sides, levels = ("", "right", "left"), ("", "top", "bottom")
    words = {f"{side} {level}".strip() or "middle" for side in sides for level in levels}
    assert (len(phrases), len(placed)) == (976, 976 - 146) and set(placed) <= words


def test_10_the_heart_has_no_position() -> None:
    assert positioned_phrase("Cardiomegaly", (300, 400, 400, 300)) == "Cardiomegaly"


def test_10_the_blind_table_is_scored_as_by_hand() -> None:
    """The median of three training boxes, [10, 50] of 100 pixels, has IoU 1, 1/3 and 0 with three test boxes."""
    known = [("nodule", ((0.1, 0.1, edge, 0.5),)) for edge in (0.4, 0.5, 0.9)]
    table = PriorPredictor(build_table(known, load_bank()))
    truth = [Box(10, 10, 50, 50), Box(30, 10, 70, 50), Box(60, 60, 90, 90)]
    scores = []
    for number, box in enumerate(truth):
        (found,) = table.ground_phrases(np.zeros((100, 100), np.float32), ["nodule"])
        given = [scored.box for scored in found.boxes]
        scores.append(Score(str(number), "nodule", region_iou(given, [box]), has_box=True))
    figures = summarize(scores)
    assert [round(score.iou, 6) for score in scores] == [1.0, round(1 / 3, 6), 0.0]
    assert [figures[name] for name in ("ap10", "ap30", "ap50", "miou")] == [0.6667, 0.6667, 0.3333, 0.4444]


# ---- 11 and 13: it learns, and from the pixels -----------------------------------------------------------------------


def two_squares(rng: np.random.Generator) -> Example:
    """A dark and a bright square on grey noise; the text asks for one of them."""
    image = rng.uniform(0.4, 0.6, (64, 64)).astype(np.float32)
    places = []
    for tone in (0.05, 0.95):
        (w, h) = (int(side) for side in rng.integers(16, 30, 2))
        x, y = int(rng.integers(0, 64 - w)), int(rng.integers(0, 64 - h))
        image[y : y + h, x : x + w] = rng.uniform(tone - 0.05, tone + 0.05, (h, w))
        places.append((x, y, x + w, y + h))
    bright = paired_iou(*(torch.tensor(square_box(place)) for place in places))[0] > 0 or rng.random() < 0.5
    phrase = "nodule" if bright else "effusion"
    return Example(image, (prompt(phrase, phrase, square_box(places[int(bright)])),))


@lru_cache(maxsize=1)
def learned() -> KnowMVG:
    """A tiny network after two hundred steps: 15 seconds of a core, the longest in this file."""
    rng, batcher, steps = np.random.default_rng(0), make_batcher(), 220
    network = make_network(decoder={"slots": 1}).train()
    optimizer = torch.optim.AdamW(network.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = batcher.collate([two_squares(rng) for _ in range(16)])
        terms = losses(network(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


@torch.inference_mode()
def ap50(network: KnowMVG, blind: bool = False) -> float:
    """Share of 100 squares never seen in training that are found."""
    rng = np.random.default_rng(99)
    batch = make_batcher().collate([two_squares(rng) for _ in range(100)])
    pixels = torch.full_like(batch.pixels, 0.5) if blind else batch.pixels
    boxes = network(pixels, batch.text).boxes
    assert boxes is not None
    iou = paired_iou(boxes.refined[:, 0], batch.targets.boxes[:, 0])[0]
    return float((iou >= 0.5).float().mean())


@pytest.mark.timeout(400)
def test_13_a_tiny_network_finds_squares_that_it_has_never_seen() -> None:
    assert ap50(learned()) > 0.9


@pytest.mark.timeout(400)
def test_11_without_pixels_it_finds_almost_nothing() -> None:
    assert ap50(learned(), blind=True) < ap50(learned()) - 0.4


# ---- 12: the words move the prior ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_12_left_for_right_in_the_words_moves_the_prior_of_the_shipped_model() -> None:
    network, tokens = load_trunk(default_checkpoint())
    bank = load_bank()
    processor = Processor(network.config, tokens, bank)
    said = [f"{side} {what}" for what in ("pleural effusion", "upper lobe nodule", "apical pneumothorax")
            for side in ("left", "right")]  # fmt: skip
    canvas = network.config.frame.canvas
    features = network.encode_images(torch.full((1, 1, canvas, canvas), 0.5))
    read = [(text, processor.encode(text)) for text in said]
    batch = processor.forced_batch([(text, found, [Emission(0, len(text), False)]) for text, found in read])
    states = network.language(features.tokens[batch.image_of_text], batch.token_ids, batch.mask)
    phrases = network.phrase_states(states, batch)
    assert network.prompter is not None
    prior = network.prompter(network.box_query(phrases.box), phrases.phrase, network.bank_text(), batch.log_prior).prior
    half = prior.shape[-1] // 2
    on_the_left_of_the_picture = prior[..., :half].sum((1, 2)) / prior.sum((1, 2))
    # The patient's left is on the right of the picture.
    assert bool((on_the_left_of_the_picture[0::2] < 0.35).all())
    assert bool((on_the_left_of_the_picture[1::2] > 0.65).all())
