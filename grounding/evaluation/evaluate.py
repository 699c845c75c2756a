"""Evaluation of a predictor on a grounding set or on generated studies, always next to its image-blind control.

`free` gives the predictor image and report and scores, for each reference phrase, the boxes of the most similar phrase
it found. `phrase` gives it the phrase. The control repeats the run with every pixel set to one grey.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, Protocol

import numpy as np

from grounding.evaluation.metrics import Score, match_phrases, region_iou, summarize, token_f1
from grounding.phantoms.study import PhantomStudy, make_study
from grounding.sets.manifest import ManifestError, ManifestRow, load_image
from grounding.text import read_plain_report
from grounding.types import Box, Finding, Grounder, Image, ReportText, Span

Protocols = Literal["free", "phrase"]
ImageReader = Callable[..., Image]
Progress = Callable[[int, int], None]
SAME_PHRASE = 0.5
"""Token F1 from which two phrases count as the same one."""


class Predictor(Grounder, Protocol):
    """A grounder that can also be given the phrases."""

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        """Boxes of each of `phrases` in `image`, in the same order."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """A phrase and what is true of it. `boxes` is empty where the picture does not show it or the report denies it."""

    phrase: str
    label: str
    boxes: tuple[Box, ...]
    negated: bool = False
    source: Span | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One picture with its report and reference phrases; `load` reads the pixels when their turn comes."""

    name: str
    load: Callable[[], Image]
    report: ReportText
    references: tuple[Reference, ...]


@dataclass(slots=True)
class Tally:
    """What a run over cases adds up."""

    scores: list[Score] = field(default_factory=list)
    absent: int = 0
    false_groundings: int = 0
    negated: int = 0
    negated_grounded: int = 0
    phrases_given: int = 0
    phrases_wanted: int = 0
    phrases_matched: int = 0

    def add(self, case: Case, reference: Reference, boxes: tuple[Box, ...]) -> None:
        """Score one reference phrase by the boxes that it was given."""
        if reference.boxes:
            iou = region_iou(boxes, reference.boxes)
            self.scores.append(Score(case.name, reference.label, iou, has_box=bool(boxes)))
            return
        self.absent += 1
        self.false_groundings += bool(boxes)
        self.negated += reference.negated
        self.negated_grounded += reference.negated and bool(boxes)

    def count_phrases(self, findings: Sequence[Finding], references: Sequence[Reference]) -> None:
        """Compare the phrases that were found with those that should be, by their words alone."""
        given = [finding.phrase for finding in findings if not finding.negated]
        wanted = [reference.phrase for reference in references if not reference.negated]
        self.phrases_given += len(given)
        self.phrases_wanted += len(wanted)
        self.phrases_matched += len(match_phrases(given, wanted, minimum=SAME_PHRASE))

    def figures(self) -> dict[str, object]:
        """Everything measured, as plain JSON values."""
        return summarize(self.scores) | {"absent": self.absent, "false_groundings": self.false_groundings}

    def phrase_figures(self) -> dict[str, object]:
        """How well phrases were found, where every phrase of the report is known."""
        return {
            "phrase_precision": _share(self.phrases_matched, self.phrases_given),
            "phrase_recall": _share(self.phrases_matched, self.phrases_wanted),
            "negated": self.negated,
            "negated_grounded": self.negated_grounded,
            "negated_grounded_rate": _share(self.negated_grounded, self.negated),
        }


def evaluate(
    predictor: Predictor,
    rows: Sequence[ManifestRow],
    protocol: Protocols = "free",
    *,
    read_image: ImageReader = load_image,
    blind: bool = True,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Score `predictor` on the rows of a manifest; see the contract for the keys of the answer.

    `read_image(path)` reads a picture. `progress(done, total)` is called after each picture.

    Raises:
        ManifestError: a picture cannot be read, or is not of the size that the manifest says.
    """
    started = time.perf_counter()
    usable = [row for row in rows if protocol == "phrase" or row.report]
    cases = [_case(group, read_image) for group in _grouped(usable)]
    seen, unseen = _run(predictor, cases, len(cases), protocol, blind, progress)
    answer: dict[str, object] = {"protocol": protocol, **seen.figures(), "without_report": len(rows) - len(usable)}
    if blind:
        answer["blind"] = unseen.figures()
    return answer | {"seconds": round(time.perf_counter() - started, 3)}


def evaluate_phantoms(
    predictor: Predictor, seeds: Sequence[int], *, size: int = 256, blind: bool = True, progress: Progress | None = None
) -> dict[str, object]:
    """Score `predictor`, free-running, on the generated studies of `seeds`, which are made as they are needed."""
    started = time.perf_counter()
    cases = (_phantom_case(seed, make_study(seed, size)) for seed in seeds)
    seen, unseen = _run(predictor, cases, len(seeds), "free", blind, progress)
    answer: dict[str, object] = {"protocol": "free", **seen.figures(), **seen.phrase_figures()}
    if blind:
        answer["blind"] = unseen.figures()
    return answer | {"seconds": round(time.perf_counter() - started, 3)}


def matching_finding(findings: Sequence[Finding], reference: Reference) -> Finding | None:
    """The finding whose phrase is most like the reference's; between equals one that shares its place, then the first.

    For a phrase that is not in the picture, only one that counts as the same phrase: a false grounding is one of it.
    """
    minimum = 0.0 if reference.boxes else SAME_PHRASE
    ranked = [
        (token_f1(finding.phrase, reference.phrase), _shared(finding.source, reference.source), -index)
        for index, finding in enumerate(findings)
    ]
    best = max(ranked, default=(0.0, 0, 0))
    return findings[-best[2]] if best[0] > 0 and best[0] >= minimum else None


def _shared(first: Span | None, second: Span | None) -> int:
    if first is None or second is None:
        return 0
    return max(0, min(first.end, second.end) - max(first.start, second.start))


def _run(
    predictor: Predictor,
    cases: Sequence[Case] | Iterator[Case],
    total: int,
    protocol: Protocols,
    blind: bool,
    progress: Progress | None,
) -> tuple[Tally, Tally]:
    """Tallies with the pixels and without them."""
    seen, unseen = Tally(), Tally()
    for done, case in enumerate(cases, 1):
        image = case.load()
        _score(predictor, case, image, protocol, seen)
        if blind:
            _score(predictor, case, np.full_like(image, 0.5), protocol, unseen)
        if progress is not None:
            progress(done, total)
    return seen, unseen


def _score(predictor: Predictor, case: Case, image: Image, protocol: Protocols, tally: Tally) -> None:
    if protocol == "phrase":
        given = predictor.ground_phrases(image, [reference.phrase for reference in case.references])
        for reference, finding in zip(case.references, given, strict=True):
            tally.add(case, reference, _boxes(finding))
        return
    findings = predictor.ground([image], case.report).findings
    for reference in case.references:
        tally.add(case, reference, _boxes(matching_finding(findings, reference)))
    tally.count_phrases(findings, case.references)


def _boxes(finding: Finding | None) -> tuple[Box, ...]:
    return () if finding is None else tuple(scored.box for scored in finding.boxes)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _grouped(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Rows of one picture and one report together, so that each pair is run once."""

    def key(row: ManifestRow) -> tuple[str, str]:
        return str(row.image), row.report or ""

    return [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]


def _case(rows: Sequence[ManifestRow], read_image: ImageReader) -> Case:
    first = rows[0]

    def load() -> Image:
        image = read_image(first.image)
        for row in rows:
            if image.shape != (row.height, row.width):
                size = f"{image.shape[1]} x {image.shape[0]}"
                raise ManifestError(f"row {row.id}: {row.image} is {size} pixels, not {row.width} x {row.height}")
        return image

    references = tuple(Reference(row.phrase, row.label or "unlabelled", row.boxes) for row in rows)
    return Case(str(first.image), load, read_plain_report(first.report or ""), references)


def _phantom_case(seed: int, study: PhantomStudy) -> Case:
    references = tuple(Reference(p.phrase, p.label, p.boxes, p.negated, p.source) for p in study.phrases)
    return Case(f"phantom-{seed}", lambda: study.image, study.report, references)
