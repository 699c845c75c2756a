"""Rules of negation: what is in a scope, what ends it, and what only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.negation import is_negated, negated_scopes

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
]


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


@given(st.text(alphabet=st.sampled_from(list("no t;.,bueffsion ")), max_size=60))
def test_scopes_lie_in_the_sentence_in_order(sentence: str) -> None:
    scopes = negated_scopes(sentence)
    assert scopes == sorted(scopes)
    assert all(0 <= a < b <= len(sentence) for a, b in scopes)
