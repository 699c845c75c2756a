"""Alignment of a phrase with a text: exact whatever its case and hyphens, by shared words, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.spans import SUPPORT, Alignment, align
from grounding.text import read_plain_report
from grounding.types import Span

REPORT = (
    "A small right-sided pleural effusion is seen. Patchy ground-glass opacities in the left upper lobe, of 1.5 cm. "
    "The heart is enlarged. No pneumothorax in either lung."
)
PHRASES = [
    "small right-sided pleural effusion",
    "Patchy ground-glass opacities in the left upper lobe",
    "heart is enlarged",
    "pneumothorax",
]


def found(phrase: str, text: str = REPORT) -> str | None:
    place = align(phrase, text)
    return None if place is None else text[place.span.start : place.span.end]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_verbatim_phrase_is_exact(phrase: str) -> None:
    start = REPORT.index(phrase)
    assert align(phrase, REPORT) == Alignment(Span(start, start + len(phrase)), exact=True, similarity=1.0)


@pytest.mark.parametrize(
    ("phrase", "place"),
    [
        ("SMALL RIGHT SIDED PLEURAL EFFUSION", PHRASES[0]),
        ("patchy groundglass opacities", "Patchy ground-glass opacities"),
        ("heart  is\nenlarged", PHRASES[2]),
        ("1.5cm", "1.5 cm"),
    ],
)
def test_case_blanks_and_hyphens_do_not_matter(phrase: str, place: str) -> None:
    assert found(phrase) == place
    assert (one := align(phrase, REPORT)) is not None and one.exact


@pytest.mark.parametrize(
    ("phrase", "place"),
    [
        ("heart enlarged", "heart is enlarged"),
        ("pleural effusions, small, right", "small right-sided pleural effusion"),
        ("ground-glass opacity in left upper lobe", "ground-glass opacities in the left upper lobe"),
        ("enlarged heart", "heart is enlarged"),
    ],
)
def test_a_reworded_phrase_is_found_by_its_words(phrase: str, place: str) -> None:
    one = align(phrase, REPORT)
    assert one is not None and not one.exact and SUPPORT <= one.similarity <= 1
    assert found(phrase) == place


@pytest.mark.parametrize(
    "phrase",
    [
        "unicorn", "rib fracture", "", " - ", "ptx", "art", "cardiomegaly", "effusion of the heart and lobe",
        "small left-sided pleural effusion", "pleural effusion left", "bilateral pleural effusions, small",
        "patchy ground-glass opacities in the right upper lobe", "ground-glass opacities in the left lower lobe",
        "patchy ground-glass opacities of 2.5 cm in the left upper lobe", "15 cm", "enlarged pneumothorax",
    ],
)  # fmt: skip
def test_what_the_text_does_not_support_has_no_place(phrase: str) -> None:
    assert align(phrase, REPORT) is None


def test_a_place_lies_in_one_of_the_sentences_that_may_be_grounded() -> None:
    report = read_plain_report("INDICATION: Left effusion.\nFINDINGS: A nodule. Left effusions are small.")
    place = align("left effusion", report.text, report.sentences)
    assert place is not None and place.span.start > report.text.index("FINDINGS") and not place.exact
    assert align("indication", report.text, report.sentences) is None
    assert align("nodule left", report.text, report.sentences) is None  # words of two sentences


def test_other_scripts_are_compared_by_their_signs() -> None:
    text = "右肺に結節を認める。胸水なし。"
    assert found("結節", text) == "結節"
    assert align("骨折", text) is None
    assert found("épanchement", "Petit Épanchement à gauche.") == "Épanchement"


def test_a_long_text_and_a_long_phrase_are_read_to_their_end() -> None:
    text = "left right lower lobe opacity effusion " * 1300 + "mass of the left base."
    assert found("left base mass", text) == "mass of the left base"
    assert align("zebra " * 5000, text) is None
    assert align("opacity effusion " * 3000, text) is None


WORDS = [
    "left", "right", "small", "effusion", "nodule", "the", "in", "of", "lung", "base", "and", "mass", "opacity",
    "8", "mm", "upper", "zone", "is",
]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@given(texts, st.data())
@settings(deadline=None)
def test_words_of_the_text_are_always_found_in_any_case_and_hyphenation(text: str, data: st.DataObject) -> None:
    words = text.split()
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    phrase = "-".join(words[first:last]).swapcase()
    place = align(phrase, text)
    assert place is not None and place.exact and place.similarity == 1
    assert text[place.span.start : place.span.end] == " ".join(words[first:last])


@given(st.text(max_size=60), st.text(max_size=200))
@settings(deadline=None)
def test_every_place_lies_in_the_text(phrase: str, text: str) -> None:
    place = align(phrase, text)
    if place is not None:
        assert 0 <= place.span.start < place.span.end <= len(text)
        assert SUPPORT <= place.similarity <= 1


@given(st.sampled_from([p for p in PHRASES if " " in p]), texts)
@settings(deadline=None)
def test_a_dropped_function_word_changes_no_place(phrase: str, other: str) -> None:
    text = f"{other}. A {phrase}. {other}."
    shorter = " ".join(word for word in phrase.split() if word not in ("is", "in", "the"))
    place = align(shorter, text)
    assert place is not None and phrase in text[place.span.start : place.span.end]


@given(texts.filter(lambda text: "left" not in text.split()), st.sampled_from(["effusion", "mass", "lung nodule"]))
@settings(deadline=None)
def test_a_side_is_never_taken_for_the_other(text: str, finding: str) -> None:
    place = align(f"left {finding}", text.replace(finding, f"right {finding}"))
    assert place is None or "right" not in text[place.span.start : place.span.end]
