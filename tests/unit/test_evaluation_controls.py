"""What the controls change, and what their counts mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.evaluation.controls import (
    CONTROLS,
    blind,
    flip_figures,
    mirror_figures,
    mirrored,
    other_picture,
    swap_case,
    swapped_words,
)
from grounding.evaluation.records import Case, Midline, Reference
from grounding.knowledge import swap_sides
from grounding.phantoms.study import make_study
from grounding.text import read_plain_report
from grounding.types import Box, Image, Span
from tests.predictions import make_prediction

ON_RIGHT, ON_LEFT = Box(10, 0, 30, 20), Box(70, 0, 90, 20)
TEXT = "Small left effusion. RIGHT mass."


def make_case(number: int = 0, patient: str | None = None, shape: tuple[int, int] = (40, 100)) -> Case:
    report = read_plain_report(TEXT)
    references = (
        Reference("Small left effusion", "effusion", (ON_LEFT,), source=Span(0, 19)),
        Reference("RIGHT mass", "mass", (ON_RIGHT,), source=Span(21, 31)),
    )
    image: Image = np.full(shape, number / 10, np.float32)
    return Case(f"p{number}", lambda: image, report, references, Midline(48, 2, "picture"), patient)


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("left Left LEFT right", "right Right RIGHT left"),
        ("left-sided rt upright", "right-sided lt upright"),
        ("both lungs", "both lungs"),
    ],
)
def test_swap_sides(text: str, swapped: str) -> None:
    assert swap_sides(text) == swapped


@given(st.text(alphabet="lefrightLEFRIGHT .-", max_size=40))
def test_swapping_twice_changes_nothing_in_whole_words(text: str) -> None:
    plain = " ".join(word if word in (word.lower(), word.upper(), word.capitalize()) else "" for word in text.split())
    assert swap_sides(swap_sides(plain)) == plain


def test_swapped_case_keeps_every_phrase_at_its_place() -> None:
    case = make_case()
    swapped = swap_case(case)
    assert swapped.report.text == "Small right effusion. LEFT mass."
    assert [r.phrase for r in swapped.references] == ["Small right effusion", "LEFT mass"]
    for reference in swapped.references:
        assert reference.source is not None
        assert swapped.report.text[reference.source.start : reference.source.end] == reference.phrase
    words = [swapped.report.text[s.start : s.end] for s in swapped.report.sentences]
    assert words == ["Small right effusion.", "LEFT mass."]
    assert [r.boxes for r in swapped.references] == [r.boxes for r in case.references]


def test_swapped_phantom_reports_keep_every_phrase_at_its_place() -> None:
    for seed in range(20):
        study = make_study(seed, 64)
        references = tuple(Reference(p.phrase, p.label, p.boxes, p.negated, p.source) for p in study.phrases)
        case = Case("x", lambda: np.zeros((4, 4), np.float32), study.report, references, Midline(32, 0, "lungs"))
        for reference in (swapped := swap_case(case)).references:
            assert reference.source is not None
            assert swapped.report.text[reference.source.start : reference.source.end] == reference.phrase


def test_blind_sees_one_grey() -> None:
    image = np.random.default_rng(0).random((4, 6), np.float32)
    case, seen = blind([make_case()], 0, image)
    assert seen.shape == image.shape
    assert np.unique(seen).tolist() == [0.5]
    assert case.report.text == TEXT


def test_other_picture_is_the_next_patients_in_the_size_of_this_one() -> None:
    cases = [make_case(0, "a"), make_case(1, "a"), make_case(2, "b", shape=(20, 30)), make_case(3)]
    seen = [other_picture(cases, i, cases[i].load())[1] for i in range(4)]
    assert [round(float(picture.mean()), 1) for picture in seen] == [0.2, 0.2, 0.3, 0.0]
    assert [picture.shape for picture in seen] == [case.load().shape for case in cases]


def test_a_single_patient_has_no_other_picture() -> None:
    cases = [make_case(0, "a"), make_case(1, "a")]
    assert other_picture(cases, 1, cases[1].load())[1] is cases[1].load()


def test_mirrored_picture_agrees_with_swapped_words() -> None:
    image = np.arange(400, dtype=np.float32).reshape(4, 100) / 400
    case, seen = mirrored([make_case()], 0, image)
    assert (seen == image[:, ::-1]).all()
    assert [(r.phrase, r.boxes) for r in case.references] == [
        ("Small right effusion", (Box(10, 0, 30, 20),)),
        ("LEFT mass", (Box(70, 0, 90, 20),)),
    ]
    assert case.midline == Midline(52, 2, "picture")


def test_swapped_words_leave_the_picture() -> None:
    image = np.zeros((4, 100), np.float32)
    case, seen = swapped_words([make_case()], 0, image)
    assert seen is image
    assert case.references[0].phrase == "Small right effusion"
    assert set(CONTROLS) == {"blind", "other_picture", "swapped_words", "mirrored"}


def test_flips_by_hand() -> None:
    before = [
        make_prediction("left nodule", (ON_LEFT,)),
        make_prediction("left nodule", (ON_LEFT,)),
        make_prediction("left nodule", (ON_LEFT,)),
        make_prediction("left nodule", (ON_RIGHT,)),  # was wrong already; it follows the words
        make_prediction("left nodule", ()),  # was never localised
        make_prediction("nodule", (ON_LEFT,)),  # names no side
    ]
    after = [
        make_prediction("right nodule", (ON_LEFT,)),  # the picture wins
        make_prediction("right nodule", (ON_RIGHT,)),  # the words win
        make_prediction("right nodule", ()),  # a contradiction is noticed
        make_prediction("right nodule", (ON_LEFT,)),
        make_prediction("right nodule", (ON_RIGHT,)),
        make_prediction("nodule", (ON_RIGHT,)),
    ]
    assert flip_figures(before, after) == {"n": 4, "flipped": 2, "flip_rate": 0.5, "gone": 1, "gone_rate": 0.25}
    assert flip_figures([], [])["flip_rate"] is None


def test_mirror_by_hand() -> None:
    before = [make_prediction(boxes=(ON_LEFT,)), make_prediction(boxes=(ON_LEFT,)), make_prediction(boxes=())]
    after = [make_prediction(boxes=(ON_RIGHT,)), make_prediction(boxes=()), make_prediction(boxes=(ON_RIGHT,))]
    assert mirror_figures(before, after) == {"equivariance_n": 2, "equivariance_miou": 0.5}
    assert mirror_figures([], []) == {"equivariance_n": 0, "equivariance_miou": None}
