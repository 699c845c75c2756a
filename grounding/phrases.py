"""What becomes of the phrases that the model copies out: cut-off ones are completed, empty ones left out. Pure.

The model reads words that it was never taught as well as it can; the names in the knowledge bank tell where a phrase
that was closed too early goes on, and that "left", "1" or "heart size" alone name no finding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from grounding.copying import Emission
from grounding.knowledge import KnowledgeBank, words_of

MOST_WORDS_BETWEEN = 2


def settle(text: str, emissions: Sequence[Emission], bank: KnowledgeBank) -> list[Emission]:
    """The emissions of one text, completed and without those that say nothing; in order, and none overlaps another."""
    settled: list[Emission] = []
    for emission in emissions:
        if settled and emission.start < settled[-1].end:
            continue
        whole = complete(text, emission, bank)
        words = text[whole.start : whole.end]
        if bank.read_phrase(words).entity is not None if whole.negated else says_something(words, bank):
            settled.append(whole)
    return settled


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


def says_something(phrase: str, bank: KnowledgeBank) -> bool:
    """Whether a phrase has a word of three letters or more that could name a finding."""
    return any(len(word) > 2 and word not in bank.empty_words for word in words_of(phrase))
