"""The prior-only baseline: where such a phrase usually is, from a table of median boxes. It sees no pixel.

Keys are what the knowledge bank reads in a phrase: its finding, its side and its level. What a model scores above this
table it has from the image.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.geometry import BoxTuple
from grounding.knowledge import KnowledgeBank, PhraseReading, load_bank, read_level, read_side
from grounding.negation import ReportGuard, is_negated
from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestRow
from grounding.types import Box, Finding, Grounding, Image, ModelIdentity, ReportText, ScoredBox, Span

Key = tuple[str | None, str | None, str | None]
"""Finding, side and level, each None where it is not asked for."""

Known = tuple[str, tuple[BoxTuple, ...]]
"""A phrase and its boxes, corners as shares of the picture's width and height."""

TWO_SIDED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PriorTable:
    """Median boxes (corners as shares of the picture) of every key, made by `build_table`."""

    boxes: dict[Key, tuple[BoxTuple, ...]]

    def look_up(self, reading: PhraseReading) -> tuple[BoxTuple, ...]:
        """Boxes of the most telling key of a reading that the table knows; none where the table is empty."""
        return next((self.boxes[key] for key in keys_of(reading) if key in self.boxes), ())


def keys_of(reading: PhraseReading) -> list[Key]:
    """The keys of a reading, the most telling first: finding and place, then less place, then place alone, then all."""
    entity = reading.entity.id if reading.entity else None
    side, level = reading.side, reading.level
    ranked: list[Key] = [
        (entity, side, level), (entity, side, None), (entity, None, level), (entity, None, None),
        (None, side, level), (None, side, None), (None, None, level), (None, None, None),
    ]  # fmt: skip
    return list(dict.fromkeys(ranked))


def build_table(known: Iterable[Known], bank: KnowledgeBank) -> PriorTable:
    """The median boxes of each key over the phrases that have it.

    A phrase with boxes on both sides of the picture's middle is two-sided. Where at least half of a key's phrases are,
    it has two boxes: the medians of the right and of the left ones. Else it has one: the median of the one-sided.
    Boxes of one side are taken together (the smallest box around them) before the median, which is taken of each edge.
    """
    held: dict[Key, list[tuple[BoxTuple | None, BoxTuple | None]]] = defaultdict(list)
    for phrase, boxes in known:
        sides = _enclosing([b for b in boxes if b[0] + b[2] < 1]), _enclosing([b for b in boxes if b[0] + b[2] >= 1])
        for key in keys_of(bank.read_phrase(phrase)) if boxes else ():
            held[key].append(sides)
    return PriorTable({key: _medians(sides) for key, sides in held.items()})


def _enclosing(boxes: Sequence[BoxTuple]) -> BoxTuple | None:
    if not boxes:
        return None
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return (min(x1), min(y1), max(x2), max(y2))


def _medians(sides: Sequence[tuple[BoxTuple | None, BoxTuple | None]]) -> tuple[BoxTuple, ...]:
    both = [(first, second) for first, second in sides if first and second]
    if len(both) >= TWO_SIDED_SHARE * len(sides):
        return _median([first for first, _ in both]), _median([second for _, second in both])
    return (_median([box for first, second in sides if not (first and second) and (box := first or second)]),)


def _median(boxes: Sequence[BoxTuple]) -> BoxTuple:
    x1, y1, x2, y2 = (float(edge) for edge in np.median(np.array(boxes), axis=0))
    return (x1, y1, x2, y2)


def manifest_phrases(rows: Iterable[ManifestRow]) -> list[Known]:
    """The present phrases of a training manifest."""
    return [(row.phrase, _shares(row.boxes, row.width, row.height)) for row in rows if row.present]


def phantom_phrases(seeds: Iterable[int], size: int = 128) -> list[Known]:
    """The present phrases of generated studies; a small `size` is as good, for the boxes are shares."""
    return [(p.phrase, _shares(p.boxes, size, size)) for s in seeds for p in make_study(s, size).phrases if p.present]


def _shares(boxes: Iterable[Box], width: int, height: int) -> tuple[BoxTuple, ...]:
    return tuple((b.x1 / width, b.y1 / height, b.x2 / width, b.y2 / height) for b in boxes)


class PriorPredictor:
    """The table as a predictor, to be scored as a model is. Its scores are always 1: a table has no doubts."""

    def __init__(self, table: PriorTable, bank: KnowledgeBank | None = None) -> None:
        self._table, self._bank = table, bank or load_bank()
        digest = hashlib.sha256(repr(sorted(table.boxes.items(), key=repr)).encode()).hexdigest()
        self._identity = ModelIdentity("prior-only", "1", digest)

    @property
    def identity(self) -> ModelIdentity:
        """`prior-only`, and the digest of the table."""
        return self._identity

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """The names of findings in the report, with the place that their sentence names, in every image.

        A name that the report negates is not looked for, as by the model.
        """
        guard = ReportGuard(report.text)
        findings = []
        for sentence in report.sentences:
            words = report.text[sentence.start : sentence.end]
            for start, end in self._bank.names_in(words):
                source = Span(sentence.start + start, sentence.start + end)
                name = words[start:end]
                reading = PhraseReading(self._bank.read_phrase(name).entity, read_side(words), read_level(words))
                negated = guard.is_negated(sentence, source.start, source.end)
                for number, image in enumerate(images):
                    if not negated or number == 0:
                        findings.append(self._finding(name, source, number, image, None if negated else reading))
        return Grounding(self._identity, tuple(sorted(findings, key=lambda finding: finding.image)))

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> tuple[Finding, ...]:
        """The table's boxes of each of `phrases`, in the size of `image`. A phrase that negates itself has none."""
        readings = [None if is_negated(p, 0, len(p)) else self._bank.read_phrase(p) for p in phrases]
        return tuple(self._finding(p, None, 0, image, r) for p, r in zip(phrases, readings, strict=True))

    def ground_spans(self, image: Image, report: ReportText, spans: Sequence[Span]) -> tuple[Finding, ...]:
        """The table's boxes of the phrases at `spans`: it reads the words there and nothing else."""
        return self.ground_phrases(image, [report.text[span.start : span.end] for span in spans])

    def _finding(
        self, phrase: str, source: Span | None, number: int, image: Image, reading: PhraseReading | None
    ) -> Finding:
        """`reading` is None for a negated phrase."""
        height, width = image.shape
        found = () if reading is None else self._table.look_up(reading)
        boxes = tuple(ScoredBox(Box(x1 * width, y1 * height, x2 * width, y2 * height), 1.0) for x1, y1, x2, y2 in found)
        return Finding(phrase, source, number, boxes, localized=bool(boxes), negated=reading is None)
