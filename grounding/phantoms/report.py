"""Reports for generated radiographs: many phrasings of each drawn finding, denials, hedges and distractors.

A sentence is written with its phrases between marks, and the marks become spans once the whole text stands, so that
every phrase is verbatim at its source. What is denied was never drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grounding.phantoms import words as words
from grounding.phantoms.lesions import AIRSPACE, DEVICE_LABELS, Lesion
from grounding.phantoms.phrases import Noun, chance, name_lesion, pick
from grounding.types import Box, ReportText, Span

OPEN, CLOSE = "\x02", "\x03"


@dataclass(frozen=True, slots=True)
class PhantomPhrase:
    """A diagnostic phrase of a generated report and what is true of it in the picture.

    `boxes` are image pixels; an asserted phrase that was not drawn has `present` False, and so has a negated one.
    """

    phrase: str
    source: Span
    label: str
    boxes: tuple[Box, ...]
    negated: bool
    present: bool


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A generated report: text with sentences, its phrases in order, and the sections as (title, text) in order."""

    report: ReportText
    phrases: tuple[PhantomPhrase, ...]
    sections: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one marked phrase speaks about."""

    label: str
    boxes: tuple[Box, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Sentence:
    """Text with marked phrases, and their claims in order."""

    text: str
    claims: tuple[Claim, ...] = ()


def write_report(rng: np.random.Generator, lesions: Sequence[Lesion]) -> WrittenReport:
    """Write a report about `lesions` (those without boxes are asserted although not in the picture)."""
    return _assemble(rng, _findings(rng, lesions), _impression(rng, lesions))


def _mark(text: str) -> str:
    return f"{OPEN}{text}{CLOSE}"


def _frame(frame: str, noun: Noun, other: Noun | None = None) -> str:
    pieces = {"p": _mark(noun.text), "a": noun.article, "be": "are" if noun.plural else "is"}
    if other is not None:
        pieces |= {"q": _mark(other.text), "b": other.article}
    return frame.format(**pieces)


def _claim(lesion: Lesion) -> Claim:
    return Claim(lesion.label, lesion.boxes)


def _assert_one(rng: np.random.Generator, lesion: Lesion, name_side: bool) -> Sentence:
    noun = name_lesion(rng, lesion, name_side)
    if noun.whole:
        return Sentence(f"{pick(rng, ('The ', ''))}{_mark(noun.text)}.", (_claim(lesion),))
    if lesion.label in DEVICE_LABELS:
        frames: Sequence[str] = words.DEVICE
    else:
        frames = words.HEDGE if chance(rng, 0.12) else words.ASSERT
    return Sentence(_frame(pick(rng, frames), noun), (_claim(lesion),))


def _assert_two(rng: np.random.Generator, first: Lesion, second: Lesion, name_side: bool) -> Sentence | None:
    nouns = name_lesion(rng, first, name_side), name_lesion(rng, second, name_side)
    if any(noun.whole for noun in nouns):
        return None
    return Sentence(_frame(pick(rng, words.PAIR), *nouns), (_claim(first), _claim(second)))


def _asserted(rng: np.random.Generator, lesions: Sequence[Lesion]) -> list[Sentence]:
    """Sentences that name every lesion once, sometimes two in one sentence."""
    name_side = sum(lesion.label in AIRSPACE for lesion in lesions) > 1
    waiting = [lesions[index] for index in rng.permutation(len(lesions))]
    sentences: list[Sentence] = []
    while waiting:
        first = waiting.pop()
        pair = None
        if waiting and not {first.label, waiting[-1].label} & set(DEVICE_LABELS) and chance(rng, 0.25):
            pair = _assert_two(rng, first, waiting[-1], name_side)
        if pair is not None:
            waiting.pop()
        sentences.append(pair or _assert_one(rng, first, name_side))
    return sentences


def _denied(rng: np.random.Generator, lesions: Sequence[Lesion]) -> list[Sentence]:
    """Sentences that deny findings which no lesion could be taken for."""
    stated = {lesion.label for lesion in lesions}
    alike = set(AIRSPACE) | {"nodule", "mass", "atelectasis"}
    free = [label for label in words.DENIED if label not in stated and not (label in alike and stated & alike)]
    sentences: list[Sentence] = []
    if free and chance(rng, 0.75):
        count = min(len(free), int(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25])))
        weights = np.array(
            [3.0 if label in ("pneumothorax", "pleural_effusion", "consolidation") else 1.0 for label in free]
        )
        chosen = [free[i] for i in rng.choice(len(free), count, replace=False, p=weights / weights.sum())]
        side = pick(rng, ("left", "right"))
        names = [pick(rng, words.DENIED[label]).format(side=side) for label in chosen]
        alone = words.DENY_DEVICE if chosen[0] in DEVICE_LABELS else words.DENY_ONE
        frame = pick(rng, (alone, words.DENY_TWO, words.DENY_THREE)[count - 1])
        text = frame.format(be="is", **dict(zip("pqr", map(_mark, names), strict=False)))
        sentences.append(Sentence(text, tuple(Claim(label, negated=True) for label in chosen)))
    if "cardiomegaly" not in stated and chance(rng, 0.4):
        sentences.append(_normal(pick(rng, words.NORMAL_HEART), "cardiomegaly"))
    if not stated & (alike | {"pleural_effusion", "pneumothorax"}) and chance(rng, 0.5):
        sentences.append(_normal(pick(rng, words.CLEAR_LUNGS), "opacity"))
    return sentences


def _normal(frame: str, label: str) -> Sentence:
    return Sentence(frame.replace("[", OPEN).replace("]", CLOSE), (Claim(label, negated=True),))


def _neutral(rng: np.random.Generator) -> list[Sentence]:
    count = int(rng.integers(0, 4))
    return [Sentence(words.NEUTRAL[i]) for i in rng.choice(len(words.NEUTRAL), count, replace=False)]


def _findings(rng: np.random.Generator, lesions: Sequence[Lesion]) -> list[Sentence]:
    sentences = _asserted(rng, lesions) + _denied(rng, lesions) + _neutral(rng)
    return [sentences[index] for index in rng.permutation(len(sentences))] or [Sentence("Limited examination.")]


def _impression(rng: np.random.Generator, lesions: Sequence[Lesion]) -> list[Sentence]:
    if not lesions:
        return [Sentence(pick(rng, words.ALL_CLEAR))]
    count = int(rng.integers(1, len(lesions) + 1))
    chosen = [lesions[index] for index in sorted(rng.choice(len(lesions), count, replace=False))]
    name_side = sum(lesion.label in AIRSPACE for lesion in lesions) > 1
    sentences = [_assert_one(rng, lesion, name_side) for lesion in chosen]
    return sentences + ([Sentence(pick(rng, words.ADVICE))] if chance(rng, 0.3) else [])


def _preamble(rng: np.random.Generator) -> list[tuple[str, str]]:
    sections = []
    stray = pick(rng, words.INDICATION_WORDS)
    if chance(rng, 0.6):
        text = pick(rng, words.INDICATIONS).format(
            x=stray, age=int(rng.integers(19, 95)), sex=pick(rng, ("man", "woman"))
        )
        sections.append((pick(rng, ("INDICATION", "CLINICAL HISTORY", "HISTORY")), text))
    if chance(rng, 0.4):
        sections.append(("TECHNIQUE", pick(rng, words.TECHNIQUES)))
    if chance(rng, 0.4):
        sections.append(("COMPARISON", pick(rng, words.COMPARISONS).format(x=pick(rng, words.INDICATION_WORDS))))
    return sections


class _Draft:
    """A text under way, with the spans of its sentences and phrases."""

    def __init__(self, recase: str) -> None:
        self.text = ""
        self.recase = recase
        self.sentences: list[Span] = []
        self.phrases: list[PhantomPhrase] = []

    def write(self, text: str) -> None:
        self.text += text

    def cased(self, text: str) -> str:
        return {"upper": text.upper(), "lower": text.lower()}.get(self.recase, text)

    def write_sentence(self, sentence: Sentence) -> None:
        """Append a sentence, taking the marks out and keeping where they stood."""
        text = self.cased(_capitalized(sentence.text) if self.recase != "lower" else sentence.text)
        start = len(self.text)
        claims = iter(sentence.claims)
        for part in re.split(f"({OPEN}[^{CLOSE}]*{CLOSE})", text):
            if not part.startswith(OPEN):
                self.text += part
                continue
            source = Span(len(self.text), len(self.text) + len(part) - 2)
            claim = next(claims)
            self.text += part[1:-1]
            self.phrases.append(
                PhantomPhrase(
                    phrase=part[1:-1],
                    source=source,
                    label=claim.label,
                    boxes=claim.boxes,
                    negated=claim.negated,
                    present=bool(claim.boxes),
                )
            )
        self.sentences.append(Span(start, len(self.text)))


def _capitalized(text: str) -> str:
    """First letter in upper case, be it marked or not."""
    at = 1 if text.startswith(OPEN) else 0
    return text[:at] + text[at : at + 1].upper() + text[at + 1 :]


def _assemble(rng: np.random.Generator, findings: list[Sentence], impression: list[Sentence]) -> WrittenReport:
    recase = str(rng.choice(["as is", "upper", "lower"], p=[0.8, 0.1, 0.1]))
    layout = str(rng.choice(["sections", "findings only", "plain"], p=[0.65, 0.2, 0.15]))
    draft = _Draft(recase)
    sections: list[tuple[str, str]] = []
    if layout == "plain":
        _write_sentences(draft, findings, numbered=False)
        sections.append(("FINDINGS", draft.text))
    else:
        for title, text in _preamble(rng):
            sections.append((title, draft.cased(text)))
            draft.write(f"{title}: {draft.cased(text)}\n")
        parts = [("FINDINGS", findings)] + ([("IMPRESSION", impression)] if layout == "sections" else [])
        for title, sentences in parts:
            draft.write(f"{title}: ")
            start = len(draft.text)
            _write_sentences(
                draft, sentences, numbered=title == "IMPRESSION" and len(sentences) > 1 and chance(rng, 0.5)
            )
            sections.append((title, draft.text[start:]))
            draft.write("\n")
    return WrittenReport(ReportText(draft.text, tuple(draft.sentences)), tuple(draft.phrases), tuple(sections))


def _write_sentences(draft: _Draft, sentences: list[Sentence], *, numbered: bool) -> None:
    for index, sentence in enumerate(sentences):
        if index:
            draft.write("\n" if numbered else " ")
        if numbered:
            draft.write(f"{index + 1}. ")
        draft.write_sentence(sentence)
