"""Evaluation of predictors whose answers are known: what is scored, matched, counted, and what the control sees."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from grounding.evaluation.cases import PhantomCases, manifest_cases
from grounding.evaluation.controls import CONTROLS
from grounding.evaluation.evaluate import (
    Course,
    applicable_protocols,
    evaluate,
    evaluate_phantoms,
    examine,
    find_verbatim,
    matching_finding,
)
from grounding.evaluation.prior import PriorPredictor, build_table, phantom_phrases
from grounding.evaluation.records import Reference
from grounding.knowledge import load_bank
from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestError, ManifestRow, read_manifest, write_phantom_set
from grounding.text import read_plain_report
from grounding.types import Box, Finding, Grounding, Image, ModelIdentity, ReportText, ScoredBox, Span

SEEDS = range(40)
SIZE = 96


def make_finding(phrase: str, *boxes: Box, negated: bool = False, source: Span | None = None) -> Finding:
    scored = tuple(ScoredBox(box, 0.9) for box in boxes)
    return Finding(phrase, source, 0, scored, localized=bool(boxes), negated=negated)


class FakePredictor:
    """Looks an image up among generated studies and answers with their truth; sees nothing in a constant image."""

    identity = ModelIdentity("oracle", "1", "0" * 64)

    def __init__(self, seeds: Sequence[int] = SEEDS, *, grounds_negated: bool = False) -> None:
        self.studies = [make_study(seed, SIZE) for seed in seeds]
        self.grounds_negated = grounds_negated
        self.reports: list[ReportText] = []
        self.spans: list[Span] = []

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Every phrase of the study with its true boxes."""
        (image,) = images
        self.reports.append(report)
        return Grounding(self.identity, tuple(self._findings(image)))

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        """True boxes of the given phrases."""
        known = {finding.phrase: finding for finding in self._findings(image)}
        return [known.get(phrase, make_finding(phrase)) for phrase in phrases]

    def ground_spans(self, image: Image, report: ReportText, spans: Sequence[Span]) -> Sequence[Finding]:
        """True boxes of the phrases at these places."""
        known = {finding.source: finding for finding in self._findings(image)}
        self.spans += spans
        return [known.get(span, make_finding(report.text[span.start : span.end])) for span in spans]

    def _findings(self, image: Image) -> list[Finding]:
        for study in self.studies:
            if np.abs(study.image - image).max() < 0.01:
                return [
                    make_finding(
                        p.phrase,
                        *((Box(1, 1, 9, 9),) if p.negated and self.grounds_negated else p.boxes),
                        negated=p.negated and not self.grounds_negated,
                        source=p.source,
                    )
                    for p in study.phrases
                ]
        return []


@pytest.fixture(scope="module")
def oracle() -> FakePredictor:
    return FakePredictor()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ManifestRow]:
    return read_manifest(write_phantom_set(tmp_path_factory.mktemp("phantoms"), SEEDS, SIZE))


def test_oracle_is_perfect_and_blind_control_finds_nothing(oracle: FakePredictor) -> None:
    figures = evaluate_phantoms(oracle, SEEDS, size=SIZE)
    present = [p for seed in SEEDS for p in make_study(seed, SIZE).phrases if p.present]
    assert figures["n"] == len(present) > 40
    assert figures["ap50"] == figures["miou"] == 1.0
    assert figures["ap50_ci"] == [1.0, 1.0]
    assert (figures["phrase_precision"], figures["phrase_recall"]) == (1.0, 1.0)
    assert (figures["false_groundings"], figures["negated_grounded_rate"], figures["no_box_rate"]) == (0, 0.0, 0.0)
    blind = figures["blind"]
    assert isinstance(blind, dict)
    assert (blind["n"], blind["ap50"], blind["no_box_rate"]) == (figures["n"], 0.0, 1.0)
    assert figures["laterality"]["errors"] == figures["laterality"]["reference_errors"] == 0  # type: ignore[index]
    assert figures["laterality"]["n"] > 10  # type: ignore[index]
    assert figures["calibration"]["accuracy"] == 1.0  # type: ignore[index]
    assert figures["calibration"]["ece"] == 0.1  # type: ignore[index]


@pytest.mark.parametrize("protocol", ["free", "phrase", "forced"])
def test_manifest_of_phantoms_gives_the_oracle_full_marks(
    oracle: FakePredictor, rows: list[ManifestRow], protocol: str
) -> None:
    figures = evaluate(oracle, rows, protocol)  # type: ignore[arg-type]
    assert figures["n"] == sum(row.present for row in rows)
    assert figures["absent"] == sum(not row.present for row in rows)
    assert (figures["ap10"], figures["ap30"], figures["ap50"], figures["miou"]) == (1.0,) * 4
    assert figures["false_groundings"] == 0
    assert set(figures["by_label"]) == {row.label for row in rows if row.present}  # type: ignore[call-overload]
    assert json.loads(json.dumps(figures)) == figures


def test_negated_phrases_that_are_grounded_are_counted() -> None:
    careless = FakePredictor(grounds_negated=True)
    figures = evaluate_phantoms(careless, SEEDS, size=SIZE, blind=False)
    negated = sum(p.negated for seed in SEEDS for p in make_study(seed, SIZE).phrases)
    assert figures["negated"] == figures["negated_grounded"] == figures["false_groundings"] == negated
    assert figures["negated_grounded_rate"] == 1.0
    assert figures["phrase_precision"] < 1.0  # type: ignore[operator]
    assert "blind" not in figures


def test_free_protocol_shows_image_and_report_only_and_leaves_out_rows_without_report(
    rows: list[ManifestRow],
) -> None:
    silent = ManifestRow("bare", rows[0].image, SIZE, SIZE, "mass", (Box(1, 1, 5, 5),), present=True)
    predictor = FakePredictor()
    figures = evaluate(predictor, [*rows, silent], "free", blind=False)
    assert figures["without_report"] == 1
    assert figures["n"] == sum(row.present for row in rows)
    assert len(predictor.reports) == len({row.image for row in rows})  # each picture once, not once per phrase
    assert evaluate(predictor, [silent], "phrase", blind=False)["n"] == 1


def test_progress_counts_pictures(oracle: FakePredictor) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_phantoms(
        oracle, [1, 2, 3], size=SIZE, blind=False, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_picture_of_another_size_than_the_manifest_says_is_refused(oracle: FakePredictor, tmp_path: Path) -> None:
    row = ManifestRow("r7", tmp_path / "p.png", 30, 20, "mass", (Box(1, 1, 5, 5),), present=True)
    with pytest.raises(ManifestError, match=r"row r7: .* is 20 x 30 pixels, not 30 x 20"):
        evaluate(oracle, [row], "phrase", read_image=lambda _: np.zeros((30, 20), np.float32))


def test_two_boxes_are_scored_as_one_region() -> None:
    class Half(FakePredictor):
        def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
            return [make_finding(phrase, Box(0, 0, 10, 10)) for phrase in phrases]

    row = ManifestRow("x", Path("x"), 50, 50, "edema", (Box(0, 0, 10, 10), Box(20, 0, 30, 10)), present=True)
    figures = evaluate(Half([]), [row], "phrase", read_image=lambda _: np.zeros((50, 50), np.float32), blind=False)
    assert figures["miou"] == 0.5


def test_no_rows_give_no_figures(oracle: FakePredictor) -> None:
    figures = evaluate(oracle, [], "free")
    assert (figures["n"], figures["ap50"], figures["without_report"]) == (0, None, 0)


def test_phrases_of_a_complete_manifest_are_counted(oracle: FakePredictor, rows: list[ManifestRow]) -> None:
    figures = evaluate(oracle, rows, blind=False)
    assert (figures["phrase_precision"], figures["phrase_recall"]) == (1.0, 1.0)
    assert figures["negated"] == sum(bool(row.negated) for row in rows) > 10
    unsaid = [dataclasses.replace(row, negated=None) for row in rows]
    assert "phrase_recall" not in evaluate(oracle, unsaid, blind=False)


def test_first_scores_the_first_box_of_the_report_whatever_the_phrase() -> None:
    class Two(FakePredictor):
        def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
            found = (make_finding("mass"), make_finding("edema", Box(0, 0, 10, 10)), make_finding("nodule", NODULE))
            return Grounding(self.identity, found)

    NODULE = Box(20, 20, 30, 30)
    row = ManifestRow("x", Path("x"), 50, 50, "nodule", (NODULE,), present=True, report="Edema. Nodule.")
    edema = dataclasses.replace(row, phrase="edema", boxes=(Box(0, 0, 10, 10), Box(40, 40, 50, 50)))
    figures = evaluate(Two([]), [row, edema], read_image=lambda _: np.zeros((50, 50), np.float32), blind=False)
    assert figures["miou"] == 0.75
    # The predecessor's rule: the nodule gets the edema's box; of two reference boxes only the first is asked for.
    assert figures["first"]["miou"] == 0.5  # type: ignore[index]
    assert figures["first"]["n"] == 2  # type: ignore[index]


def test_forced_phrases_are_those_that_stand_in_the_report(rows: list[ManifestRow]) -> None:
    predictor = FakePredictor()
    lost = dataclasses.replace(rows[0], phrase="words that nobody wrote")
    figures = evaluate(predictor, [*rows, lost], "forced", blind=False)
    assert figures["not_verbatim"] == 1
    assert len(predictor.spans) == len(rows)
    assert figures["n"] == sum(row.present for row in rows)


def test_a_phrase_in_other_words_is_forced_where_the_report_says_it() -> None:
    predictor = FakePredictor([])
    row = ManifestRow(
        "x",
        Path("x"),
        50,
        50,
        "enlarged heart",
        (Box(1, 1, 9, 9),),
        present=True,
        report="Clear lungs. The heart is enlarged.",
    )
    unsaid = dataclasses.replace(row, phrase="pneumothorax")
    grey = np.zeros((50, 50), np.float32)
    figures = evaluate(predictor, [row, unsaid], "forced", read_image=lambda _: grey, blind=False)
    assert (figures["not_verbatim"], figures["not_supported"], figures["n"]) == (2, 1, 1)


def test_made_up_phrases_are_counted() -> None:
    class Dreamer(FakePredictor):
        def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
            return Grounding(self.identity, (), hallucinations=2)

    row = ManifestRow("x", Path("x"), 50, 50, "nodule", (Box(1, 1, 9, 9),), present=True, report="Nodule.")
    cases = [row, dataclasses.replace(row, id="y", image=Path("y"))]
    figures = evaluate(Dreamer([]), cases, read_image=lambda _: np.zeros((50, 50), np.float32), blind=False)
    assert figures["hallucinations"] == 4


def test_forcing_needs_a_predictor_that_can_be_forced(rows: list[ManifestRow]) -> None:
    class Plain:
        identity = FakePredictor.identity
        ground = FakePredictor.ground
        ground_phrases = FakePredictor.ground_phrases

    plain = Plain()
    with pytest.raises(ValueError, match="cannot be teacher-forced"):
        evaluate(plain, rows, "forced")
    cases = manifest_cases(rows)
    assert applicable_protocols(plain, cases) == ("free", "phrase")
    assert applicable_protocols(FakePredictor([]), cases) == ("free", "phrase", "forced")
    without = manifest_cases([dataclasses.replace(row, report=None) for row in rows])
    assert applicable_protocols(FakePredictor([]), without) == ("phrase",)


@pytest.mark.parametrize(
    ("phrase", "source", "found"),
    [
        ("left effusion", None, (10, 23)),  # not in the heading, which is no sentence of it
        ("Left  Effusion", None, (10, 23)),
        ("left", None, (10, 14)),
        ("eft effusion", None, None),  # no part of a word
        ("right effusion", None, None),
        ("effusion", Span(30, 38), (30, 38)),
        ("effusion", Span(0, 8), (15, 23)),  # a wrong place is not believed
    ],
)
def test_find_verbatim(phrase: str, source: Span | None, found: tuple[int, int] | None) -> None:
    report = read_plain_report("FINDINGS: Left effusion. Some effusion.")
    span = find_verbatim(report, Reference(phrase, "x", (), source=source))
    assert (None if span is None else (span.start, span.end)) == found


def test_all_protocols_and_controls_of_an_oracle(oracle: FakePredictor) -> None:
    cases = PhantomCases(SEEDS[:12], SIZE)
    prior = PriorPredictor(build_table(phantom_phrases(range(100, 160), SIZE), load_bank()))
    course = Course(("free", "phrase", "forced"), tuple(CONTROLS), prior)
    figures = examine(oracle, cases, course).figures()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["protocol"] == "free"
    protocols, controls = figures["protocols"], figures["controls"]
    assert isinstance(protocols, dict) and isinstance(controls, dict)
    assert list(protocols) == ["free", "phrase", "forced"]
    assert {name: value["miou"] for name, value in protocols.items()} == {"free": 1.0, "phrase": 1.0, "forced": 1.0}
    assert {value["blind"]["miou"] for value in protocols.values()} == {0.0}
    assert all(figures[key] == value for key, value in protocols["free"].items())
    # The oracle knows the pictures by heart: another patient's has other boxes, and a mirrored one it never saw.
    assert controls["other_picture"]["miou"] < 0.6
    assert controls["mirrored"]["equivariance_miou"] == 0.0
    # It does not look at the words of the report: swapped phrases are none of those that it gives back.
    assert controls["swapped_words"]["flipped"] == 0
    assert 0.05 < controls["prior"]["miou"] < 0.9
    assert controls["prior"]["no_box_rate"] == 0.0
    assert "blind" not in controls


def test_mirrored_control_is_perfect_for_who_sees_mirrored() -> None:
    class Seeing(FakePredictor):
        """Finds the one bright square, wherever it is, for any phrase."""

        def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
            rows, columns = np.nonzero(image > 0.9)
            return [make_finding(p, Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)) for p in phrases]

    image = np.zeros((40, 60), np.float32)
    image[5:15, 40:50] = 1
    row = ManifestRow("x", Path("x"), 60, 40, "left nodule", (Box(40, 5, 50, 15),), present=True)
    cases = manifest_cases([row], lambda _: image)
    controls = examine(Seeing([]), cases, Course(("phrase",), ("swapped_words", "mirrored"))).figures()["controls"]
    assert isinstance(controls, dict)
    assert (controls["mirrored"]["equivariance_miou"], controls["mirrored"]["miou"]) == (1.0, 1.0)
    assert controls["swapped_words"] == {"n": 1, "flipped": 0, "flip_rate": 0.0, "gone": 0, "gone_rate": 0.0}


def test_midline_comes_from_lungs_that_the_rows_name() -> None:
    nodule = ManifestRow("a", Path("a"), 100, 50, "left nodule", (Box(52, 0, 56, 4),), present=True, report="One.")
    lungs = [
        ManifestRow("r", Path("a"), 100, 50, "Right lung", (Box(10, 0, 54, 40),), present=True),
        ManifestRow("l", Path("a"), 100, 50, "left lung", (Box(62, 0, 95, 40),), present=True),
    ]
    alone = manifest_cases([nodule])[0].midline
    assert (alone.x, alone.dead_zone, alone.of) == (50, 5, "picture")
    for case in manifest_cases([nodule, *lungs]):
        assert (case.midline.x, case.midline.dead_zone, case.midline.of) == (58, 0, "lungs")


BOX = (Box(0, 0, 1, 1),)


@pytest.mark.parametrize(
    ("phrases", "wanted", "boxes", "expected"),
    [
        (["small left effusion", "left effusion"], "left effusion", BOX, 1),
        (["nodule", "heart is enlarged"], "enlarged heart", BOX, 1),
        (["nodule"], "mass", BOX, None),  # no word in common
        (["large right lung mass"], "mass in the left upper zone", BOX, 0),
        (["large right lung mass"], "mass in the left upper zone", (), None),  # too unlike for a false grounding
        ([], "mass", BOX, None),
    ],
)
def test_matching_finding(phrases: list[str], wanted: str, boxes: tuple[Box, ...], expected: int | None) -> None:
    findings = [make_finding(phrase) for phrase in phrases]
    match = matching_finding(findings, Reference(wanted, "x", boxes))
    assert match is (None if expected is None else findings[expected])


def test_equal_phrases_are_told_apart_by_place_then_order() -> None:
    first, second = make_finding("nodule", source=Span(0, 6)), make_finding("nodule", source=Span(20, 26))
    assert matching_finding([first, second], Reference("nodule", "x", BOX, source=Span(20, 26))) is second
    assert matching_finding([first, second], Reference("nodule", "x", BOX)) is first
