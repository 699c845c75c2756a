"""Phrases after reading: cut-off ones go on to the name that follows, empty ones are left out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.copying import Emission
from grounding.knowledge import load_bank
from grounding.phrases import says_something, settle


def settled(text: str, *phrases: str, negated: bool = False) -> list[str]:
    emissions = [Emission(text.index(p), text.index(p) + len(p), negated) for p in phrases]
    return [text[e.start : e.end] for e in settle(text, emissions, load_bank())]


@pytest.mark.parametrize(
    ("text", "phrase", "whole"),
    [
        ("Minimal left basilar XXXX opacity.", "Minimal left basilar XXXX", "Minimal left basilar XXXX opacity"),
        ("Bilateral patchy areas of peripheral consolidation.", "Bilateral patchy areas", None),
        ("Faint left basal infiltrate.", "Faint left", "Faint left basal infiltrate"),
        ("Small right effusion.", "Small right effusion", "Small right effusion"),
        ("Peribronchial cuffing. Rest.", "Peribronchial cuffing", "Peribronchial cuffing"),
        ("Small right effusion at the left base.", "Small right effusion", "Small right effusion at the left base"),
        ("Opacity in the right lower and middle lobes.", "Opacity in the right lower", None),
        ("Nodule on the left, and more.", "Nodule", "Nodule on the left"),
        ("Nodule on the left clavicle.", "Nodule", "Nodule"),
        ("A 9 mm nodule.", "mm nodule", "9 mm nodule"),
        ("Nodule measuring 3 cm in the right lung.", "Nodule", "Nodule measuring 3 cm in the right lung"),
        ("The heart is enlarged.", "The heart is enlarged", "heart is enlarged"),
        ("Edema and the like.", "Edema and the", "Edema"),
        ("Bilateral rib deformities are old.", "Bilateral rib", "Bilateral rib deformities"),
        ("Left base, and then nothing.", "Left base", None),
        ("Cuffing that is unchanged since May.", "Cuffing", "Cuffing"),
    ],
)
def test_a_phrase_goes_on_to_the_name_that_follows(text: str, phrase: str, whole: str | None) -> None:
    expected = whole if whole is not None else ("" if "Left" in text else text.rstrip("."))
    assert settled(text, phrase) == ([expected] if expected else [])


def test_a_phrase_that_was_swallowed_is_left_out() -> None:
    assert settled("Faint left basal infiltrate.", "Faint left", "infiltrate") == ["Faint left basal infiltrate"]


@pytest.mark.parametrize("phrase", ["1", ",", "right", "Heart size", "left upper lobe", "XXXX", "the", "45 mm", ""])
def test_words_that_name_no_finding_say_nothing(phrase: str) -> None:
    assert not says_something(phrase, load_bank())


@pytest.mark.parametrize("phrase", ["effusion", "Peribronchial cuffing", "sternotomy", "left rib fracture"])
def test_a_word_that_may_name_a_finding_says_something(phrase: str) -> None:
    assert says_something(phrase, load_bank())


def test_a_denial_of_nothing_known_is_left_out_and_one_of_a_known_thing_is_kept() -> None:
    assert settled("The geode is old.", "geode", negated=True) == []
    assert settled("Lungs are clear.", "Lungs are clear", negated=True) == ["Lungs are clear"]
    assert settled("No effusion.", "effusion", negated=True) == ["effusion"]


@pytest.mark.parametrize("text", ["Suspected left hilar mass.", "Left hilar mass without effusion."])
def test_a_finding_that_no_word_denies_is_asserted(text: str) -> None:
    phrase = "left hilar mass" if "left" in text else "Left hilar mass"
    start = text.index(phrase)
    (whole,) = settle(text, [Emission(start, start + len(phrase), True)], load_bank())
    assert not whole.negated and text[whole.start : whole.end] == phrase


def test_a_finding_that_a_word_may_deny_is_left_to_the_model() -> None:
    text = "A mass, not well seen, and resolved."
    (whole,) = settle(text, [Emission(2, 6, True)], load_bank())
    assert whole.negated


@pytest.mark.parametrize(
    "text",
    [
        "Lung vascularity is within normal limits.",
        "Diaphragms look normal.",
        "Sulci: clear.",
        "The sulci show no change.",
    ],
)
def test_what_is_called_normal_is_no_finding(text: str) -> None:
    assert settled(text, text.split()[0] if not text.startswith("The") else "sulci") == []


@pytest.mark.parametrize(
    ("text", "phrases", "whole"),
    [
        ("Edema and a small left effusion at the left base.", ["Edema"], "small left effusion at the left base"),
        ("Possible right lower lobe pneumonia.", [], "right lower lobe pneumonia"),
        ("An 8 mm nodule in the left lung.", [], "8 mm nodule in the left lung"),
        ("Lungs are hyperexpanded.", [], "hyperexpanded"),
        ("The heart size is increased.", [], "heart size is increased"),
        ("A mass in the left lung.", ["left lung"], "mass in the left lung"),
        ("Mass and nodule.", ["nodule"], "Mass"),
    ],
)  # fmt: skip
def test_a_finding_that_the_model_passed_over_is_taken_up(text: str, phrases: list[str], whole: str) -> None:
    found = settled(text, *phrases)
    assert whole in found
    assert [text.index(phrase) for phrase in found] == sorted(text.index(phrase) for phrase in found)


@pytest.mark.parametrize(
    "text",
    [
        "No pneumothorax.", "Follow-up of the nodule is recommended.", "Previous pneumonia.", "Status post chest tube.",
        "Recommend CT to evaluate for mass.", "Pleural space.", "The effusion has resolved.", "Trachea is midline.",
        "Cardiothoracic ratio.", "Interstitial markings are normal.", "",
    ],
)  # fmt: skip
def test_what_is_denied_advised_or_remembered_is_not_taken_up(text: str) -> None:
    assert settled(text) == []


@given(
    st.lists(
        st.sampled_from(["No", "mass", "left", "effusion", "and", "the", ",", "lung", "9", "mm", "is", "normal", "."]),
        max_size=14,
    ),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.booleans()), max_size=5),
)
@settings(deadline=None)
def test_settled_phrases_lie_in_the_text_in_order_and_apart(
    words: list[str], places: list[tuple[int, int, bool]]
) -> None:
    text = " ".join(words)
    emissions, last = [], 0
    for gap, length, negated in places:
        start = last + gap % 9
        if start + length > len(text):
            break
        last = start + length
        emissions.append(Emission(start, last, negated))
    found = settle(text, emissions, load_bank())
    assert all(0 <= e.start < e.end <= len(text) for e in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
