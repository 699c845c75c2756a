"""Reading lessons: the frames teach what the rules of negation say, so that neither pulls against the other."""

from __future__ import annotations

import re

import numpy as np
import pytest

from grounding.knowledge import load_bank
from grounding.negation import ReportGuard, may_be_denied
from grounding.text import split_sentences
from grounding.training.lessons import SHARES, VOCABULARY, ReadingLessons

GROUPS = list(SHARES)


def test_shares_are_of_groups_that_exist_and_add_up_to_one() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert all(VOCABULARY[group] for group in GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_frames_have_known_slots_and_no_phrase_in_neutral_ones(group: str) -> None:
    slots = [set(re.findall(r"{(.*?)}", frame)) for frame in VOCABULARY[group]]
    allowed = {"neutral": {"n"}, "deny": {"d", "n"}, "resolved": {"d", "n"}}.get(group, {"x", "b", "c", "d", "n"})
    assert all(used <= allowed for used in slots)
    if group == "mixed":
        assert all("x" in used for used in slots)


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "neutral"])
def test_the_rules_of_negation_read_every_frame_as_it_is_taught(group: str) -> None:
    for frame in VOCABULARY[group]:
        words = {"x": "left mass", "b": "edema", "d": "nodule", "c": "new", "n": "on Monday"}
        text, marked = "", []
        for part in re.split(r"({.})", frame):
            slot = part[1:2] if part.startswith("{") else ""
            if slot in ("x", "b", "d"):
                marked.append((len(text), len(text) + len(words[slot]), slot == "d"))
            text += words[slot] if slot else part
        guard, sentences = ReportGuard(text), split_sentences(text, 0, len(text))
        for start, end, negated in marked:
            sentence = next(s for s in sentences if s.start <= start < s.end)
            assert guard.is_negated(sentence, start, end) == negated, (text, start)
            assert not negated or may_be_denied(text, start, end), text


def test_a_word_of_time_is_no_part_of_a_phrase() -> None:
    lessons, rng = ReadingLessons(load_bank()), np.random.default_rng(4)
    said = [p.text[a.start : a.end].lower() for p in (lessons.draw(rng) for _ in range(300)) for a in p.answers]
    assert said
    assert not [phrase for phrase in said if phrase.split()[0] in VOCABULARY["courses"]]
