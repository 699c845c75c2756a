"""Evaluation of predictors whose answers are known: what is scored, matched, counted, and what the control sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from grounding.evaluation.evaluate import Reference, evaluate, evaluate_phantoms, matching_finding
from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestError, ManifestRow, read_manifest, write_phantom_set
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

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Every phrase of the study with its true boxes."""
        (image,) = images
        self.reports.append(report)
        return Grounding(self.identity, tuple(self._findings(image)))

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        """True boxes of the given phrases."""
        known = {finding.phrase: finding for finding in self._findings(image)}
        return [known.get(phrase, make_finding(phrase)) for phrase in phrases]

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


@pytest.mark.parametrize("protocol", ["free", "phrase"])
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
