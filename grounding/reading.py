"""Phrases as they were read out of a report: where each stands, what is denied, which texts to force them in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grounding.copying import Emission
from grounding.negation import ReportGuard
from grounding.types import ReportText, Span


@dataclass(frozen=True, slots=True)
class ReadPhrase:
    """A phrase that was read out of a text: its words, its place in the report, and whether it is negated."""

    phrase: str
    source: Span | None
    negated: bool


def forced_rows(spans: Sequence[Span], pieces: Sequence[Span]) -> list[tuple[Span, list[int]]]:
    """Texts to force phrases in, each (place in the report, indices of its spans in order of the text).

    The phrases of a piece stand in one text, as the model would copy them; one that overlaps another, in another.
    """
    rows: list[tuple[Span, list[int]]] = []
    for i in sorted(range(len(spans)), key=lambda index: spans[index].start):
        span = spans[i]
        piece = next((p for p in pieces if p.start <= span.start and span.end <= p.end), span)
        row = next((held for p, held in rows if p == piece and spans[held[-1]].end <= span.start), None)
        if row is None:
            rows.append((piece, [i]))
        else:
            row.append(i)
    return rows


def read_span(report: ReportText, span: Span, guard: ReportGuard) -> ReadPhrase:
    """The phrase that stands at `span` of a report."""
    sentence = next((s for s in report.sentences if s.start <= span.start and span.end <= s.end), span)
    negated = guard.is_negated(sentence, span.start, span.end)
    return ReadPhrase(report.text[span.start : span.end], span, negated)


def read_phrases(
    text: str, pieces: Sequence[tuple[Span, Span]], answers: Sequence[Sequence[Emission]]
) -> list[ReadPhrase]:
    """The phrases that were read in the pieces of a report's `text`, each given as (its sentence, the piece)."""
    guard = ReportGuard(text)
    phrases = []
    for (sentence, piece), emissions in zip(pieces, answers, strict=True):
        for emission in emissions:
            start, end = piece.start + emission.start, piece.start + emission.end
            negated = emission.negated or guard.is_negated(sentence, start, end)
            phrases.append(ReadPhrase(text[start:end], Span(start, end), negated))
    return phrases


def first_of_each(phrases: Sequence[ReadPhrase]) -> list[int]:
    """Indices of the phrases to report: the first of those that say the same in the same words."""
    seen: dict[tuple[str, bool], int] = {}
    for index, phrase in enumerate(phrases):
        seen.setdefault((" ".join(phrase.phrase.lower().split()), phrase.negated), index)
    return sorted(seen.values())
