"""The calibration of a model folder, and what the predictor does with it; forced phrases where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from grounding.checkpoint import load_predictor, read_config, save_checkpoint
from grounding.evaluation.calibration import calibrated
from grounding.evaluation.cases import PhantomCases, phantom_case
from grounding.evaluation.records import ForcedPredictor
from grounding.geometry import Frame
from grounding.knowledge import load_bank
from grounding.network.decoder import DecodedBoxes
from grounding.predictor import Predictor
from grounding.processor import Processor
from grounding.reading import forced_rows
from grounding.text import read_plain_report
from grounding.training.calibrate import calibrate, fit, write_calibration
from grounding.types import Box, Finding, Grounding, Image, ModelIdentity, ReportText, ScoredBox, Span
from tests.model.networks import TEXTS, make_network, stir, tiny_config, tiny_image, tiny_tokens

FRAME = Frame(100, 100, 64)
NUMBERS = (-1.0, 0.5, 1.5)


def decoded(presence: list[float], quality: list[float] | None) -> DecodedBoxes:
    """One phrase with boxes side by side, each a tenth of the picture wide."""
    refined = torch.tensor([[[0.05 + 0.2 * i, 0.5, 0.1, 0.4] for i in range(len(presence))]])
    logits = [None if p is None else torch.logit(torch.tensor([p])) for p in (presence, quality)]
    fields = {name: None for name in DecodedBoxes.__dataclass_fields__}
    return DecodedBoxes(**{**fields, "refined": refined, "presence_logits": logits[0], "quality_logits": logits[1]})


def processor(calibration: tuple[float, ...] = (), presence: float = 0.5) -> Processor:
    config = tiny_config(decision={"calibration": calibration, "presence": presence})
    return Processor(config, tiny_tokens(), load_bank())


def test_without_a_calibration_the_score_is_the_presence() -> None:
    found = processor().scored_boxes(decoded([0.6, 0.9, 0.4], [0.9, 0.1, 0.9]), 0, FRAME)
    assert [(round(s.score, 4), round(s.box.x1)) for s in found] == [(0.9, 20), (0.6, 0)]


def test_a_calibration_changes_scores_and_order_but_not_what_is_found() -> None:
    boxes = decoded([0.6, 0.9, 0.4], [0.9, 0.1, 0.9])
    found = processor(NUMBERS).scored_boxes(boxes, 0, FRAME)
    expected = calibrated([0.6, 0.9], [0.9, 0.1], NUMBERS)
    assert [s.score for s in found] == pytest.approx(list(expected))
    assert [round(s.box.x1) for s in found] == [0, 20]  # the likelier one first
    plain = processor(NUMBERS).deciding(calibration=()).scored_boxes(boxes, 0, FRAME)
    assert [round(s.score, 4) for s in plain] == [0.9, 0.6]


def test_a_phrase_that_is_known_to_be_shown_always_has_its_surest_box() -> None:
    boxes = decoded([0.2, 0.4, 0.3], [0.9, 0.1, 0.9])
    assert processor().scored_boxes(boxes, 0, FRAME) == ()
    (found,) = processor().deciding(assume_shown=True).scored_boxes(boxes, 0, FRAME)
    assert found.score == pytest.approx(0.4)
    passing = decoded([0.6, 0.9, 0.4], [0.9, 0.1, 0.9])
    told = processor().deciding(assume_shown=True).scored_boxes(passing, 0, FRAME)
    assert told == processor().scored_boxes(passing, 0, FRAME)


def test_a_calibration_never_moves_the_threshold() -> None:
    boxes = decoded([0.9, 0.45], [0.01, 0.99])
    (found,) = processor(NUMBERS).scored_boxes(boxes, 0, FRAME)
    assert found.score < 0.1


def test_a_model_without_expected_iou_is_calibrated_by_presence() -> None:
    (found,) = processor((0.0, 2.0, 1.0)).scored_boxes(decoded([0.8], None), 0, FRAME)
    assert found.score == pytest.approx(16 / 17, abs=1e-4)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, -0.1, 0.0), (0.0, 1.0, float("inf")), (float("nan"), 1.0, 1.0)])
def test_a_calibration_that_is_not_monotone_or_finite_is_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="calibration"):
        processor(wrong)


def test_written_calibration_changes_nothing_else_in_the_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_network(), tiny_tokens(), load_bank())
    before, files = read_config(tmp_path), {path.name for path in tmp_path.iterdir()}
    weights = (tmp_path / "model.safetensors").read_bytes()
    identity = load_predictor(tmp_path, "cpu").identity
    write_calibration(tmp_path, NUMBERS)
    after = read_config(tmp_path)
    assert after.decision.calibration == NUMBERS
    assert after.model_copy(update={"decision": before.decision}) == before
    assert {path.name for path in tmp_path.iterdir()} == files
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert load_predictor(tmp_path, "cpu").identity.sha256 != identity.sha256  # other scores: another model


class FakeOverconfident:
    """Always sure, right where it expects a high IoU: half of the studies."""

    identity = ModelIdentity("sure", "1", "0" * 64)

    def __init__(self, *, quality: bool = True) -> None:
        self.quality, self.asked = quality, 0

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        case = phantom_case(self.asked, 96)
        self.asked += 1
        good = self.asked % 2 == 0
        findings = []
        for r in case.references:
            boxes = (r.boxes if good else (Box(0, 0, 2, 2),)) if r.boxes else ()
            doubt = (0.1 if good else 0.8) if self.quality else None
            scored = tuple(ScoredBox(box, 0.97) for box in boxes)
            findings.append(Finding(r.phrase, r.source, 0, scored, bool(boxes), r.negated, uncertainty=doubt))
        return Grounding(self.identity, tuple(findings))

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        raise AssertionError("a calibration is fitted free-running")


def test_fit_learns_which_boxes_to_trust() -> None:
    numbers = fit(FakeOverconfident(), PhantomCases(range(20), 96))
    low, high = calibrated([0.97, 0.97], [0.2, 0.9], numbers)
    assert low < 0.1 < 0.9 < high
    constant, _, of_quality = fit(FakeOverconfident(quality=False), PhantomCases(range(20), 96))
    assert of_quality == 0.0
    assert np.isfinite(constant)


def test_a_model_that_finds_nothing_cannot_be_calibrated(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_network(decision={"presence": 1.0}), tiny_tokens(), load_bank())
    config = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="take more studies"):
        calibrate(tmp_path, 1, "cpu", size=64)
    assert (tmp_path / "config.json").read_bytes() == config


def make_predictor() -> Predictor:
    network = make_network(seed=3, decision={"presence": 0.0})
    stir(network)
    return Predictor(network, tiny_tokens(), load_bank(), ModelIdentity("tiny", "0", "0" * 64))


REPORT = read_plain_report(" ".join(TEXTS))


def span_of(phrase: str) -> Span:
    start = REPORT.text.index(phrase)
    return Span(start, start + len(phrase))


def test_forced_phrases_come_back_in_order_with_their_places() -> None:
    predictor = make_predictor()
    phrases = ["nodule in the left lower lobe", "pneumothorax", "Opacity in the right upper lung zone", "heart"]
    spans = [span_of(phrase) for phrase in phrases]
    found = predictor.ground_spans(tiny_image(), REPORT, spans)
    assert isinstance(predictor, ForcedPredictor)
    assert [f.phrase for f in found] == phrases
    assert [f.source for f in found] == spans
    assert [(f.negated, f.localized) for f in found] == [(False, True), (True, False), (False, True), (False, True)]
    assert predictor.ground_spans(tiny_image(), REPORT, []) == ()


def test_a_forced_phrase_gets_what_it_gets_when_the_model_reads_it() -> None:
    predictor = make_predictor()
    (sentence,) = (s for s in REPORT.sentences if REPORT.text[s.start :].startswith("There"))
    whole = Span(sentence.start, sentence.end)
    (forced,) = predictor.ground_spans(tiny_image(), REPORT, [whole])
    (given,) = predictor.ground_phrases(tiny_image(), [REPORT.text[whole.start : whole.end]])
    assert [s.box.xyxy for s in forced.boxes] == [pytest.approx(s.box.xyxy, abs=1e-2) for s in given.boxes]
    together = predictor.ground_spans(tiny_image(), REPORT, [whole, span_of("nodule"), whole])
    for one in (together[0], together[2]):
        assert [s.box.xyxy for s in one.boxes] == [pytest.approx(s.box.xyxy, abs=1e-2) for s in forced.boxes]


def test_phrases_of_a_piece_are_forced_in_one_text_and_overlaps_in_another() -> None:
    pieces = [Span(0, 20), Span(20, 40)]
    spans = [Span(25, 30), Span(10, 15), Span(2, 9), Span(12, 18), Span(18, 24)]
    assert forced_rows(spans, pieces) == [
        (Span(0, 20), [2, 1]),
        (Span(0, 20), [3]),
        (Span(18, 24), [4]),  # no piece holds it: it is read alone
        (Span(20, 40), [0]),
    ]
