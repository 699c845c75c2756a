"""The knowledge bank: what findings are called, where they usually are and how they look. Data, not code.

`KnowledgeBank` reads the versioned JSON in knowledge/; `read_phrase` decides entity, side and level of a phrase from
its words alone. Rows of the bank are (entity, location) pairs. Nothing here imports torch or sees an image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grounding.geometry import BoxTuple, box_map
from grounding.types import Concept, Laterality, ModelError, Site

BANK_PATH = Path(__file__).parent / "knowledge" / "bank.json"
MAP_SOFTNESS = 0.03

Level = Literal["upper", "middle", "lower"]

SIDE_WORDS: dict[str, Laterality] = {
    "left": "left", "lt": "left", "right": "right", "rt": "right", "bilateral": "bilateral", "bilaterally": "bilateral",
    "both": "bilateral", "bibasilar": "bilateral", "bibasal": "bilateral", "biapical": "bilateral",
    "bihilar": "bilateral", "lingula": "left", "lingular": "left", "retrocardiac": "left",
}  # fmt: skip
LEVEL_WORDS: dict[str, Level] = {
    "upper": "upper", "apical": "upper", "apex": "upper", "apices": "upper", "biapical": "upper", "top": "upper",
    "middle": "middle", "mid": "middle", "perihilar": "middle", "hilar": "middle", "hilum": "middle",
    "lingula": "middle", "lingular": "middle", "bottom": "lower", "lower": "lower", "base": "lower", "bases": "lower",
    "basal": "lower", "basilar": "lower", "bibasilar": "lower", "bibasal": "lower", "costophrenic": "lower",
    "retrocardiac": "lower",
}  # fmt: skip
UNPAIRED = frozenset(
    {"heart", "mediastinum", "aorta", "hernia", "endotracheal", "venous", "gastric", "pacemaker", "wires", "diaphragm"}
)
"""Families of what lies in the midline or on one side alone: in a mirror it is somewhere else than in any patient."""

PAIRED_ANATOMY = "lung"
"""The entity of the family anatomy that is on both sides."""

_SIDE = re.compile(r"\b(?:left|right|lt|rt)\b", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "lt": "rt", "rt": "lt"}


@dataclass(frozen=True, slots=True)
class Entity:
    """A finding, device or structure: `family` names entities that look alike on a radiograph.

    `concept` is its code, which those of its `synonyms` that are `uncoded` do not have: they say less, or something
    that only looks alike.
    """

    id: str
    meaning: str
    synonyms: tuple[str, ...]
    attributes: Mapping[str, str]
    family: str
    locations: Mapping[str, float]
    concept: Concept | None
    site: Concept | None
    uncoded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Location:
    """A named place: its side and level, and its boxes as normalised corners (image left = patient right)."""

    id: str
    side: Laterality | None
    level: Level | None
    boxes: tuple[BoxTuple, ...]
    concept: Concept | None


@dataclass(frozen=True, slots=True)
class Row:
    """One entity at one location, with P(location | entity)."""

    entity: Entity
    location: Location
    probability: float

    @property
    def text(self) -> str:
        """What a text encoder reads: the entity, how it looks and where."""
        look = " ".join(self.entity.attributes.values())
        return f"{self.entity.synonyms[0]} located at {self.location.id} {look}"


@dataclass(frozen=True, slots=True)
class PhraseReading:
    """What the words of a phrase say: its entity if the bank knows one, by which name, side and level if named."""

    entity: Entity | None
    side: Laterality | None
    level: Level | None
    name: str | None = None

    @property
    def concept(self) -> Concept | None:
        """The code of the finding; None where the name that was used does not say so much."""
        return self.entity.concept if self.entity and self.name not in self.entity.uncoded else None


@dataclass(frozen=True)
class KnowledgeBank:
    """Entities, locations and their rows, with `sha256` of the content that the model depends on.

    `empty_words` name no finding, alone or together: words of place, size and function.
    """

    version: str
    entities: tuple[Entity, ...]
    locations: tuple[Location, ...]
    rows: tuple[Row, ...]
    sha256: str
    empty_words: frozenset[str]

    def entity(self, entity_id: str) -> Entity | None:
        """The entity of this id, or None."""
        return next((entity for entity in self.entities if entity.id == entity_id), None)

    @cached_property
    def _pattern(self) -> tuple[re.Pattern[str], dict[str, Entity]]:
        by_name = {name: entity for entity in self.entities for name in entity.synonyms}
        longest_first = sorted(by_name, key=len, reverse=True)
        return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b"), by_name

    def names_in(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of the names of findings and devices (not of anatomy) in a text, in order."""
        pattern, by_name = self._pattern
        return [m.span() for m in pattern.finditer(text.lower()) if by_name[m.group()].family != "anatomy"]

    def read_phrase(self, phrase: str) -> PhraseReading:
        """Entity (the longest name found; the first of equals), side and level of a phrase."""
        text = phrase.lower()
        pattern, by_name = self._pattern
        names = [match.group() for match in pattern.finditer(text)]
        specific = [name for name in names if by_name[name].family != "anatomy"]
        name = max(specific or names, key=len, default=None)
        return PhraseReading(by_name[name] if name else None, read_side(text), read_level(text), name)

    def has_mirror(self, phrase: str) -> bool:
        """Whether a phrase says the same of a mirrored picture once left and right are swapped in it."""
        reading = self.read_phrase(phrase)
        entity = reading.entity
        if entity is None or entity.family in UNPAIRED or (entity.family == "anatomy" and entity.id != PAIRED_ANATOMY):
            return False
        swapped = read_side(swap_sides(phrase))
        return swapped == {"left": "right", "right": "left"}.get(reading.side or "", reading.side)

    def site(self, reading: PhraseReading) -> Site | None:
        """Coded place of a reading: the zone of the lung where the words name one, else the entity's usual site."""
        concept = reading.entity.site if reading.entity else None
        if reading.level and (concept is None or concept == self._lung):
            zone = next((x for x in self.locations if x.id == f"right {reading.level} zone"), None)
            concept = zone.concept if zone and zone.concept else concept
        return Site(concept, reading.side) if concept else None

    @cached_property
    def _lung(self) -> Concept | None:
        return next((x.concept for x in self.locations if x.id == "right lung"), None)

    def log_prior(self, phrase: str) -> NDArray[np.float32]:
        """float32[M]: log-probability of each row for the phrase; 0 throughout when no entity is recognised."""
        reading = self.read_phrase(phrase)
        prior = np.zeros(len(self.rows), np.float32)
        for index, row in enumerate(self.rows):
            if reading.entity is not None:
                same = row.entity.id == reading.entity.id
                prior[index] = np.log((row.probability if same else 0.0) + 1e-3)
            prior[index] += place_bonus(reading, row.location)
        return prior

    def entity_mask(self, phrase: str) -> NDArray[np.bool_]:
        """bool[M]: rows whose entity is the phrase's; all rows when no entity is recognised."""
        entity = self.read_phrase(phrase).entity
        return np.array([entity is None or row.entity.id == entity.id for row in self.rows])

    def maps(self, size: int) -> NDArray[np.float32]:
        """float32[M, size, size]: soft-edged prior map of each row's location."""
        return np.stack([box_map(row.location.boxes, size, MAP_SOFTNESS) for row in self.rows])

    def main_boxes(self) -> NDArray[np.float32]:
        """float32[M, 4]: corners of each row's first prior box."""
        return np.array([row.location.boxes[0] for row in self.rows], np.float32)


def place_bonus(reading: PhraseReading, location: Location) -> float:
    """+1 for each agreeing word of place, -2 for a contradicted side."""
    bonus = 0.0
    if reading.side and location.side:
        opposite = {reading.side, location.side} == {"left", "right"}
        bonus += 1.0 if reading.side == location.side else (-2.0 if opposite else 0.0)
    if reading.level and reading.level == location.level:
        bonus += 1.0
    return bonus


def words_of(text: str) -> list[str]:
    """Lower-case words; a hyphen parts words ("right-sided" has the word "right")."""
    return re.findall(r"[a-z]+", text.lower())


def read_side(text: str) -> Laterality | None:
    """The side that the words name; left and right together are bilateral."""
    sides = {SIDE_WORDS[word] for word in words_of(text) if word in SIDE_WORDS}
    if not sides:
        return None
    return next(iter(sides)) if len(sides) == 1 else "bilateral"


def swap_sides(text: str) -> str:
    """Left for right and right for left, whole words; upper and lower case stay as they are."""
    return _SIDE.sub(lambda found: _in_case_of(found[0], _OTHER[found[0].lower()]), text)


def _in_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def read_level(text: str) -> Level | None:
    """The level of the lung that the words name, if they name exactly one."""
    levels = {LEVEL_WORDS[word] for word in words_of(text) if word in LEVEL_WORDS}
    return next(iter(levels)) if len(levels) == 1 else None


def _concept(code: Mapping[str, str] | None) -> Concept | None:
    return Concept(code["value"], code["scheme"], code["meaning"]) if code else None


def parse_bank(content: Mapping[str, Any]) -> KnowledgeBank:
    """Build a bank from its JSON; a location that no table names raises ModelError."""
    locations = {
        name: Location(name, e["side"], e["level"], tuple(tuple(b) for b in e["boxes"]), _concept(e["code"]))
        for name, e in content["locations"].items()
    }
    entities = tuple(
        Entity(
            e["id"],
            e["meaning"],
            tuple(e["synonyms"]),
            e["attributes"],
            e["family"],
            e["locations"],
            _concept(e.get("code")),
            _concept(e.get("site")),
            frozenset(e.get("uncoded", ())),
        )
        for e in content["entities"]
    )
    unknown = {place for e in entities for place in e.locations} - set(locations)
    if unknown:
        raise ModelError(f"knowledge bank: no location is called {sorted(unknown)}; add it or correct the name")
    rows = tuple(Row(e, locations[place], p) for e in entities for place, p in e.locations.items())
    digest = hashlib.sha256(
        json.dumps([[row.text, row.probability, row.location.boxes] for row in rows]).encode()
    ).hexdigest()
    empty = frozenset({*content["empty_words"], *SIDE_WORDS, *LEVEL_WORDS})
    return KnowledgeBank(content["version"], entities, tuple(locations.values()), rows, digest, empty)


@lru_cache(maxsize=4)
def load_bank(path: Path = BANK_PATH) -> KnowledgeBank:
    """Read a bank; a missing or damaged file raises ModelError naming it."""
    try:
        return parse_bank(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"knowledge bank {path} cannot be read ({error}); restore it from the repository") from error
