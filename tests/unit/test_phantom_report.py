"""Generated reports: phrases verbatim at their source, sentences of findings and impression only, much variety."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.phantoms.lesions import LABELS, Lesion
from grounding.phantoms.report import WrittenReport, write_report
from grounding.text import is_used_heading, read_plain_report
from grounding.types import Box

BOX = Box(10, 20, 30, 40)


def make_lesion(label: str, side: str | None = "left", level: str | None = "lower") -> Lesion:
    boxes = (BOX, Box(50, 20, 70, 40)) if side == "bilateral" else (BOX,)
    return Lesion(label, side, level, 0.5, 2.1, boxes)  # type: ignore[arg-type]


def write(seed: int, *lesions: Lesion) -> WrittenReport:
    return write_report(np.random.default_rng(seed), lesions)


lesion_sets = st.lists(
    st.builds(
        make_lesion,
        st.sampled_from(LABELS),
        st.sampled_from(["left", "right", "bilateral"]),
        st.sampled_from(["upper", "mid", "lower", None]),
    ),
    max_size=5,
    unique_by=lambda lesion: lesion.label,
)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), lesions=lesion_sets)
def test_phrases_stand_verbatim_in_order_inside_a_sentence(seed: int, lesions: list[Lesion]) -> None:
    written = write(seed, *lesions)
    text, end = written.report.text, 0
    for phrase in written.phrases:
        assert text[phrase.source.start : phrase.source.end] == phrase.phrase
        assert phrase.source.start >= end
        end = phrase.source.end
        assert any(s.start <= phrase.source.start and phrase.source.end <= s.end for s in written.report.sentences)
        assert phrase.phrase == phrase.phrase.strip(" .,;:")
        assert not re.search(r"[\x00-\x08{}\[\]]|\s\s", phrase.phrase)
        assert not re.match(r"(?i)(there|a|an|the|no|is|are)\b", phrase.phrase)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), lesions=lesion_sets)
def test_every_lesion_is_asserted_with_its_boxes_and_nothing_else(seed: int, lesions: list[Lesion]) -> None:
    asserted = [phrase for phrase in write(seed, *lesions).phrases if not phrase.negated]
    assert {phrase.label for phrase in asserted} == {lesion.label for lesion in lesions}
    boxes = {lesion.label: lesion.boxes for lesion in lesions}
    assert all(phrase.boxes == boxes[phrase.label] and phrase.present for phrase in asserted)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), lesions=lesion_sets)
def test_the_plain_text_reader_finds_the_same_sentences(seed: int, lesions: list[Lesion]) -> None:
    report = write(seed, *lesions).report
    assert read_plain_report(report.text) == report


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), lesions=lesion_sets)
def test_sections_hold_the_text_and_only_used_ones_hold_sentences(seed: int, lesions: list[Lesion]) -> None:
    written = write(seed, *lesions)
    text, at = written.report.text, 0
    for title, body in written.sections:
        start = text.index(body, at)
        at = start + len(body)
        inside = [s for s in written.report.sentences if start <= s.start and s.end <= at]
        assert bool(inside) == is_used_heading(title)


def test_asserted_lesion_without_boxes_is_not_present() -> None:
    absent = replace(make_lesion("nodule"), boxes=())
    phrases = [phrase for phrase in write(3, absent).phrases if not phrase.negated]
    assert phrases
    assert not any(phrase.present or phrase.boxes for phrase in phrases)


@pytest.mark.parametrize("label", ["consolidation", "pleural_effusion", "pneumothorax", "nodule", "ground_glass"])
def test_one_finding_has_many_phrasings(label: str) -> None:
    phrases = {
        phrase.phrase.lower()
        for seed in range(400)
        for phrase in write(seed, make_lesion(label)).phrases
        if not phrase.negated
    }
    assert len(phrases) > 60


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_other_side_is_never_said(side: str) -> None:
    other = {"left": "right", "right": "left"}[side]
    for seed in range(300):
        for phrase in write(seed, make_lesion("consolidation", side)).phrases:
            assert phrase.negated or other not in phrase.phrase.lower()


def test_two_findings_that_look_alike_are_told_apart_by_side() -> None:
    for seed in range(200):
        written = write(seed, make_lesion("consolidation", "left", None), make_lesion("opacity", "right", None))
        for phrase in written.phrases:
            if not phrase.negated:
                side = "left" if phrase.label == "consolidation" else "right"
                assert side in phrase.phrase.lower()


def test_finding_words_occur_outside_the_sentences() -> None:
    """Indications and comparisons name findings that must not be grounded."""
    outside = 0
    for seed in range(200):
        report = write(seed).report
        first = report.sentences[0].start
        outside += bool(re.search("pneumothorax|effusion|mass|pneumonia", report.text[:first].lower()))
    assert outside > 30
