"""Phrases that are not there: of another kind than what is shown, as often for each finding, in the same sentences."""

from __future__ import annotations

from collections import Counter

import numpy as np

from grounding.knowledge import load_bank
from grounding.phantoms.study import EMPHASIZED, make_study
from grounding.training.absence import AbsentPhrases
from grounding.training.examples import Answer, Example, Prompt, blank, phantom_prompts, pick_prompts

BOX = (0.5, 0.5, 0.1, 0.1)


def shows(phrase: str, text: str | None = None) -> Prompt:
    text = text or phrase
    start = text.index(phrase)
    return Prompt(text, (Answer(start, start + len(phrase), False, (BOX,)),))


def test_an_absent_phrase_is_of_another_kind_than_what_is_shown() -> None:
    absent, rng = AbsentPhrases(load_bank(), 0.5), np.random.default_rng(0)
    for _ in range(30):
        pneumothorax = [shows("left pneumothorax")]
        assert absent.draw(rng, pneumothorax, pneumothorax) is None
    drawn = absent.draw(rng, [shows("consolidation")], [])
    assert drawn is not None and "left pneumothorax" in drawn.text and drawn.answers[0].boxes == ()
    for _ in range(20):
        other = absent.draw(rng, [shows("right pleural effusion")], [])  # may look like a consolidation
        assert other is None or "left pneumothorax" in other.text
    assert absent.draw(rng, [shows("purple monkey")], []) is None


def test_it_is_asked_for_in_the_sentence_that_spoke_of_it_or_bare() -> None:
    absent, rng = AbsentPhrases(load_bank(), 0.5), np.random.default_rng(0)
    spoken = [shows("left pneumothorax", "Again noted is a left pneumothorax.")]
    for _ in range(40):
        absent.draw(rng, spoken, spoken)
    texts = {found.text for _ in range(40) if (found := absent.draw(rng, [shows("consolidation")], []))}
    assert texts == {"left pneumothorax", "Again noted is a left pneumothorax."}


def test_each_finding_is_asked_for_in_vain_in_the_same_share() -> None:
    share = 0.25
    absent, rng = AbsentPhrases(load_bank(), share), np.random.default_rng(1)
    asked: Counter[str] = Counter()
    in_vain: Counter[str] = Counter()
    for seed in range(700):
        prompts = phantom_prompts(make_study(seed, 48, rates=EMPHASIZED))
        picked = pick_prompts(rng, prompts, 3)
        found = absent.draw(rng, prompts, picked)
        for prompt, counter in [*((p, asked) for p in picked), *([(found, in_vain)] if found else [])]:
            for answer in prompt.answers:
                entity = load_bank().read_phrase(prompt.text[answer.start : answer.end]).entity
                if entity is not None and not answer.negated:
                    counter[entity.id] += 1
    for name in ("central_line", "endotracheal_tube", "pneumothorax", "cardiomegaly"):
        assert abs(in_vain[name] / (in_vain[name] + asked[name]) - share) < 0.06, name


def test_a_blank_picture_shows_nothing() -> None:
    rng = np.random.default_rng(2)
    example = Example(np.random.default_rng(0).random((64, 64), np.float32), (shows("left pneumothorax"),))
    for _ in range(6):
        hidden = blank(rng, example)
        assert hidden.prompts[0].answers[0].boxes == () and hidden.image.shape == (64, 64)
        assert float(hidden.image.min()) >= 0 and float(hidden.image.max()) <= 1
