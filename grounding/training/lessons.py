"""Reading lessons: sentences without a picture that teach the language model which words are a finding.

Composed from the names in the knowledge bank, with far more varied words around them than generated reports have:
histories, invented words, lists, comparisons. What is uncertain, better or worse is asserted; what is resolved,
removed or unlikely is denied. Words of time ("new", "stable") are no part of a phrase. Boxes are not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grounding.knowledge import KnowledgeBank
from grounding.training.examples import Answer, Prompt

VOCABULARY: dict[str, list[str]] = json.loads(
    (Path(__file__).parent.parent / "knowledge" / "reading.json").read_text(encoding="utf-8")
)
"""Words and sentence frames. In a frame, {x} is an asserted phrase, {b} a short one, {d} a denied one, {c} a word of
change over time, no part of any phrase, and {n} words of no matter."""

SHARES = {
    "assert": 0.26, "uncertain": 0.12, "compare": 0.14, "compound": 0.10, "mixed": 0.08,
    "deny": 0.12, "resolved": 0.06, "neutral": 0.12,
}  # fmt: skip
"""How often a sentence is drawn from each group of frames; they add up to 1."""

DEVICE_FAMILIES = frozenset({"endotracheal", "venous", "gastric", "pacemaker", "drain", "wires"})
"""What has no size or look in a report; families of the knowledge bank."""


@dataclass(slots=True)
class _Draft:
    text: str
    answers: list[Answer]

    def say(self, words: str) -> None:
        self.text += words

    def mark(self, words: str, negated: bool) -> None:
        start = len(self.text)
        self.text += words
        self.answers.append(Answer(start, len(self.text), negated, () if negated else None))


class ReadingLessons:
    """Draws prompts from the bank's names."""

    def __init__(self, bank: KnowledgeBank) -> None:
        self.named = [entity for entity in bank.entities if entity.family != "anatomy"]

    def draw(self, rng: np.random.Generator) -> Prompt:
        """One sentence (now and then two or three) with its phrases."""
        group = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        draft = _Draft("", [])
        parts = _pick(rng, VOCABULARY[group]).split("{")
        draft.say(parts[0])
        for part in parts[1:]:
            slot, rest = part[0], part[2:]
            if slot == "n":
                draft.say(self._noise(rng))
            elif slot == "c":
                draft.say(_pick(rng, VOCABULARY["courses"]))
            else:
                draft.mark(self._phrase(rng, {"x": 0.5, "d": 0.25, "b": 0.1}[slot]), slot == "d")
            draft.say(rest)
        return Prompt(_cased(rng, draft.text), tuple(draft.answers))

    def _phrase(self, rng: np.random.Generator, chance: float) -> str:
        """A name with words of size, look and place, each as likely as `chance` says."""
        entity = self.named[int(rng.integers(len(self.named)))]
        name = _pick(rng, entity.synonyms)
        if " is " in name or " in the " in name:  # a statement, or a name with its own place
            return name
        words = [] if entity.family in DEVICE_FAMILIES else self._adjectives(rng, chance)
        if rng.random() < 0.6 * chance:
            words.append(_pick(rng, VOCABULARY["sides"]))
        if rng.random() < 0.4 * chance:
            words.append(_pick(rng, VOCABULARY["levels"]))
        words.append("area of" if rng.random() < 0.1 * chance else "")
        words.append(name)
        if rng.random() < chance * 0.8:
            words.append(_pick(rng, VOCABULARY["places"]).format(s=_pick(rng, ("left", "right"))))
        return " ".join(word for word in words if word)

    @staticmethod
    def _adjectives(rng: np.random.Generator, chance: float) -> list[str]:
        words = [_pick(rng, VOCABULARY["sizes"])] if rng.random() < chance else []
        if rng.random() < chance:
            words.append(_pick(rng, VOCABULARY["looks"]) if rng.random() < 0.85 else _invented(rng))
        return words

    @staticmethod
    def _noise(rng: np.random.Generator) -> str:
        count = int(rng.integers(1, 9))
        return " ".join(_invented(rng) if rng.random() < 0.2 else _pick(rng, VOCABULARY["words"]) for _ in range(count))


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _invented(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, VOCABULARY["syllables"]) for _ in range(int(rng.integers(2, 5))))


def _cased(rng: np.random.Generator, text: str) -> str:
    """A capital at the start; now and then the whole in capitals. The length stays the same."""
    if rng.random() < 0.05:
        return text.upper()
    return text[:1].upper() + text[1:]
