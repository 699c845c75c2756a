"""Reading lessons: sentences without a picture that teach the language model which words are a finding.

Composed from the names in the knowledge bank, with far more varied words around them than generated reports have:
histories, invented words, blanked-out words, lists of denials. Boxes of their findings are not known.
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
"""Words and sentence frames. In a frame, {x} is an asserted phrase, {d} a denied one and {n} words of no matter."""


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
        self.names = [entity.synonyms for entity in bank.entities if entity.family != "anatomy"]

    def draw(self, rng: np.random.Generator) -> Prompt:
        """One sentence (now and then two) with its phrases."""
        kind = rng.random()
        frame = _pick(rng, VOCABULARY["assert" if kind < 0.5 else "deny" if kind < 0.75 else "neutral"])
        draft = _Draft("", [])
        parts = frame.split("{")
        draft.say(parts[0])
        for part in parts[1:]:
            slot, rest = part[0], part[2:]
            if slot == "n":
                draft.say(self._noise(rng))
            else:
                draft.mark(self._phrase(rng, slot == "d"), slot == "d")
            draft.say(rest)
        return Prompt(_cased(rng, draft.text), tuple(draft.answers))

    def _phrase(self, rng: np.random.Generator, plain: bool) -> str:
        names = self.names[int(rng.integers(len(self.names)))]
        side = _pick(rng, ("left", "right"))
        words = []
        chance = 0.25 if plain else 0.5
        if rng.random() < chance:
            words.append(_pick(rng, VOCABULARY["sizes"]))
        if rng.random() < chance:
            words.append(_pick(rng, VOCABULARY["looks"]) if rng.random() < 0.85 else _invented(rng))
        if rng.random() < 0.3:
            words.append(_pick(rng, VOCABULARY["sides"]))
        if rng.random() < 0.2:
            words.append(_pick(rng, VOCABULARY["levels"]))
        words.append("area of" if rng.random() < 0.05 else "")
        words.append(_pick(rng, names))
        if rng.random() < chance * 0.8:
            words.append(_pick(rng, VOCABULARY["places"]).format(s=side))
        return " ".join(word for word in words if word)

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
