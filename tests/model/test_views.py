"""Several views of a picture: coordinates there and back, what is drawn where, and the mean that comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from grounding.knowledge import load_bank
from grounding.network.decoder import DecodedBoxes
from grounding.network.views import VIEWS, View, average_views, draw_views, match_slots
from grounding.predictor import Predictor
from grounding.text import read_plain_report
from tests.model.networks import TEXTS, make_predictor, tiny_image

BOX = torch.tensor([0.42, 0.6, 0.2, 0.12])
REPORT = read_plain_report(" ".join(TEXTS))


def decoded(refined: Tensor, presence: Tensor, quality: Tensor | None = None) -> DecodedBoxes:
    return DecodedBoxes(refined, refined, presence, quality, None)


@pytest.mark.parametrize("view", VIEWS)
def test_a_box_goes_to_a_window_and_back(view: View) -> None:
    assert torch.allclose(view.to_canvas(view.to_window(BOX)), BOX, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_a_box_lies_where_the_window_shows_it(view: View) -> None:
    size = 200
    x1, y1, x2, y2 = (round(float(v) * size) for v in (*(BOX[:2] - BOX[2:] / 2), *(BOX[:2] + BOX[2:] / 2)))
    pixels = torch.zeros(1, 1, size, size)
    pixels[..., y1:y2, x1:x2] = 1
    rows, columns = (view.draw(pixels)[0, 0] > 0.5).nonzero(as_tuple=True)
    cx, cy, w, h = (float(v) * size for v in view.to_window(BOX))
    drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose(drawn, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), atol=1.5)


def test_the_first_view_is_the_picture_itself() -> None:
    pixels = torch.rand(1, 1, 64, 64)
    drawn = draw_views(pixels, VIEWS)
    assert drawn.shape == (len(VIEWS), 1, 64, 64) and torch.equal(drawn[0], pixels[0])
    mirror = drawn[VIEWS.index(View(mirrored=True))]
    assert torch.allclose(mirror, pixels[0].flip(-1), atol=1e-5)


def test_views_that_agree_give_their_box_whatever_the_order_of_their_slots() -> None:
    boxes = torch.stack([BOX, BOX + 0.2]).unsqueeze(0)
    logits = torch.tensor([[2.0, -1.0]])
    refined = torch.cat([view.to_window(boxes).flip(1) if i else boxes for i, view in enumerate(VIEWS)])
    presence = torch.cat([logits.flip(1) if i else logits for i in range(len(VIEWS))])
    mean = average_views(decoded(refined, presence, presence), VIEWS, torch.ones(len(VIEWS), 1, dtype=torch.bool))
    assert torch.allclose(mean.refined, boxes, atol=1e-5)
    assert torch.allclose(mean.presence_logits, logits) and mean.quality_logits is not None
    assert torch.allclose(mean.quality_logits, logits)


def test_a_view_that_does_not_count_changes_nothing() -> None:
    refined = torch.stack([BOX, BOX * 0.5]).unsqueeze(1)
    presence = torch.tensor([[1.0], [9.0]])
    mean = average_views(decoded(refined, presence), VIEWS[:2], torch.tensor([[True], [False]]))
    assert torch.allclose(mean.refined[0], BOX) and float(mean.presence_logits) == 1.0


def test_slots_are_matched_phrase_by_phrase() -> None:
    boxes = torch.rand(1, 4, 3, 4)
    shuffled = torch.stack([boxes[0, n, torch.randperm(3)] for n in range(4)]).unsqueeze(0)
    order = match_slots(torch.cat([boxes, shuffled]))
    assert torch.equal(shuffled[0].gather(1, order[1].unsqueeze(-1).expand(4, 3, 4)), boxes[0])


def test_rounding_does_not_choose_among_matchings_of_one_length() -> None:
    """Slots that all lie to one side of the others: crosswise they are as far from each other as in order."""
    mine, theirs = [[0.1, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]], [[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]]
    noise = torch.Generator().manual_seed(3)
    for _ in range(50):
        boxes = torch.tensor([[mine], [theirs]]) + 1e-6 * torch.randn(2, 1, 2, 4, generator=noise)
        assert match_slots(boxes)[1].tolist() == [[0, 1]]


def with_views(views: int) -> Predictor:
    return make_predictor(decision={"views": views, "presence": 0.0})


def test_more_views_find_the_same_phrases_and_other_boxes() -> None:
    images = [tiny_image(seed=1), tiny_image(seed=2)]
    one, six = with_views(1).ground(images, REPORT).findings, with_views(6).ground(images, REPORT).findings
    assert one and [(f.phrase, f.source, f.image, f.negated) for f in one] == [
        (f.phrase, f.source, f.image, f.negated) for f in six
    ]
    assert [f.boxes for f in one] != [f.boxes for f in six]
    assert six == with_views(6).ground(images, REPORT).findings
    height, width = images[0].shape
    for finding in six:
        assert all(0 <= s.box.x1 <= s.box.x2 <= width and 0 <= s.box.y2 <= height for s in finding.boxes)


def test_phrases_together_get_the_boxes_that_they_get_alone() -> None:
    predictor, phrases = (
        with_views(6),
        ["left pleural effusion", "enlarged heart", "right nodule", "no pneumothorax"],
    )
    together = predictor.ground_phrases(tiny_image(), phrases)
    for phrase, found in zip(phrases, together, strict=True):
        (alone,) = predictor.ground_phrases(tiny_image(), [phrase])
        assert len(alone.boxes) == len(found.boxes)
        for one, other in zip(alone.boxes, found.boxes, strict=True):
            assert one.box.xyxy == pytest.approx(other.box.xyxy, abs=1e-2)


@pytest.mark.parametrize(
    ("phrase", "paired"),
    [
        ("small right pleural effusion", True), ("bibasilar opacities", True), ("RT upper lobe nodule", True),
        ("pneumothorax", True), ("left lung", True), ("enlarged heart", False), ("right central line", False),
        ("heart and mediastinum", False), ("retrocardiac opacity", False), ("lingular consolidation", False),
        ("something unheard of", False),
    ],
)  # fmt: skip
def test_what_a_mirror_would_falsify_is_not_looked_at_in_one(phrase: str, paired: bool) -> None:
    assert load_bank().has_mirror(phrase) is paired
