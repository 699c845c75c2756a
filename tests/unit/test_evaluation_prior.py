"""The table of median boxes: its keys, its medians, and that it sees no pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.evaluation.prior import (
    PriorPredictor,
    PriorTable,
    build_table,
    keys_of,
    manifest_phrases,
    phantom_phrases,
)
from grounding.knowledge import load_bank
from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestRow
from grounding.text import read_plain_report
from grounding.types import Box, Span

BANK = load_bank()
RIGHT, RIGHT_TWO, LEFT = (0.1, 0.2, 0.3, 0.4), (0.1, 0.4, 0.5, 0.6), (0.6, 0.2, 0.8, 0.4)


def looked_up(table: PriorTable, phrase: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(edge, 6) for edge in box) for box in table.look_up(BANK.read_phrase(phrase)))


def test_keys_go_from_the_whole_phrase_to_nothing() -> None:
    keys = keys_of(BANK.read_phrase("left upper lobe nodule"))
    nodule = BANK.read_phrase("nodule").entity
    assert nodule is not None
    assert keys[0] == (nodule.id, "left", "upper")
    assert keys[3:5] == [(nodule.id, None, None), (None, "left", "upper")]
    assert keys[-1] == (None, None, None)
    assert keys_of(BANK.read_phrase("zebra")) == [(None, None, None)]


def test_median_is_of_each_edge() -> None:
    known = [("right nodule", (box,)) for box in ((0.1, 0.1, 0.2, 0.2), (0.2, 0.5, 0.4, 0.6), (0.3, 0.3, 0.45, 0.4))]
    assert looked_up(build_table(known, BANK), "right nodule") == ((0.2, 0.3, 0.4, 0.4),)


def test_a_phrase_gets_the_boxes_of_its_own_key_else_of_what_is_like_it() -> None:
    table = build_table([("right nodule", (RIGHT,)), ("left nodule", (LEFT,)), ("right effusion", (RIGHT_TWO,))], BANK)
    assert looked_up(table, "left nodule") == (LEFT,)
    assert looked_up(table, "left lower lobe nodule") == (LEFT,)  # no such level: finding and side
    assert looked_up(table, "left effusion") == (RIGHT_TWO,)  # the finding tells more than the side
    assert looked_up(table, "left zebra") == (LEFT,)
    assert looked_up(table, "zebra") == ((0.1, 0.2, 0.5, 0.4),)  # the median of all
    assert PriorTable({}).look_up(BANK.read_phrase("nodule")) == ()


def test_two_boxes_where_half_of_the_phrases_are_two_sided() -> None:
    both = ("bilateral opacities", (RIGHT, RIGHT_TWO, LEFT))
    one = ("bilateral opacities", (RIGHT,))
    assert looked_up(build_table([both, one], BANK), "bilateral opacities") == ((0.1, 0.2, 0.5, 0.6), LEFT)
    assert looked_up(build_table([both, one, one], BANK), "bilateral opacities") == (RIGHT,)


def test_phrases_without_boxes_say_nothing() -> None:
    assert build_table([("nodule", ())], BANK).boxes == {}


def test_rows_and_phantoms_become_shares_of_the_picture() -> None:
    row = ManifestRow("r", Path("p.png"), 200, 100, "nodule", (Box(20, 20, 60, 40),), present=True)
    absent = ManifestRow("r", Path("p.png"), 200, 100, "mass", (), present=False)
    assert manifest_phrases([row, absent]) == [("nodule", ((0.1, 0.2, 0.3, 0.4),))]
    known = phantom_phrases(range(3), 64)
    assert [phrase for phrase, _ in known] == [p.phrase for s in range(3) for p in make_study(s, 64).phrases if p.boxes]
    assert all(0 <= edge <= 1 for _, boxes in known for box in boxes for edge in box)


@pytest.fixture(scope="module")
def predictor() -> PriorPredictor:
    return PriorPredictor(build_table([("right nodule", (RIGHT,)), ("left nodule", (LEFT,))], BANK), BANK)


def test_boxes_are_in_pixels_and_the_same_for_every_picture(predictor: PriorPredictor) -> None:
    black, noise = np.zeros((100, 200), np.float32), np.random.default_rng(0).random((100, 200), np.float32)
    found = predictor.ground_phrases(black, ["left nodule", "No left nodule"])
    assert found[0].boxes[0].box.xyxy == pytest.approx((120, 20, 160, 40))
    assert (found[1].negated, found[1].boxes) == (True, ())
    assert predictor.ground_phrases(noise, ["left nodule", "No left nodule"]) == found


def test_names_are_found_in_a_report_with_the_place_of_their_sentence(predictor: PriorPredictor) -> None:
    report = read_plain_report("There is a nodule in the left lung. No effusion.")
    grounding = predictor.ground([np.zeros((100, 100), np.float32)] * 2, report)
    assert grounding.model.name == "prior-only"
    assert [(f.phrase, f.image, f.negated, len(f.boxes)) for f in grounding.findings] == [
        ("nodule", 0, False, 1),
        ("effusion", 0, True, 0),
        ("nodule", 1, False, 1),
    ]
    assert grounding.findings[0].boxes[0].box.x1 == pytest.approx(60)
    source = grounding.findings[0].source
    assert source is not None
    assert report.text[source.start : source.end] == "nodule"


def test_forced_phrases_are_read_where_they_stand(predictor: PriorPredictor) -> None:
    report = read_plain_report("There is a left nodule.")
    start = report.text.index("left")
    image = np.zeros((10, 10), np.float32)
    (found,) = predictor.ground_spans(image, report, [Span(start, start + 11)])
    assert found.phrase == "left nodule"
    assert found.boxes[0].box.x1 == pytest.approx(6)


def test_identity_follows_the_table() -> None:
    one, two = (PriorPredictor(build_table([("nodule", (box,))], BANK), BANK).identity for box in (RIGHT, LEFT))
    assert one.sha256 != two.sha256
