"""Rules of negation: what is in a scope, what ends it, and what only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.negation import ReportGuard, is_negated, may_be_denied, negated_scopes
from grounding.text import read_plain_report, split_sentences
from grounding.types import Span

NEGATED = [
    ("No pneumothorax.", "pneumothorax"),
    ("There is no evidence of pleural effusion or pneumothorax.", "pneumothorax"),
    ("No focal consolidation, effusion, or pneumothorax.", "effusion"),
    ("Lungs are free of consolidation.", "consolidation"),
    ("The patient denies a fracture.", "fracture"),
    ("Absence of edema.", "edema"),
    ("Negative for pneumonia.", "pneumonia"),
    ("Without a nodule.", "nodule"),
    ("Neither mass nor nodule.", "mass"),
    ("Left effusion has resolved.", "Left effusion"),
    ("The previous opacity has cleared.", "previous opacity"),
    ("Pneumothorax is not seen.", "Pneumothorax"),
    ("The pneumothorax is no longer visible.", "pneumothorax"),
    ("Pleural effusion is absent.", "Pleural effusion"),
    ("Rule out pneumonia.", "pneumonia"),
    ("There is an effusion but no pneumothorax.", "pneumothorax"),
    ("The endotracheal tube has been removed.", "endotracheal tube"),
    ("Pneumothorax: None.", "Pneumothorax"),
    ("Pleural effusion: No", "Pleural effusion"),
    ("Pleural effusion: absent.", "Pleural effusion"),
    ("Pneumothorax: not present", "Pneumothorax"),
    ("Pneumothorax - none", "Pneumothorax"),
    ("Pneumothorax - none on the right.", "Pneumothorax"),
    ("Pneumothorax (no)", "Pneumothorax"),
    ("Effusion: negative", "Effusion"),
    ("Effusion: small. Pneumothorax: none, nodule: no", "Pneumothorax"),
    ("No evidence of: pneumothorax, effusion", "effusion"),
    ("Negative for any of the following:\npneumothorax", "pneumothorax"),
    ("Apical pneumothorax is no longer seen.", "Apical pneumothorax"),
    ("The old effusion has since cleared.", "old effusion"),
    ("The haze has disappeared.", "haze"),
    ("Lungs without evidence of edema.", "edema"),
    ("Skin fold rather than pneumothorax.", "pneumothorax"),
    ("Both lungs are free of infiltrate.", "infiltrate"),
    ("Pneumonia is unlikely.", "Pneumonia"),
    ("Pneumonia is felt to be unlikely.", "Pneumonia"),
    ("This is unlikely to represent pneumonia.", "pneumonia"),
    ("Interval resolution of the effusion.", "effusion"),
    ("Complete clearing of consolidation.", "consolidation"),
    ("Interval removal of the chest tube.", "chest tube"),
    ("Resolved right effusion.", "right effusion"),
    ("Nothing to suggest a fracture.", "fracture"),
    ("A nodule may not be seen on this film.", "nodule"),
    ("The heart has grown and the effusion has resolved.", "effusion"),
    ("Opacity, which was seen last week, has resolved.", "Opacity"),
    ("No nodule is seen, or mass.", "mass"),
    ("Kein Pneumothorax.", "Pneumothorax"),
    ("Pneumothorax nicht nachweisbar.", "Pneumothorax"),
    ("Nessun versamento.", "versamento"),
    ("Sem derrame.", "derrame"),
    ("Geen pneumothorax.", "pneumothorax"),
    ("Keine Infiltrate.", "Infiltrate"),
    ("ohne Erguss", "Erguss"),
    ("sin derrame pleural", "derrame pleural"),
    ("pas de pneumothorax", "pneumothorax"),
    ("pas d'épanchement", "épanchement"),
    ("pas d’épanchement", "épanchement"),
]
ASSERTED = [
    ("There is a left effusion.", "left effusion"),
    ("No pneumothorax but a left effusion.", "left effusion"),
    ("No effusion; right nodule.", "right nodule"),
    ("No change in the right effusion.", "right effusion"),
    ("No significant interval change in the opacity.", "opacity"),
    ("No pneumothorax, however consolidation persists.", "consolidation"),
    ("No effusion except at the left base, where there is atelectasis.", "atelectasis"),
    ("The effusion has not changed.", "effusion"),
    ("Opacity is noted without effusion.", "Opacity"),
    ("Pneumothorax has resolved; effusion persists.", "effusion"),
    ("Nodule in the left lung.", "Nodule"),
    ("Not only an effusion.", "effusion"),
    ("Pneumothorax: small right apical", "Pneumothorax"),
    ("Effusion - none on the right, large left effusion", "large left effusion"),
    ("Effusion - none on the right, large left effusion", "Effusion"),
    ("Pneumothorax: no, effusion: small", "effusion"),
    ("Pneumothorax (no), left effusion", "left effusion"),
    ("Pneumothorax: none\nEffusion: small", "Effusion"),
    ("Effusion: small\nPneumothorax: none", "Effusion"),
    ("nodule (no change)", "nodule"),
    ("Nodule: no change", "Nodule"),
    ("Nodule, interval change: none", "Nodule"),
    ("no change in the right effusion", "right effusion"),
    ("not significantly changed consolidation", "consolidation"),
    ("No acute findings: old fracture", "old fracture"),
    ("A left effusion cannot be excluded.", "left effusion"),
    ("Cannot exclude a left effusion.", "left effusion"),
    ("Pneumonia is not excluded.", "Pneumonia"),
    ("We cannot rule out a mass.", "mass"),
    ("It is difficult to exclude edema.", "edema"),
    ("It is not possible to exclude edema.", "edema"),
    ("Possible left effusion.", "left effusion"),
    ("Question of a right effusion.", "right effusion"),
    ("Suspected left hilar mass.", "left hilar mass"),
    ("Haze that may represent edema.", "edema"),
    ("The effusion has not resolved.", "effusion"),
    ("The effusion has partially resolved.", "effusion"),
    ("Near complete resolution of the effusion.", "effusion"),
    ("Almost completely resolved effusion.", "effusion"),
    ("Incomplete clearing of the haze.", "haze"),
    ("This opacity is unlikely to represent scar.", "opacity"),
    ("Although no effusion is seen, a mass is suspected.", "mass"),
    ("No edema to explain the opacity.", "opacity"),
    ("A mass is present, effusion is absent.", "mass"),
    ("The mass is unchanged, and the effusion has resolved.", "mass"),
    ("The mass has grown and effusion is no longer seen.", "mass"),
    ("No pneumothorax, the effusion is unchanged.", "effusion"),
    ("No pneumothorax, likely atelectasis.", "atelectasis"),
    ("No pneumothorax with residual effusion.", "effusion"),
    ("keine Veränderung des Ergusses", "Ergusses"),
    ("sin cambios en el derrame pleural", "derrame pleural"),
    ("pas de changement de l'épanchement", "épanchement"),
]
LINES = [
    ("There is no evidence of:\n- pneumothorax\n- pleural effusion", {"pneumothorax", "pleural effusion"}),
    ("Negative for the following:\n\n1. pneumothorax\n2. nodule\n\n1. opacity", {"pneumothorax", "nodule"}),
    ("The following are not seen:\n- nodule\nLeft opacity.", {"nodule"}),
    ("No evidence of:\npneumothorax\n\nLeft opacity.", {"pneumothorax"}),
    ("FINDINGS:\nNo evidence of:\n- nodule. Left opacity.\nIMPRESSION:\n- pneumothorax", {"nodule"}),
    ("No pleural effusion,\nPneumothorax or nodule.\nLeft opacity", {"pleural effusion", "Pneumothorax", "nodule"}),
    ("No pleural effusion,\nPneumothorax,\nnodule.", {"pleural effusion", "Pneumothorax", "nodule"}),
    ("No pleural effusion,\nbut left opacity.", {"pleural effusion"}),
    ("- No pleural effusion,\n- left opacity,\n- nodule", {"pleural effusion"}),
    ("No nodule.\nSmall pleural effusion,\nleft opacity", {"nodule"}),
    ("No evidence of:\n- pneumothorax,\n- pleural effusion,\nnodule", {"pneumothorax", "pleural effusion", "nodule"}),
    ("Findings:\n- nodule\n- left opacity", set()),
    ("No change in:\n- nodule\n- left opacity", set()),
]
PHRASES = ["pneumothorax", "Pneumothorax", "pleural effusion", "nodule", "opacity"]


def place(sentence: str, phrase: str) -> tuple[int, int]:
    start = sentence.index(phrase)
    return start, start + len(phrase)


@pytest.mark.parametrize(("sentence", "phrase"), NEGATED)
def test_negated(sentence: str, phrase: str) -> None:
    assert is_negated(sentence, *place(sentence, phrase))
    assert is_negated(sentence.upper(), *place(sentence, phrase))


@pytest.mark.parametrize(("sentence", "phrase"), ASSERTED)
def test_asserted(sentence: str, phrase: str) -> None:
    assert not is_negated(sentence, *place(sentence, phrase))


@pytest.mark.parametrize(("sentence", "phrase"), [pair for pair in NEGATED if "\n" not in pair[0]])
def test_a_word_of_denial_is_heard_wherever_the_rules_negate(sentence: str, phrase: str) -> None:
    assert may_be_denied(sentence, *place(sentence, phrase))


@pytest.mark.parametrize(
    ("sentence", "phrase", "heard"),
    [
        ("Suspected left hilar mass.", "left hilar mass", False),
        ("Mild edema without effusion.", "Mild edema", False),
        ("Nodule, not definitely calcified.", "Nodule", False),
        ("No effusion but a mass.", "mass", False),
        ("Well-defined non-calcified free-flowing mass.", "mass", False),
        ("Mass not clearly seen.", "Mass", True),
        ("Lungs are clear.", "Lungs", True),
        ("Heart within limits.", "Heart", True),
        ("Brak pneumothorax.", "pneumothorax", True),
        ("気胸 pneumothorax なし", "pneumothorax", True),
    ],
)
def test_a_word_of_denial_is_heard_in_the_clause_of_a_phrase(sentence: str, phrase: str, heard: bool) -> None:
    assert may_be_denied(sentence, *place(sentence, phrase)) == heard


def denied(text: str, sentences: tuple[Span, ...]) -> set[str]:
    guard = ReportGuard(text)
    places = [(text.find(phrase), phrase) for phrase in PHRASES if phrase in text]
    return {
        phrase
        for at, phrase in places
        for sentence in sentences
        if sentence.start <= at < sentence.end and guard.is_negated(sentence, at, at + len(phrase))
    }


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_a_negation_reaches_into_the_lines_that_it_introduces(text: str, expected: set[str]) -> None:
    assert denied(text, read_plain_report(text).sentences) == expected
    lines = [text.index(line) for line in text.split("\n") if line]
    ends = [*(start - 1 for start in lines[1:]), len(text)]
    by_line = [s for start, end in zip(lines, ends, strict=True) for s in split_sentences(text, start, end)]
    assert denied(text, tuple(by_line)) == expected


def test_a_sentence_without_end_is_read_in_the_time_that_its_length_takes() -> None:
    sentence = "The effusion has resolved and the nodule is no longer seen, and the " * 700
    scopes = negated_scopes(sentence)
    assert len(scopes) >= 1400
    guard = ReportGuard(sentence)
    at = [place for place in range(len(sentence)) if sentence.startswith("nodule", place)]
    assert all(guard.is_negated(Span(0, len(sentence)), place, place + 6) for place in at)


@given(st.text(alphabet=st.sampled_from(list("no t;.,bueffsion ")), max_size=60))
def test_scopes_lie_in_the_sentence_in_order(sentence: str) -> None:
    scopes = negated_scopes(sentence)
    assert scopes == sorted(scopes)
    assert all(0 <= a < b <= len(sentence) for a, b in scopes)
