"""Phrases after reading: cut-off ones go on to the name that follows, empty ones are left out."""

from __future__ import annotations

import pytest

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
        ("Peribronchial cuffing. Opacity.", "Peribronchial cuffing", "Peribronchial cuffing"),
        ("Left base, and then an opacity.", "Left base", None),
        ("Cuffing that is unchanged since opacity.", "Cuffing", "Cuffing"),
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
