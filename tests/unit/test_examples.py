"""Training examples: licences, splits by patient, sides that follow a mirror, words that mark their phrases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grounding.knowledge import load_bank, swap_sides
from grounding.phantoms.study import make_study
from grounding.training.examples import (
    RealImage,
    RealRow,
    Sentence,
    is_stated,
    licensed_patients,
    phantom_prompts,
    real_example,
    real_prompt,
    word_row,
)
from grounding.training.lessons import ReadingLessons
from grounding.training.material import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED, Phantoms, held_out, load_real
from grounding.training.recipe import RealSettings

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "grounding"
SETTINGS = RealSettings(
    root=REAL,
    manifests=["covid-cohen/findings.jsonl", "covid-cohen/anatomy.jsonl", "nih-64px/findings.jsonl"],
    validation_share=0.15,
)


@pytest.mark.parametrize(
    ("licence", "stated"),
    [
        ("CC BY", True),
        ("CC BY-SA", True),
        ("CC BY-NC-SA 4.0", True),
        ("CC BY-NC-ND", False),
        ("unspecified", False),
        ("listed as authorized for everyone", False),
        ("", False),
        ("NIH no restriction; annotations Apache-2.0 repository", True),
        ("RSNA 2018 challenge terms (attribution); images NIH, no restriction", True),
    ],
)
def test_only_stated_licences_are_trained_on(licence: str, stated: bool) -> None:
    assert is_stated(licence) == stated


def test_one_unlicensed_image_keeps_its_patient_out() -> None:
    assert licensed_patients([("a", "CC BY"), ("a", "unspecified"), ("b", "CC BY")]) == {"b"}


def test_validation_patients_are_a_fixed_share_of_each_source() -> None:
    patients = [f"x-{i:02d}" for i in range(40)] + [f"y-{i:02d}" for i in range(20)]
    held = held_out(patients, 0.15)
    assert held == held_out(list(patients), 0.15)
    assert {p[0] for p in held} == {"x", "y"} and 6 <= len(held) <= 10


@pytest.mark.skipif(not REAL.is_dir(), reason="the real radiographs are not here")
def test_no_patient_is_on_both_sides_and_none_is_unlicensed() -> None:
    training, validation = load_real(SETTINGS)
    seen, kept = {image.patient for image in training}, {image.patient for image in validation}
    assert training and validation and not seen & kept
    for manifest in SETTINGS.manifests:
        for line in (REAL / manifest).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert is_stated(row["license"]) or row["patient"] not in seen | kept


def test_without_the_real_radiographs_training_goes_on(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert load_real(SETTINGS.model_copy(update={"root": tmp_path})) == ([], [])
    assert "no real radiographs" in caplog.text


def test_seeds_of_training_validation_and_test_are_apart() -> None:
    assert 500 <= FIRST_VALIDATION_SEED < FIRST_TRAINING_SEED
    phantoms = Phantoms(1.0, 10, FIRST_TRAINING_SEED)
    phantoms.draw(np.random.default_rng(0))
    assert phantoms.next_seed == FIRST_TRAINING_SEED + 1


def test_sentences_of_a_phantom_hold_its_phrases() -> None:
    for seed in range(10):
        study = make_study(seed, 64)
        said = [p.text[a.start : a.end] for p in phantom_prompts(study) for a in p.answers]
        assert said == [phrase.phrase for phrase in sorted(study.phrases, key=lambda p: p.source.start)]


def test_a_mirrored_row_names_the_other_side() -> None:
    row = RealRow("ground-glass opacity in the left lung", "Ground Glass Opacities", ((0.7, 0.5, 0.2, 0.4),))
    for seed in range(30):
        assert "right" in word_row(np.random.default_rng(seed), row, mirrored=True)
        assert "right" not in word_row(np.random.default_rng(seed), row, mirrored=False)
    assert swap_sides("Left upright, right") == "Right upright, left"


def test_a_mirrored_picture_has_its_box_on_the_side_that_it_names() -> None:
    row = RealRow("consolidation in the left lung", "Consolidation", ((0.75, 0.5, 0.2, 0.4),))
    real = RealImage(np.random.default_rng(0).random((80, 80), np.float32), "x-1", (row,))
    sides = set()
    for seed in range(40):
        (prompt,) = real_example(np.random.default_rng(seed), real, 1, 64).prompts
        (answer,) = prompt.answers
        assert answer.boxes is not None
        words = prompt.text[answer.start : answer.end].split()
        side = "left" if "left" in words else "right"
        sides.add(side)
        assert (answer.boxes[0][0] > 0.5) == (side == "left"), prompt.text
    assert sides == {"left", "right"}


@pytest.mark.parametrize(
    "phrase", ["heart and mediastinum", "Cardiomegaly", "central venous line", "lingular opacity", "tortuous aorta"]
)
def test_the_heart_and_its_like_are_never_mirrored(phrase: str) -> None:
    row = RealRow(phrase, "", ((0.7, 0.5, 0.3, 0.4),))
    real = RealImage(np.random.default_rng(0).random((80, 80), np.float32), "x-1", (row,))
    for seed in range(20):
        (prompt,) = real_example(np.random.default_rng(seed), real, 1, 64).prompts
        assert prompt.answers[0].boxes is not None and prompt.answers[0].boxes[0][0] > 0.5


def test_a_sentence_of_the_report_is_read_with_its_phrase_in_it_on_either_side() -> None:
    text = "There is now a left basal opacity, right of the spine."
    sentence = Sentence(text, text.index("left"), text.index(","))
    row = RealRow("left basal opacity", "Opacity", ((0.7, 0.7, 0.2, 0.2),), sentence)
    said = {real_prompt(np.random.default_rng(seed), row, mirrored).text for seed in range(20) for mirrored in (0, 1)}
    assert {text, "There is now a right basal opacity, left of the spine."} <= said
    for seed in range(20):
        for mirrored in (False, True):
            prompt = real_prompt(np.random.default_rng(seed), row, mirrored)
            (answer,) = prompt.answers
            assert prompt.text[answer.start : answer.end] == f"{'right' if mirrored else 'left'} basal opacity"


def test_reading_lessons_mark_names_of_the_bank() -> None:
    bank, rng = load_bank(), np.random.default_rng(0)
    lessons = ReadingLessons(bank)
    asserted = denied = quiet = 0
    for _ in range(400):
        prompt = lessons.draw(rng)
        ends = [0, *(a.end for a in prompt.answers)]
        assert all(a.start >= end for a, end in zip(prompt.answers, ends, strict=False))
        for answer in prompt.answers:
            assert bank.read_phrase(prompt.text[answer.start : answer.end]).entity is not None, prompt.text
            assert answer.boxes == (() if answer.negated else None)
        asserted += any(not a.negated for a in prompt.answers)
        denied += any(a.negated for a in prompt.answers)
        quiet += not prompt.answers
    assert min(asserted, denied, quiet) > 20
