"""What the page of a job shows of its report and its films: marked text, numbered boxes, what was not localised. Pure.

Boxes and their numbers are chosen as for SR and GSPS (`results.values.select_marks`), so that all say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from dicom_node.orientation import Orientation
from dicom_node.results.values import Mark, Remark, select_marks
from grounding.types import Finding, Span

Kind = Literal["grounded", "missing", "negated"]
"""Of a phrase: it has a box; it was looked for and not localised; the report denies it."""

COLOURS = 8
"""So many colours boxes have in turn; the style sheet names them."""

_STRENGTH: Mapping[Kind, int] = {"grounded": 2, "missing": 1, "negated": 0}


@dataclass(frozen=True, slots=True)
class ShownBox:
    """A box in pixels of its image as stored; `score` in [0, 1]."""

    number: int
    image: int
    left: float
    top: float
    width: float
    height: float
    score: float
    on_other_side: bool

    @property
    def colour(self) -> int:
        """Which of the colours it is drawn in, from 1."""
        return (self.number - 1) % COLOURS + 1


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A phrase with what the model said of it; `why` says why it has no box, `boxes` are on all images."""

    number: int
    phrase: str
    kind: Kind
    meaning: str
    site: str
    why: str
    boxes: tuple[ShownBox, ...]
    uncertainty: float | None
    source: Span | None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of the report's text; `kind` and `findings` (their numbers) where it is a phrase."""

    text: str
    kind: Kind | None = None
    findings: tuple[int, ...] = ()


def show_findings(
    findings: Sequence[Finding],
    sizes: Mapping[int, tuple[int, int]],
    orientations: Mapping[int, Orientation],
    min_confidence: float,
) -> tuple[ShownFinding, ...]:
    """Return the phrases, each once, whatever number of images it was looked for in; those with boxes first."""
    marks, remarks = select_marks(findings, sizes, min_confidence, orientations)
    grouped: dict[tuple[object, ...], list[Mark]] = {}
    for mark in marks:
        grouped.setdefault(_key(mark.finding), []).append(mark)
    marked = [_show_marked(number, group) for number, group in enumerate(grouped.values(), 1)]
    listed = [_show_listed(number, remark) for number, remark in enumerate(remarks, len(marked) + 1)]
    return (*marked, *listed)


def _show_marked(number: int, marks: Sequence[Mark]) -> ShownFinding:
    return _show(number, marks[0].finding, "grounded", "", tuple(map(_show_box, marks)))


def _show_listed(number: int, remark: Remark) -> ShownFinding:
    return _show(number, remark.finding, "negated" if remark.finding.negated else "missing", remark.status.meaning, ())


def _show(number: int, finding: Finding, kind: Kind, why: str, boxes: tuple[ShownBox, ...]) -> ShownFinding:
    site = finding.site
    place = " ".join(part for part in (site.laterality or "", site.concept.meaning) if part) if site else ""
    meaning = finding.finding.meaning if finding.finding else ""
    return ShownFinding(number, finding.phrase, kind, meaning, place, why, boxes, finding.uncertainty, finding.source)


def _show_box(mark: Mark) -> ShownBox:
    x1, y1, x2, y2 = mark.box.xyxy
    return ShownBox(mark.number, mark.finding.image, x1, y1, x2 - x1, y2 - y1, mark.score, mark.on_other_side)


def _key(finding: Finding) -> tuple[object, ...]:
    return finding.phrase, finding.source, finding.negated


def mark_text(text: str, findings: Sequence[ShownFinding]) -> tuple[Passage, ...]:
    """Return the text in pieces; where phrases overlap, a piece names all of them and is of the strongest kind."""
    spans = [(one, _clip(one.source, len(text))) for one in findings if one.source is not None]
    edges = sorted({0, len(text), *(edge for _, span in spans for edge in (span.start, span.end))})
    passages = []
    for start, end in pairwise(edges):
        over = [one for one, span in spans if span.start <= start and end <= span.end]
        strongest = max(over, key=lambda one: _STRENGTH[one.kind], default=None)
        passages.append(
            Passage(text[start:end], strongest.kind if strongest else None, tuple(one.number for one in over))
        )
    return tuple(passages)


def _clip(span: Span, length: int) -> Span:
    return Span(min(max(span.start, 0), length), min(max(span.end, 0), length))
