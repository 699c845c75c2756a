"""Sentences of plain reports: numbers, abbreviations, lists, headings; nothing lost, nothing invented."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.text import is_used_heading, read_plain_report, split_sentences


def sentences(text: str) -> list[str]:
    return [text[span.start : span.end] for span in split_sentences(text)]


def used(text: str) -> list[str]:
    report = read_plain_report(text)
    assert report.text == text
    return [text[span.start : span.end] for span in report.sentences]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A nodule. No effusion.", ["A nodule.", "No effusion."]),
        ("A 2.5 cm nodule. New.", ["A 2.5 cm nodule.", "New."]),
        ("Nodule, approx. 2 cm. No change.", ["Nodule, approx. 2 cm.", "No change."]),
        ("Told Dr. Lee. Tube ok.", ["Told Dr. Lee.", "Tube ok."]),
        ("1. Nodule.\n2. No effusion.", ["Nodule.", "No effusion."]),
        ("1. Nodule\n2. No effusion", ["Nodule", "No effusion"]),
        ("- opacity\n- no effusion", ["opacity", "no effusion"]),
        ("opacity in the\nleft lung", ["opacity in the\nleft lung"]),
        ("First line\n\nSecond line", ["First line", "Second line"]),
        ("Is this a mass? Yes!", ["Is this a mass?", "Yes!"]),
        ("Right (small). Left.", ["Right (small).", "Left."]),
        ("", []),
        (" \n . \n", []),
    ],
)
def test_sentences_of(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet="ab .,;:!?1-\n", max_size=80))
def test_sentences_are_ordered_trimmed_and_lose_no_letter(text: str) -> None:
    spans = split_sentences(text)
    assert all(first.end <= second.start for first, second in pairwise(spans))
    assert all(text[s.start : s.end] == text[s.start : s.end].strip() != "" for s in spans)
    kept = "".join(text[s.start : s.end] for s in spans)
    assert [x for x in kept if x.isalpha()] == [x for x in text if x.isalpha()]


@given(st.text(alphabet="ab. \n", max_size=30), st.text(alphabet="ab. \n", max_size=30))
def test_only_the_asked_part_is_split(before: str, after: str) -> None:
    text = before + "one nodule here" + after
    start, end = len(before), len(before) + 15
    (span,) = split_sentences(text, start, end)
    assert (span.start, span.end) == (start, end)


def test_findings_and_impression_are_used_and_the_rest_is_not() -> None:
    text = (
        "INDICATION: Rule out pneumonia.\nTECHNIQUE: AP.\nCOMPARISON: Prior effusion.\n"
        "FINDINGS: Small nodule. No effusion.\nIMPRESSION:\n1. Nodule.\n"
    )
    assert used(text) == ["Small nodule.", "No effusion.", "Nodule."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Opacity at the left base. Normal heart.", ["Opacity at the left base.", "Normal heart."]),
        ("EXAM: chest. HISTORY: fever. FINDINGS AND IMPRESSION: Clear lungs.", ["Clear lungs."]),
        ("Findings:\nOpacity.\n\nHistory: cough.", ["Opacity."]),
        ("COMPARISON: None.\n\nLung volumes are low. No effusion.", ["Lung volumes are low.", "No effusion."]),
        ("LUNGS: clear. HEART: enlarged.", ["LUNGS: clear.", "HEART: enlarged."]),
        ("INDICATION: cough.", []),
        ("Chest radiograph of today.\nFINDINGS: Opacity.", ["Opacity."]),
    ],
)
def test_used_sentences_of(text: str, expected: list[str]) -> None:
    assert used(text) == expected


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    report = read_plain_report(text)
    assert all(0 <= span.start < span.end <= len(text) for span in report.sentences)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("FINDINGS", True),
        ("Findings and Impression", True),
        ("Reason for Exam", False),
        ("Technique:", False),
        ("Lungs", None),
    ],
)
def test_heading(title: str, expected: bool | None) -> None:
    assert is_used_heading(title) is expected
