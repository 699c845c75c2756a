"""Evaluation of a predictor on a grounding set or on generated studies, always next to its image-blind control.

`free` gives the predictor image and report and scores, for each reference phrase, the boxes of the most similar phrase
it found. `phrase` gives it the phrase. `forced` gives it the report and says where in it the phrase stands. Controls
repeat a run with pictures or words changed. What is predicted is kept; `figures` computes everything from that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from grounding.evaluation.calibration import calibration_figures
from grounding.evaluation.cases import ImageReader, PhantomCases, manifest_cases
from grounding.evaluation.controls import CONTROLS, Change, flip_figures, mirror_figures, unchanged
from grounding.evaluation.laterality import laterality_figures
from grounding.evaluation.metrics import Score, match_phrases, region_iou, share, summarize, token_f1
from grounding.evaluation.records import (
    Case,
    ForcedPredictor,
    GuardedPredictor,
    Prediction,
    Predictor,
    Progress,
    Reference,
)
from grounding.sets.manifest import ManifestRow, load_image
from grounding.spans import align
from grounding.types import Finding, Image, ReportText, Span

Protocols = Literal["free", "phrase", "forced"]
PROTOCOLS: tuple[Protocols, ...] = get_args(Protocols)
SAME_PHRASE = 0.5
"""Token F1 from which two phrases count as the same one."""

PRIOR = "prior"
SAME_MEASURES = ("blind", "other_picture", PRIOR)
"""Controls that are scored as the model is, against the same references."""


@dataclass(frozen=True, slots=True)
class Course:
    """What an evaluation runs. The first protocol is the one that its figures lead with.

    `controls` are names of `CONTROLS`: `blind` is run under every protocol, the others under the first. `prior` is
    scored once, with the reference phrases given to it.
    """

    protocols: tuple[Protocols, ...] = ("free",)
    controls: tuple[str, ...] = ("blind",)
    prior: Predictor | None = None


@dataclass(slots=True)
class Run:
    """What one protocol gave under one control; `first` holds the first box of each report instead of the matched."""

    predictions: list[Prediction] = field(default_factory=list)
    first: list[Prediction] = field(default_factory=list)
    complete: bool = False
    phrases_given: int = 0
    phrases_wanted: int = 0
    phrases_matched: int = 0
    without_report: int = 0
    not_verbatim: int = 0
    not_supported: int = 0
    hallucinations: int = 0

    def count_phrases(self, findings: Sequence[Finding], references: Sequence[Reference]) -> None:
        """Compare the phrases that were found with those that should be, by their words alone."""
        given = [finding.phrase for finding in findings if not finding.negated]
        wanted = [reference.phrase for reference in references if not reference.negated]
        self.complete = True
        self.phrases_given += len(given)
        self.phrases_wanted += len(wanted)
        self.phrases_matched += len(match_phrases(given, wanted, minimum=SAME_PHRASE))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The predictions of all runs, by (protocol, control); the control of the model as it is is ''."""

    protocols: tuple[Protocols, ...]
    runs: Mapping[tuple[str, str], Run]
    seconds: float

    @property
    def predictions(self) -> list[Prediction]:
        """Those of the first protocol, without a control."""
        return self.runs[self.protocols[0], ""].predictions

    def figures(self) -> dict[str, object]:
        """Everything measured, as plain JSON values; the keys are those of the contract.

        The first protocol's figures stand at the top; with several protocols, all stand under `protocols` by name.
        """
        first = self.protocols[0]
        by_protocol = {name: self._protocol_figures(name) for name in self.protocols}
        answer: dict[str, object] = {"protocol": first, **by_protocol[first]}
        controls = self._control_figures(first)
        if controls:
            answer["controls"] = controls
        if len(self.protocols) > 1:
            answer["protocols"] = by_protocol
        return answer | {"seconds": round(self.seconds, 3)}

    def _protocol_figures(self, protocol: Protocols) -> dict[str, object]:
        figures = protocol_figures(protocol, self.runs[protocol, ""])
        blind = self.runs.get((protocol, "blind"))
        return figures if blind is None else figures | {"blind": region_figures(blind.predictions)}

    def _control_figures(self, protocol: Protocols) -> dict[str, object]:
        seen = self.runs[protocol, ""].predictions
        figures: dict[str, object] = {}
        for (_, control), run in self.runs.items():
            if control == "swapped_words":
                figures[control] = flip_figures(seen, run.predictions)
            elif control == "mirrored":
                figures[control] = mirror_figures(seen, run.predictions) | overall(run.predictions)
            elif control in SAME_MEASURES and control != "blind":
                figures[control] = region_figures(run.predictions)
        return figures


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
    course = Course((protocol,), ("blind",) if blind else ())
    return examine(predictor, manifest_cases(rows, read_image), course, progress).figures()


def evaluate_phantoms(
    predictor: Predictor, seeds: Sequence[int], *, size: int = 256, blind: bool = True, progress: Progress | None = None
) -> dict[str, object]:
    """Score `predictor`, free-running, on the generated studies of `seeds`, which are made as they are needed."""
    course = Course(("free",), ("blind",) if blind else ())
    return examine(predictor, PhantomCases(seeds, size), course, progress).figures()


def applicable_protocols(predictor: Predictor, cases: Sequence[Case]) -> tuple[Protocols, ...]:
    """All protocols that can be run, free first: without a report only `phrase`, and `forced` where it is offered."""
    reports = any(case.report.text for case in cases)
    can_force = isinstance(predictor, ForcedPredictor)
    return tuple(p for p in PROTOCOLS if p == "phrase" or (reports and (p == "free" or can_force)))


def examine(
    predictor: Predictor, cases: Sequence[Case], course: Course, progress: Progress | None = None
) -> Evaluation:
    """Run a course over the cases, one picture at a time.

    Raises:
        ManifestError: a picture cannot be read, or is not of the size that the manifest says.
        ValueError: `forced` is asked of a predictor that cannot be forced.
    """
    if "forced" in course.protocols and not isinstance(predictor, ForcedPredictor):
        raise ValueError("this predictor cannot be teacher-forced; use the protocols free and phrase")
    started = time.perf_counter()
    plans = _plans(predictor, course)
    runs: dict[tuple[str, str], Run] = {(plan.protocol, plan.control): Run() for plan in plans}
    for number in range(len(cases)):
        image = cases[number].load()
        for plan in plans:
            _run_case(plan, cases, number, image, runs[plan.protocol, plan.control])
        if progress is not None:
            progress(number + 1, len(cases))
    return Evaluation(course.protocols, runs, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Plan:
    protocol: Protocols
    control: str
    predictor: Predictor
    change: Change


def _plans(predictor: Predictor, course: Course) -> list[_Plan]:
    first, *others = course.protocols
    plans = [_Plan(protocol, "", predictor, unchanged) for protocol in course.protocols]
    # Without pixels it is the network that is measured, not the rule that spares it the question.
    asked = {"blind": predictor.unguarded() if isinstance(predictor, GuardedPredictor) else predictor}
    plans += [_Plan(first, name, asked.get(name, predictor), CONTROLS[name]) for name in course.controls]
    if "blind" in course.controls:
        plans += [_Plan(protocol, "blind", asked["blind"], CONTROLS["blind"]) for protocol in others]
    if course.prior is not None:
        plans.append(_Plan("phrase", PRIOR, course.prior, unchanged))
    return plans


def _run_case(plan: _Plan, cases: Sequence[Case], number: int, image: Image, run: Run) -> None:
    case, picture = plan.change(cases, number, image)
    asked = _Asked(number, case, picture)
    if plan.protocol != "phrase" and not case.report.text:
        run.without_report += len(case.references)
        return
    answers = _ANSWERS[plan.protocol](plan.predictor, asked, run)
    run.predictions += [_prediction(asked, reference, finding) for reference, finding in answers]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A case as the predictor sees it, under a control or not."""

    number: int
    case: Case
    picture: Image


_Answers = list[tuple[Reference, Finding | None]]


def _answer_free(predictor: Predictor, asked: _Asked, run: Run) -> _Answers:
    case = asked.case
    grounding = predictor.ground([asked.picture], case.report)
    findings = grounding.findings
    run.hallucinations += grounding.hallucinations
    first = next((finding for finding in findings if finding.boxes), None)
    run.first += [_prediction(asked, reference, first, only_first=True) for reference in case.references]
    if case.complete:
        run.count_phrases(findings, case.references)
    return [(reference, matching_finding(findings, reference)) for reference in case.references]


def _answer_phrase(predictor: Predictor, asked: _Asked, run: Run) -> _Answers:
    references = asked.case.references
    given = predictor.ground_phrases(asked.picture, [reference.phrase for reference in references])
    return list(zip(references, given, strict=True))


def _answer_forced(predictor: Predictor, asked: _Asked, run: Run) -> _Answers:
    case = asked.case
    placed: list[tuple[Reference, Span]] = []
    for reference in case.references:
        span = find_verbatim(case.report, reference)
        run.not_verbatim += span is None
        span = span or find_alike(case.report, reference)
        run.not_supported += span is None
        placed += [] if span is None else [(reference, span)]
    if not placed or not isinstance(predictor, ForcedPredictor):
        return []
    given = predictor.ground_spans(asked.picture, case.report, [span for _, span in placed])
    return [(reference, finding) for (reference, _), finding in zip(placed, given, strict=True)]


_ANSWERS = {"free": _answer_free, "phrase": _answer_phrase, "forced": _answer_forced}


def _prediction(
    asked: _Asked, reference: Reference, finding: Finding | None, *, only_first: bool = False
) -> Prediction:
    """`only_first` scores the best box against the first reference box, as the predecessor does."""
    boxes = finding.boxes if finding else ()
    wanted = reference.boxes
    if only_first:
        boxes, wanted = tuple(sorted(boxes, key=lambda scored: -scored.score)[:1]), wanted[:1]
    return Prediction(
        case=asked.number,
        image=asked.case.name,
        reference=reference,
        midline=asked.case.midline,
        size=(asked.picture.shape[0], asked.picture.shape[1]),
        phrase=finding.phrase if finding else None,
        boxes=boxes,
        iou=region_iou([scored.box for scored in boxes], wanted),
        uncertainty=finding.uncertainty if finding else None,
    )


def find_verbatim(report: ReportText, reference: Reference) -> Span | None:
    """Where the phrase of a reference stands in the sentences of the report; upper and lower case are the same."""
    source = reference.source
    if source is not None and report.text[source.start : source.end] == reference.phrase:
        return source
    words = r"\s+".join(re.escape(word) for word in reference.phrase.split())
    pattern = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    found = (pattern.search(report.text, sentence.start, sentence.end) for sentence in report.sentences)
    return next((Span(*match.span()) for match in found if match), None)


def find_alike(report: ReportText, reference: Reference) -> Span | None:
    """The place in the report that says the phrase in other words, where there is one."""
    place = align(reference.phrase, report.text, report.sentences)
    return None if place is None else place.span


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


def protocol_figures(protocol: Protocols, run: Run) -> dict[str, object]:
    """All figures of a run without a control."""
    figures = region_figures(run.predictions) | {"without_report": run.without_report}
    if protocol == "forced":
        figures |= {"not_verbatim": run.not_verbatim, "not_supported": run.not_supported}
    if protocol == "free":
        figures |= {"first": overall(run.first), "hallucinations": run.hallucinations}
    if run.complete:
        figures |= phrase_figures(run)
    return figures | {
        "laterality": laterality_figures(run.predictions),
        "calibration": calibration_figures(run.predictions),
    }


def scores_of(predictions: Sequence[Prediction]) -> list[Score]:
    """The scores of the phrases that the pictures show."""
    return [Score(p.image, p.reference.label, p.iou, has_box=p.is_localized) for p in predictions if p.reference.boxes]


def region_figures(predictions: Sequence[Prediction]) -> dict[str, object]:
    """Overlap with the phrases that the picture shows, and how often others were grounded."""
    absent = [p for p in predictions if not p.reference.boxes]
    return summarize(scores_of(predictions)) | {
        "absent": len(absent),
        "false_groundings": sum(p.is_localized for p in absent),
    }


def overall(predictions: Sequence[Prediction]) -> dict[str, object]:
    """Overlap without the figures of each finding."""
    return {name: value for name, value in summarize(scores_of(predictions)).items() if name != "by_label"}


def phrase_figures(run: Run) -> dict[str, object]:
    """How well phrases were found, where every phrase of the report is known."""
    denied = [p for p in run.predictions if p.reference.negated]
    grounded = sum(p.is_localized for p in denied)
    return {
        "phrase_precision": share(run.phrases_matched, run.phrases_given),
        "phrase_recall": share(run.phrases_matched, run.phrases_wanted),
        "negated": len(denied),
        "negated_grounded": grounded,
        "negated_grounded_rate": share(grounded, len(denied)),
    }
