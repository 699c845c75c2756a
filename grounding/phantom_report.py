"""Reports for generated radiographs: many phrasings of each drawn finding, denials, hedges and distractors.

A sentence is written with its phrases between marks, and the marks become spans once the whole text stands, so that every
phrase is verbatim at its source. What is denied was never drawn; words of side and level are true when given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from grounding import phantom_words as words
from grounding.lesions import AIRSPACE, DEVICE_LABELS, Lesion
from grounding.types import Box, ReportText, Span

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Noun:
    """A phrase ready for a sentence frame: article and number are known."""

    text: str
    article: str
    plural: bool
    whole: bool = False
    """The phrase is a statement of its own ("heart is enlarged") and takes no frame."""


def write_report(rng: np.random.Generator, lesions: Sequence[Lesion]) -> WrittenReport:
    """Write a report about `lesions` (those without boxes are asserted although not in the picture)."""
    return _assemble(rng, _findings(rng, lesions), _impression(rng, lesions))


# ---------------------------------------------------------------- words


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _name(rng: np.random.Generator, lesion: Lesion, name_side: bool) -> Noun:
    """A noun phrase (or a short statement) for a lesion."""
    special = SPECIAL.get(lesion.label)
    if special is not None and _chance(rng, 0.3):
        noun = special(rng, lesion)
        if noun is not None:
            return noun
    plural = len(lesion.boxes) > 1 or lesion.laterality == "bilateral"
    singular, several = _pick(rng, words.NOUNS[lesion.label])
    core = several if plural else singular
    before, after = _place(rng, lesion, name_side)
    adjectives = _adjectives(rng, lesion, plural)
    text = " ".join(part for part in (*adjectives, before, core, after) if part)
    uncountable = singular in words.MASS_NOUNS or singular == several
    return Noun(text, "" if plural or uncountable else _article(text), plural and singular != several)


def _article(text: str) -> str:
    vowel = text[0].lower() in "aeiou" or text.startswith(("ET", "NG", "8", "11", "18"))
    return "an " if vowel and not text.startswith(("uni", "NG ")) or text.startswith("NG ") else "a "


def _adjectives(rng: np.random.Generator, lesion: Lesion, plural: bool) -> list[str]:
    chosen: list[str] = []
    if lesion.label in ("nodule", "mass") and not plural and _chance(rng, 0.3):
        chosen.append(_pick(rng, (f"{lesion.diameter_cm} cm", f"{round(10 * lesion.diameter_cm)} mm")))
    elif lesion.label in words.SIZED and _chance(rng, 0.5):
        kind = {"cardiomegaly": "degree", "edema": "degree", "consolidation": "area", "opacity": "area"}
        scale = words.SIZES[kind.get(lesion.label, "space")]
        chosen.append(_pick(rng, scale[0 if lesion.extent < 0.33 else 1 if lesion.extent < 0.67 else 2]))
    looks = words.LOOKS.get(lesion.label, ())
    if looks and _chance(rng, 0.35) and not (chosen and lesion.label == "mass"):
        chosen.append(_pick(rng, looks))
    return chosen


def _place(rng: np.random.Generator, lesion: Lesion, name_side: bool) -> tuple[str, str]:
    """Words of place before and after the noun; each may be empty."""
    if lesion.label == "cardiomegaly" or lesion.laterality is None:
        return "", ""
    if not name_side and _chance(rng, 0.25):
        return "", ""
    if lesion.laterality == "bilateral":
        return _both_sides(rng, lesion)
    side = lesion.laterality
    if lesion.label in DEVICE_LABELS:
        return _pick(rng, ((side, ""), (f"{side}-sided", ""), ("", f"on the {side}")))
    if lesion.label == "pneumothorax":
        return _pick(rng, (*([(f"{side} apical", "")] * (2 if lesion.level == "upper" else 0)), (side, ""), (f"{side}-sided", ""), ("", f"on the {side}")))
    if lesion.label == "pleural_effusion":
        return _pick(rng, ((side, ""), (side, ""), (f"{side}-sided", ""), ("", f"on the {side}"), ("", f"at the {side} base")))
    if lesion.level is None or _chance(rng, 0.4):
        return _pick(rng, (("", f"in the {side} lung"), (f"{side} lung", ""), (f"{side}-sided", ""), ("", f"on the {side}"), (side, "")))
    return _pick(rng, _zone(side, lesion.level))


def _zone(side: str, level: str) -> tuple[tuple[str, str], ...]:
    shared = (
        ("", f"in the {side} {level} zone"),
        ("", f"in the {side} {level} lung zone"),
        ("", f"within the {side} {level} lung"),
        (f"{side} {level} zone", ""),
        (f"{side} {level} lung", ""),
        ("", f"in the {level} zone of the {side} lung"),
    )
    if level == "lower":
        return (
            *shared,
            ("", f"at the {side} base"),
            ("", f"at the {side} lung base"),
            (f"{side} basilar", ""),
            (f"{side} lower lobe", ""),
            ("", f"in the {side} lower lobe"),
        )
    if level == "upper":
        return (*shared, (f"{side} upper lobe", ""), ("", f"in the {side} upper lobe"), ("", f"in the upper lobe of the {side} lung"))
    return (*shared, ("", f"in the {side} mid lung"), (f"{side} midzone", ""))


def _both_sides(rng: np.random.Generator, lesion: Lesion) -> tuple[str, str]:
    choices = [("bilateral", ""), ("bilateral", ""), ("", "bilaterally"), ("", "on both sides")]
    if lesion.label != "pleural_effusion":
        choices += [("", "in both lungs"), ("", "in both lung fields")]
    if lesion.level == "lower" or lesion.label == "pleural_effusion":
        choices += [("bibasilar", ""), ("", "at both lung bases")]
    return _pick(rng, choices)


def _heart_words(rng: np.random.Generator, lesion: Lesion) -> Noun | None:
    grade = _pick(rng, (("mildly", "slightly"), ("moderately",), ("markedly", "severely"))[min(2, int(3 * (lesion.extent - 0.56) / 0.16))] if lesion.boxes else ("mildly",))
    subject = _pick(rng, ("heart", "cardiac silhouette", "heart size", "cardiomediastinal silhouette"))
    verb = "increased" if subject == "heart size" else "enlarged"
    return Noun(f"{subject} is {_pick(rng, ('', grade + ' '))}{verb}", "", False, whole=True)


def _effusion_words(rng: np.random.Generator, lesion: Lesion) -> Noun | None:
    if lesion.laterality not in ("left", "right"):
        return None
    angle = f"{lesion.laterality} costophrenic angle"
    size = "small" if lesion.extent < 0.4 else "moderate" if lesion.extent < 0.75 else "large"
    forms = (
        Noun(f"blunting of the {angle}", "", False),
        Noun(f"blunting of the {angle} consistent with a {size} pleural effusion", "", False),
        Noun(f"blunted {angle}", "a ", False),
        Noun(f"{angle} is blunted", "", False, whole=True),
        Noun(f"obscuration of the {angle}", "", False),
        Noun(f"fluid in the {lesion.laterality} pleural space", "", False),
    )
    return _pick(rng, forms)


def _round_words(rng: np.random.Generator, lesion: Lesion) -> Noun | None:
    before, after = _place(rng, lesion, name_side=True)
    look = _pick(rng, words.LOOKS[lesion.label])
    noun = _pick(rng, words.NOUNS[lesion.label])[0]
    size = _pick(rng, (f"{lesion.diameter_cm} cm", f"{round(10 * lesion.diameter_cm)} mm"))
    text = " ".join(part for part in (look, before, noun, f"measuring {size}", after) if part)
    return Noun(text, _article(text), False)


SPECIAL = {
    "cardiomegaly": _heart_words,
    "pleural_effusion": _effusion_words,
    "nodule": _round_words,
    "mass": _round_words,
}


# ---------------------------------------------------------------- sentences


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
    noun = _name(rng, lesion, name_side)
    if noun.whole:
        return Sentence(f"{_pick(rng, ('The ', ''))}{_mark(noun.text)}.", (_claim(lesion),))
    if lesion.label in DEVICE_LABELS:
        frames: Sequence[str] = words.DEVICE
    else:
        frames = words.HEDGE if _chance(rng, 0.12) else words.ASSERT
    return Sentence(_frame(_pick(rng, frames), noun), (_claim(lesion),))


def _assert_two(rng: np.random.Generator, first: Lesion, second: Lesion, name_side: bool) -> Sentence | None:
    nouns = _name(rng, first, name_side), _name(rng, second, name_side)
    if any(noun.whole for noun in nouns):
        return None
    return Sentence(_frame(_pick(rng, words.PAIR), *nouns), (_claim(first), _claim(second)))


def _asserted(rng: np.random.Generator, lesions: Sequence[Lesion]) -> list[Sentence]:
    """Sentences that name every lesion once, sometimes two in one sentence."""
    name_side = sum(lesion.label in AIRSPACE for lesion in lesions) > 1
    waiting = [lesions[index] for index in rng.permutation(len(lesions))]
    sentences: list[Sentence] = []
    while waiting:
        first = waiting.pop()
        pair = None
        if waiting and not {first.label, waiting[-1].label} & set(DEVICE_LABELS) and _chance(rng, 0.25):
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
    if free and _chance(rng, 0.75):
        count = min(len(free), int(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25])))
        weights = np.array([3.0 if label in ("pneumothorax", "pleural_effusion", "consolidation") else 1.0 for label in free])
        chosen = [free[i] for i in rng.choice(len(free), count, replace=False, p=weights / weights.sum())]
        side = _pick(rng, ("left", "right"))
        names = [_pick(rng, words.DENIED[label]).format(side=side) for label in chosen]
        frame = _pick(rng, (words.DENY_ONE, words.DENY_TWO, words.DENY_THREE)[count - 1])
        text = frame.format(be="is", **dict(zip("pqr", map(_mark, names), strict=False)))
        sentences.append(Sentence(text, tuple(Claim(label, negated=True) for label in chosen)))
    if "cardiomegaly" not in stated and _chance(rng, 0.4):
        sentences.append(_normal(_pick(rng, words.NORMAL_HEART), "cardiomegaly"))
    if not stated & (alike | {"pleural_effusion", "pneumothorax"}) and _chance(rng, 0.5):
        sentences.append(_normal(_pick(rng, words.CLEAR_LUNGS), "opacity"))
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
        return [Sentence(_pick(rng, words.ALL_CLEAR))]
    count = int(rng.integers(1, len(lesions) + 1))
    chosen = [lesions[index] for index in sorted(rng.choice(len(lesions), count, replace=False))]
    name_side = sum(lesion.label in AIRSPACE for lesion in lesions) > 1
    sentences = [_assert_one(rng, lesion, name_side) for lesion in chosen]
    return sentences + ([Sentence(_pick(rng, words.ADVICE))] if _chance(rng, 0.3) else [])


# ---------------------------------------------------------------- text


def _preamble(rng: np.random.Generator) -> list[tuple[str, str]]:
    sections = []
    stray = _pick(rng, words.INDICATION_WORDS)
    if _chance(rng, 0.6):
        text = _pick(rng, words.INDICATIONS).format(x=stray, age=int(rng.integers(19, 95)), sex=_pick(rng, ("man", "woman")))
        sections.append((_pick(rng, ("INDICATION", "CLINICAL HISTORY", "HISTORY")), text))
    if _chance(rng, 0.4):
        sections.append(("TECHNIQUE", _pick(rng, words.TECHNIQUES)))
    if _chance(rng, 0.4):
        sections.append(("COMPARISON", _pick(rng, words.COMPARISONS).format(x=_pick(rng, words.INDICATION_WORDS))))
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
            _write_sentences(draft, sentences, numbered=title == "IMPRESSION" and len(sentences) > 1 and _chance(rng, 0.5))
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


def absent(lesion: Lesion) -> Lesion:
    """The same words without anything drawn."""
    return replace(lesion, boxes=())
