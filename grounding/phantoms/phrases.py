"""Noun phrases of generated reports: how a drawn finding may be called, with its size, look and place.

Words of side and level are true whenever they are given, and often left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from grounding.phantoms import words as words
from grounding.phantoms.lesions import DEVICE_LABELS, Lesion

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noun:
    """A phrase ready for a sentence frame: article and number are known."""

    text: str
    article: str
    plural: bool
    whole: bool = False
    """The phrase is a statement of its own ("heart is enlarged") and takes no frame."""


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with `probability`."""
    return bool(rng.random() < probability)


def name_lesion(rng: np.random.Generator, lesion: Lesion, name_side: bool) -> Noun:
    """A noun phrase (or a short statement) for a lesion."""
    special = SPECIAL.get(lesion.label)
    if special is not None and chance(rng, 0.3):
        noun = special(rng, lesion)
        if noun is not None:
            return noun
    plural = len(lesion.boxes) > 1 or lesion.laterality == "bilateral"
    singular, several = pick(rng, words.NOUNS[lesion.label])
    core = several if plural else singular
    before, after = _place(rng, lesion, name_side)
    adjectives = _adjectives(rng, lesion, plural)
    if core.startswith(("enlarged", "increased")):
        adjectives = [_ADVERBS[word] for word in adjectives]
    text = " ".join(part for part in (*adjectives, before, core, after) if part)
    uncountable = singular in words.MASS_NOUNS or singular == several
    return Noun(text, "" if plural or uncountable else _article(text), plural and singular != several)


_ADVERBS = {word: f"{word}ly" for grade in words.SIZES["degree"] for word in grade}


def _article(text: str) -> str:
    """Indefinite article by sound: "an ET tube", "an 8 mm nodule", but "a uniform opacity"."""
    vowel = re.match(r"[aeio]|u(?!ni)|NG|8|11\b|18\b", text, re.IGNORECASE)
    return "an " if vowel else "a "


def _adjectives(rng: np.random.Generator, lesion: Lesion, plural: bool) -> list[str]:
    chosen: list[str] = []
    if lesion.label in ("nodule", "mass") and not plural and chance(rng, 0.3):
        chosen.append(pick(rng, (f"{lesion.diameter_cm} cm", f"{round(10 * lesion.diameter_cm)} mm")))
    elif lesion.label in words.SIZED and chance(rng, 0.5):
        kind = {"cardiomegaly": "degree", "edema": "degree", "consolidation": "area", "opacity": "area"}
        scale = words.SIZES[kind.get(lesion.label, "space")]
        chosen.append(pick(rng, scale[0 if lesion.extent < 0.33 else 1 if lesion.extent < 0.67 else 2]))
    looks = words.LOOKS.get(lesion.label, ())
    if looks and chance(rng, 0.35) and not (chosen and lesion.label == "mass"):
        chosen.append(pick(rng, looks))
    return chosen


def _place(rng: np.random.Generator, lesion: Lesion, name_side: bool) -> tuple[str, str]:
    """Words of place before and after the noun; each may be empty."""
    if lesion.label == "cardiomegaly" or lesion.laterality is None:
        return "", ""
    if not name_side and chance(rng, 0.25):
        return "", ""
    if lesion.laterality == "bilateral":
        return _both_sides(rng, lesion)
    side = lesion.laterality
    if lesion.label in DEVICE_LABELS:
        return pick(rng, ((side, ""), (f"{side}-sided", ""), ("", f"on the {side}")))
    if lesion.label == "pneumothorax":
        return pick(
            rng,
            (
                *([(f"{side} apical", "")] * (2 if lesion.level == "upper" else 0)),
                (side, ""),
                (f"{side}-sided", ""),
                ("", f"on the {side}"),
            ),
        )
    if lesion.label == "pleural_effusion":
        return pick(
            rng, ((side, ""), (side, ""), (f"{side}-sided", ""), ("", f"on the {side}"), ("", f"at the {side} base"))
        )
    if lesion.level is None or chance(rng, 0.4):
        return pick(
            rng,
            (
                ("", f"in the {side} lung"),
                (f"{side} lung", ""),
                (f"{side}-sided", ""),
                ("", f"on the {side}"),
                (side, ""),
            ),
        )
    return pick(rng, _zone(side, lesion.level))


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
        return (
            *shared,
            (f"{side} upper lobe", ""),
            ("", f"in the {side} upper lobe"),
            ("", f"in the upper lobe of the {side} lung"),
        )
    return (*shared, ("", f"in the {side} mid lung"), (f"{side} midzone", ""))


def _both_sides(rng: np.random.Generator, lesion: Lesion) -> tuple[str, str]:
    choices = [("bilateral", ""), ("bilateral", ""), ("", "bilaterally"), ("", "on both sides")]
    if lesion.label != "pleural_effusion":
        choices += [("", "in both lungs"), ("", "in both lung fields")]
    if lesion.level == "lower" or lesion.label == "pleural_effusion":
        choices += [("bibasilar", ""), ("", "at both lung bases")]
    return pick(rng, choices)


def _heart_words(rng: np.random.Generator, lesion: Lesion) -> Noun | None:
    grades = (("mildly ", "slightly "), ("moderately ",), ("markedly ", "severely "))[min(2, int(3 * lesion.extent))]
    subject = pick(rng, ("heart", "cardiac silhouette", "heart size", "cardiomediastinal silhouette"))
    verb = "increased" if subject == "heart size" else "enlarged"
    return Noun(f"{subject} is {pick(rng, ('', *grades))}{verb}", "", False, whole=True)


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
    return pick(rng, forms)


def _round_words(rng: np.random.Generator, lesion: Lesion) -> Noun | None:
    before, after = _place(rng, lesion, name_side=True)
    look = pick(rng, words.LOOKS[lesion.label])
    noun = pick(rng, words.NOUNS[lesion.label])[0]
    size = pick(rng, (f"{lesion.diameter_cm} cm", f"{round(10 * lesion.diameter_cm)} mm"))
    text = " ".join(part for part in (look, before, noun, f"measuring {size}", after) if part)
    return Noun(text, _article(text), False)


SPECIAL = {
    "cardiomegaly": _heart_words,
    "pleural_effusion": _effusion_words,
    "nodule": _round_words,
    "mass": _round_words,
}
