"""The model that ships: it loads, is small, knows its parts, and sees what is in generated radiographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.checkpoint import default_checkpoint, load_predictor
from grounding.evaluation.evaluate import evaluate_phantoms
from grounding.knowledge import load_bank
from grounding.phantoms.study import make_study
from grounding.predictor import Predictor
from grounding.processor import DECIMALS
from grounding.text import read_plain_report

MOST_BYTES = 40 * 1024 * 1024


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor("default")


def test_it_is_small_and_has_a_card() -> None:
    folder = default_checkpoint()
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "not for diagnosis" in card
    assert not list(Path(folder).glob("*.pt")) and not list(Path(folder).glob("*.bin"))


def test_every_component_of_the_paper_is_on(predictor: Predictor) -> None:
    config = predictor._network.config
    assert config.knowledge.prompts and config.knowledge.prior_map
    assert config.attention.use_global and config.attention.use_local and config.attention.two_pass
    assert config.decoder.mask_head


def test_it_grounds_generated_studies_and_needs_their_pixels(predictor: Predictor) -> None:
    figures = evaluate_phantoms(predictor, range(600, 625))
    blind = figures["blind"]
    assert isinstance(blind, dict)
    assert figures["ap50"] > 0.55
    assert figures["miou"] > 0.45
    assert blind["ap50"] < figures["ap50"] - 0.3
    assert figures["phrase_recall"] > 0.8
    assert figures["negated_grounded"] == 0


def test_it_sees_nothing_where_nothing_is(predictor: Predictor) -> None:
    """Every picture of one grey is the same to the model, so that these few stand for all of them.

    A rule spares the network the question; asked all the same, it boxes none of these phrases either.
    """
    phrases = [name for entity in load_bank().entities for name in entity.synonyms]
    phrases += [f"{side} {name}" for side in ("left", "right") for name in phrases]
    for picture in (np.zeros((1, 1), np.float32), np.full((300, 200), 0.7, np.float32)):
        found = predictor.ground_phrases(picture, phrases)
        assert [finding.phrase for finding in found] == phrases
        assert not any(finding.localized or finding.boxes for finding in found)
    assert not any(f.localized for f in predictor.unguarded().ground_phrases(picture, phrases))


def test_it_reads_a_plain_report(predictor: Predictor) -> None:
    report = read_plain_report(
        "INDICATION: rule out pneumothorax. FINDINGS: There is a small left pleural effusion. No pneumothorax. "
        "The heart size is normal. IMPRESSION: Small left pleural effusion."
    )
    findings = predictor.ground([make_study(601).image], report).findings
    asserted = {f.phrase.lower() for f in findings if not f.negated}
    assert asserted == {"small left pleural effusion"}
    assert any("pneumothorax" in f.phrase for f in findings if f.negated)
    assert all(f.source is not None and f.source.start > 40 for f in findings)


def test_a_batch_says_what_each_study_alone_is_told(predictor: Predictor) -> None:
    """Within one step of what is told, 1/10,000 of a picture's side or of a score; few values lie between two steps."""
    studies = [make_study(seed, 200 + 40 * (seed % 5)) for seed in range(700, 716)]
    prepared = [predictor.prepare([study.image, study.image[::-1]], study.report) for study in studies]
    together, alone = predictor.ground_prepared(prepared), [predictor.ground_prepared([one])[0] for one in prepared]
    assert sum(one == other for one, other in zip(together, alone, strict=True)) >= len(studies) - 2
    step = 10.0**-DECIMALS
    for one, other, study in zip(together, alone, studies, strict=True):
        assert [(f.phrase, f.image, len(f.boxes)) for f in one.findings] == [
            (f.phrase, f.image, len(f.boxes)) for f in other.findings
        ]
        boxes, others = ([box for f in found.findings for box in f.boxes] for found in (one, other))
        for box, twin in zip(boxes, others, strict=True):
            assert np.allclose(box.box.xyxy, twin.box.xyxy, rtol=0, atol=1.6 * step * len(study.image))
            assert box.score == pytest.approx(twin.score, abs=1.1 * step)
