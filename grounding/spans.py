"""Where in a report a phrase stands, whatever words it was given in: exactly, or by the words that it shares.

A generated phrase that the report does not support has no place, and is dropped and counted by who asked. Only words
are compared: no synonym, no abbreviation and no other side, level or number than the report's is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from grounding.knowledge import LEVEL_WORDS, SIDE_WORDS
from grounding.text import split_sentences
from grounding.types import Span

SUPPORT = 0.6
"""The share of a phrase's content words that a place must have, and the least similarity of a place."""

LONGEST = 64
"""Words of the longest phrase that is compared word by word; a longer one is only found exactly."""

_NEAR = 4
"""Words at each side of a place that may say something else of it: "right" before "pleural effusion"."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\d+(?:[.,]\d+)*|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
_ENDINGS = (("ies", "y"), ("aces", "ax"), ("ases", "asis"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", ""))
_FUNCTION = frozenset(
    {"a", "an", "and", "any", "are", "as", "at", "be", "been", "by", "can", "did", "do", "does", "for", "from",
     "had", "has", "have", "in", "is", "it", "its", "may", "no", "not", "of", "on", "or", "so", "some", "than",
     "that", "the", "there", "these", "this", "those", "to", "was", "were", "which", "with", "within"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alignment:
    """A phrase's place in a text. `exact`: word for word, whatever the case, blanks and hyphens.

    `similarity` is the F1 of the content words of phrase and place, 1 for an exact one.
    """

    span: Span
    exact: bool
    similarity: float


class _Word(NamedTuple):
    text: str
    start: int
    end: int

    @property
    def is_content(self) -> bool:
        return self.text not in _FUNCTION


def align(phrase: str, text: str, sentences: Sequence[Span] | None = None) -> Alignment | None:
    """The place in `text` that supports `phrase`, the first of the best; None where nothing does.

    A place lies in one of `sentences`, by default those of the text. The time grows with the length of the text.
    """
    wanted = _words(phrase, 0, len(phrase))
    if not wanted:
        return None
    spans = split_sentences(text, 0, len(text)) if sentences is None else sentences
    exact = _find_exact(wanted, text, spans if sentences is not None else [Span(0, len(text))])
    if exact is not None:
        return Alignment(exact, exact=True, similarity=1.0)
    if len(wanted) > LONGEST or not any(word.is_content for word in wanted):
        return None
    best: Alignment | None = None
    for span in spans:
        best = _best_place(wanted, _words(text, span.start, span.end), best)
    return best


def _words(text: str, start: int, end: int) -> list[_Word]:
    return [_Word(found[0].lower(), *found.span()) for found in _WORD.finditer(text, start, end)]


def _stem(word: str) -> str:
    """A word without its plural or adverb ending; words of four letters and less stay as they are."""
    if len(word) <= 4:
        return word
    if word.endswith("ally"):
        return word[:-2]
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and not word.endswith(("ss", "sis", "us")):
            return word[: -len(ending)] + instead
    return word


# ---- exact -----------------------------------------------------------------------------------------------------------


def _find_exact(wanted: Sequence[_Word], text: str, spans: Sequence[Span]) -> Span | None:
    """The first place with the same letters in whole words; between two words a blank or hyphen may be or not be."""
    key = "".join(map(_letters, wanted))
    for span in spans:
        words = _words(text, span.start, span.end)
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        letters, length = [], 0
        for word in words:
            starts[length] = word.start
            letters.append(_letters(word))
            length += len(letters[-1])
            ends[length] = word.end
        whole = "".join(letters)
        at = whole.find(key)
        while at >= 0:
            if at in starts and at + len(key) in ends:
                return Span(starts[at], ends[at + len(key)])
            at = whole.find(key, at + 1)
    return None


def _letters(word: _Word) -> str:
    """Numbers stand apart, so that "1 5" is not 15."""
    return f"|{word.text}|" if word.text[0].isdigit() else word.text


# ---- by shared words -------------------------------------------------------------------------------------------------


def _best_place(wanted: Sequence[_Word], words: Sequence[_Word], best: Alignment | None) -> Alignment | None:
    """The place in one sentence that supports a phrase better than `best` does, or `best`."""
    size = sum(word.is_content for word in wanted)
    for first, last, shared, content in _windows(wanted, words):
        similarity = 2 * shared / (size + content)
        floor = SUPPORT if best is None else best.similarity + 1e-9
        if similarity < floor or shared < SUPPORT * size:
            continue
        near = words[max(0, first - _NEAR) : last + 1 + _NEAR]
        if not _contradicts([word.text for word in wanted], [word.text for word in near]):
            best = Alignment(Span(words[first].start, words[last].end), exact=False, similarity=similarity)
    return best


def _windows(wanted: Sequence[_Word], words: Sequence[_Word]) -> Iterator[tuple[int, int, int, int]]:
    """Runs [first, last] of words that begin and end with one of the phrase, content words shared and in all."""
    need = Counter(_stem(word.text) for word in wanted if word.is_content)
    stems = [_stem(word.text) for word in words]
    hits = [index for index, word in enumerate(words) if word.is_content and stems[index] in need]
    for number, first in enumerate(hits):
        held: Counter[str] = Counter()
        shared = content = 0
        last = first - 1
        for hit in hits[number:]:
            if hit - first >= 2 * len(wanted) + 2:
                break
            content += sum(word.is_content for word in words[last + 1 : hit + 1])
            held[stems[hit]] += 1
            shared += held[stems[hit]] <= need[stems[hit]]
            last = hit
            yield first, last, shared, content


def _contradicts(wanted: Sequence[str], near: Sequence[str]) -> bool:
    """Whether a phrase names a side, level or number while the words near a place name only others of its kind."""
    for kind in (_sides, _levels, _numbers):
        said, there = kind(wanted), kind(near)
        if said and there and not said <= there:
            return True
    return False


def _sides(words: Sequence[str]) -> set[str]:
    sides = {SIDE_WORDS[word] for word in words if word in SIDE_WORDS}
    return {"left", "right"} if "bilateral" in sides else {str(side) for side in sides}


def _levels(words: Sequence[str]) -> set[str]:
    return {str(LEVEL_WORDS[word]) for word in words if word in LEVEL_WORDS}


def _numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word[0].isdigit()}
