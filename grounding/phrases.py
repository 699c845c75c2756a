"""What becomes of the phrases that the model copies out: mended, completed, or left out. Pure string work.

The model reads words that it was never taught as well as it can; the names in the knowledge bank tell where a phrase
that was cut goes on, and that "left", "1" or "heart size" alone name no finding. A finding that the radiologist names
is not lost in silence: one that the model denies although no word does so is asserted, and one that it passes over is
taken up, unless the words deny it or only advise or remember.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from grounding.copying import Emission
from grounding.knowledge import KnowledgeBank, words_of
from grounding.negation import is_negated, may_be_denied

MOST_WORDS_BETWEEN = 2

_LOOSE_START = re.compile(r"(?:(?:a|an|and|are|as|but|by|has|have|is|of|or|than|that|the|to|was|were|with)\s+)+", re.I)
_LOOSE_END = re.compile(r"(?:\s+(?:a|an|and|are|as|at|by|for|in|is|of|on|or|than|the|to|was|were|with))+\s*$", re.I)
"""Words that a phrase neither begins nor ends with."""

_NUMBER = re.compile(r"\b\d+(?:[.,]\d+)?(?:\s*x\s*\d+(?:[.,]\d+)?)?\s*-?\s*$", re.I)
_UNIT = re.compile(r"[cm]m\b", re.I)

_PART = (
    r"(?:left|right|bilateral|upper|lower|middle|mid|medial|lateral|apical|basal|basilar|hilar|perihilar|suprahilar|"
    r"infrahilar|retrocardiac|costophrenic|lung|cardiophrenic|pleural|hemi)"
)
_PLACE = (
    r"(?:lungs?|lobes?|zones?|midzones?|bases?|apex|apices|hemithora(?:x|ces)|fields?|sides?|angles?|hilum|hila|"
    r"regions?|lingula|fissures?|bilaterally|(?:left|right)(?=\s*(?:[.,;:)]|$)))"
)
_SIZE = re.compile(r"\s+measuring\s+(?:up to\s+|about\s+)?\d+(?:[.,]\d+)?\s*[cm]m\b", re.I)
_TAIL = re.compile(
    r"(?:\s+(?:in|at|of|within|along|on|over|overlying|involving|throughout)(?:\s+(?:the|both|each|either))*)?"
    rf"(?:[\s-]+{_PART}(?:\s+and\s+(?:the\s+)?{_PART})*)*\s+{_PLACE}\b",
    re.I,
)
"""The place that a finding is said to be in, at once after its name."""

_CUT_PLACE = re.compile(rf"\b{_PART}$", re.I)
_REST_OF_PLACE = re.compile(rf"(?:[\s-]+(?:and\s+)?{_PART})*\s+{_PLACE}\b", re.I)
"""A place that was cut between its words: "in the right lower | and middle lobes"."""

_NEXT_WORDS = re.compile(
    r"(?:[\s-]+(?!(?:a|an|and|any|are|as|at|be|but|by|for|from|has|have|in|is|it|no|not|of|on|or|over|since|than|that|"
    r"the|there|this|to|was|were|which|with|without|within|seen|noted|present|again|xxxx|may|could|can|will|"
    r"(?:appear|remain|suggest|demonstrate|show|represent|reflect)s?)\b)[a-z]{3,}\b){1,2}",
    re.I,
)
"""Words that a phrase without a name may be going on with."""

_BEFORE_NAME = re.compile(
    r"(?:(?:small|large|tiny|moderate|mild|severe|minimal|extensive|trace|marked|subtle|slight|massive|multiple|several|"
    r"scattered|diffuse|focal|moderate-sized|medium-sized|sizable|limited|patchy|hazy|dense|streaky|linear|ill-defined|"
    r"well-defined|rounded|round|calcified|chronic|acute|peripheral|confluent|inhomogeneous|heterogeneous|homogeneous|"
    r"faint|vague|irregular|spiculated|lobulated|loculated|layering|nodular|interstitial|alveolar|multifocal|reticular|"
    r"cavitary|solitary|discrete|simple|masslike|pulmonary|airspace|air space|parenchymal|pleural|left|right|"
    r"left-sided|right-sided|bilateral|bibasilar|bibasal|biapical|upper|lower|middle|mid|lobe|lobar|lung|zone|midzone|apical|basal|"
    r"basilar|hilar|perihilar|suprahilar|infrahilar|retrocardiac|lingular|\d+(?:\.\d+)?\s*[cm]m)[\s-]+)+$",
    re.I,
)
"""Words of size, look and place that belong to the name after them."""

_NORMAL_AFTER = re.compile(
    r"[^.;,]{0,60}?\b(?:normal|unremarkable|within (?:the )?(?:upper )?limits|intact|clear|midline|maintained|"
    r"preserved|negative|well(?!-)|adequate|(?:shows?|showed|demonstrates?|without) (?:no|any)|patent)\b",
    re.I,
)
_BESIDE_THE_POINT = re.compile(
    r"\b(?:recommend\w*|suggest(?:ed)? (?:ct|follow)|advis\w+|correlat\w+|evaluat\w+|assess\w*|exclude|rule out|"
    r"follow[- ]?up|history|h/o|status post|s/p|therapy|treat\w+|reason)\b|"
    r"\b(?:prior|previous(?:ly)?|former)\s+(?:\w+\s+){0,2}$",
    re.I,
)
"""Advice and history, up to a name: it is no statement about the picture."""

_HALF_NAMES = frozenset({"pleural space", "cardiothoracic ratio", "internal jugular", "shadows", "og", "endotracheal"})
"""Names of the bank that say something only in a phrase that the model read."""


def settle(text: str, emissions: Sequence[Emission], bank: KnowledgeBank) -> list[Emission]:
    """The emissions of one text, mended and without those that say nothing; in order, and none overlaps another."""
    settled: list[Emission] = []
    limits = [*(emission.start for emission in emissions[1:]), len(text)]
    for emission, limit in zip(emissions, limits, strict=False):  # no emissions, one limit
        if settled and emission.start < settled[-1].end:
            continue
        whole = hear(text, mend(text, emission, bank, limit), bank)
        if settled and whole.start < settled[-1].end:
            whole = replace(whole, start=emission.start)
        if is_worth_keeping(text, whole, bank):
            settled.append(whole)
    return sorted([*settled, *passed_over(text, settled, bank)], key=lambda emission: emission.start)


def mend(text: str, emission: Emission, bank: KnowledgeBank, limit: int) -> Emission:
    """A phrase without loose words at its ends, completed to its name, its number and its place.

    What is appended as a place ends before `limit`, where the next phrase begins.
    """
    whole = complete(text, trim(text, emission), bank)
    if not bank.names_in(text[whole.start : whole.end]):
        lacks = not whole.negated and says_something(text[whole.start : whole.end], bank)
        rest = _NEXT_WORDS.match(text, whole.end) if lacks else None
        return replace(whole, end=rest.end()) if rest and rest.end() <= limit else whole
    end = _end_of_place(text, whole.start, whole.end, limit)
    number = _NUMBER.search(text, 0, whole.start) if _UNIT.match(text, whole.start) else None
    return replace(whole, start=number.start() if number else whole.start, end=end)


def _end_of_place(text: str, start: int, end: int, limit: int) -> int:
    """Where a phrase ends with the size and the place that follow it, if that is before `limit`."""
    size = _SIZE.match(text, end)
    end = size.end() if size and size.end() <= limit else end
    tail = (_REST_OF_PLACE if _CUT_PLACE.search(text, start, end) else _TAIL).match(text, end)
    return tail.end() if tail and tail.end() <= limit else end


def trim(text: str, emission: Emission) -> Emission:
    """A phrase without articles, conjunctions and verbs of being at its ends, unless nothing else is in it."""
    lead = _LOOSE_START.match(text, emission.start, emission.end)
    start = lead.end() if lead else emission.start
    loose = _LOOSE_END.search(text, start, emission.end)
    end = loose.start() if loose else emission.end
    return replace(emission, start=start, end=end) if start < end else emission


def hear(text: str, emission: Emission, bank: KnowledgeBank) -> Emission:
    """A denied phrase that names a finding is asserted when no word of denial stands in its clause of `text`."""
    if not emission.negated or not bank.names_in(text[emission.start : emission.end]):
        return emission
    return replace(emission, negated=may_be_denied(text, emission.start, emission.end))


def complete(text: str, emission: Emission, bank: KnowledgeBank) -> Emission:
    """A phrase without a name goes on to the next one, when that follows within two words and no sign is between."""
    if bank.names_in(text[emission.start : emission.end]):
        return emission
    following = next(iter(bank.names_in(text[emission.end :])), None)
    if following is None:
        return emission
    between = text[emission.end : emission.end + following[0]]
    if re.search(r"[^\w\s-]", between) or len(words_of(between)) > MOST_WORDS_BETWEEN:
        return emission
    return replace(emission, end=emission.end + following[1])


def is_worth_keeping(text: str, emission: Emission, bank: KnowledgeBank) -> bool:
    """Whether a phrase names something: an asserted one that is called normal names no finding."""
    words = text[emission.start : emission.end]
    if emission.negated:
        known = bank.read_phrase(words).entity is not None
        return known and may_be_denied(text, emission.start, emission.end)
    if not says_something(words, bank):
        return False
    if bank.names_in(words):
        return True
    return not (_NORMAL_AFTER.match(words) or _is_called_normal(text, emission.end, bank))


def says_something(phrase: str, bank: KnowledgeBank) -> bool:
    """Whether a phrase has a word of three letters or more that could name a finding."""
    return any(len(word) > 2 and word not in bank.empty_words for word in words_of(phrase))


def passed_over(text: str, settled: Sequence[Emission], bank: KnowledgeBank) -> list[Emission]:
    """Findings that `text` states by a name of the bank and that no settled phrase holds, with their size and place."""
    found: list[Emission] = []
    for start, end in bank.names_in(text):
        if any(start < other.end and other.start < end for other in [*settled, *found]):
            continue
        if text[start:end].lower() in _HALF_NAMES or not _is_stated(text, start, end, bank):
            continue
        first = max((other.end for other in [*settled, *found] if other.end <= start), default=0)
        limit = min((other.start for other in settled if other.start >= end), default=len(text))
        lead = _BEFORE_NAME.search(text, max(first, start - 120), start)
        found.append(Emission(lead.start() if lead else start, _end_of_place(text, start, end, limit), False))
    return found


def _is_stated(text: str, start: int, end: int, bank: KnowledgeBank) -> bool:
    """Whether the words around a name assert it: they neither deny it nor advise, remember or call it normal."""
    if is_negated(text, start, end) or _is_called_normal(text, end, bank):
        return False
    return _BESIDE_THE_POINT.search(text[max(0, start - 200) : start]) is None


def _is_called_normal(text: str, end: int, bank: KnowledgeBank) -> bool:
    found = _NORMAL_AFTER.match(text, end)
    return found is not None and not bank.names_in(text[end : found.end()])
