"""The report of an evaluation: the command's folder, its table, its pictures, with stand-ins and a tiny network."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from dicom_node.cli import main
from dicom_node.cli.evaluation import Wishes, assess
from grounding.checkpoint import save_checkpoint
from grounding.evaluation.cases import PhantomCases
from grounding.evaluation.documents import FILES
from grounding.evaluation.pictures import (
    DPI,
    LARGEST,
    choose_cases,
    draw_cases,
    draw_reliability,
    draw_risk_coverage,
    load_exhibits,
)
from grounding.evaluation.prior import phantom_phrases
from grounding.evaluation.records import Prediction
from grounding.evaluation.tables import markdown
from grounding.knowledge import load_bank
from grounding.phantoms.study import make_study
from grounding.sets.manifest import write_phantom_set
from grounding.types import Box, Finding, Grounding, Image, ModelIdentity, ReportText, ScoredBox, Span
from tests.model.networks import make_network, tiny_tokens
from tests.predictions import make_prediction

SEEDS = range(14)
SIZE = 64

Run = Callable[..., tuple[int, str, str]]


class FakeShifted:
    """Knows the studies of `SEEDS` and draws their boxes a little beside the truth; in other pictures it finds none."""

    identity = ModelIdentity("shifted", "1", "0" * 64)

    def __init__(self) -> None:
        self.studies = [make_study(seed, SIZE) for seed in SEEDS]

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        return Grounding(self.identity, tuple(self._findings(images[0])))

    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> Sequence[Finding]:
        known = {f.phrase: f for f in self._findings(image)}
        return [known.get(p, Finding(p, None, 0, (), localized=False, negated=False)) for p in phrases]

    def ground_spans(self, image: Image, report: ReportText, spans: Sequence[Span]) -> Sequence[Finding]:
        return self.ground_phrases(image, [report.text[span.start : span.end] for span in spans])

    def _findings(self, image: Image) -> list[Finding]:
        study = next((s for s in self.studies if np.abs(s.image - image).max() < 0.01), None)
        return [] if study is None else [self._finding(p, i) for i, p in enumerate(study.phrases)]

    def _finding(self, phrase: object, index: int) -> Finding:
        shift = float(3 * index)
        boxes = tuple(
            ScoredBox(Box(min(b.x1 + shift, b.x2), b.y1, b.x2 + shift, b.y2), 0.95 - 0.05 * index) for b in phrase.boxes
        )
        return Finding(phrase.phrase, phrase.source, 0, boxes, localized=bool(boxes), negated=phrase.negated)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("report")
    wishes = Wishes("all", "all", report=folder)
    return folder, assess(FakeShifted(), PhantomCases(SEEDS, SIZE), wishes, phantom_phrases(range(100, 120), SIZE))


def test_folder_holds_everything(report: tuple[Path, dict]) -> None:
    folder, answer = report
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "figures.json").read_text(encoding="utf-8")) == answer
    assert answer["model"] == {"name": "shifted", "version": "1", "sha256": "0" * 64}


def test_table_has_a_row_for_each_protocol_control_and_finding(report: tuple[Path, dict]) -> None:
    folder, answer = report
    text = (folder / "figures.md").read_text(encoding="utf-8")
    assert text == markdown(answer)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {9}
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table}
    assert list(rows)[2:10] == [
        "**free-running: image and report**", "– the first box of the report instead", "**phrase given**",
        "**teacher-forced**", "control: no pixels", "control: another patient's picture",
        "control: median boxes by phrase, no pixels", "mirrored picture, left and right swapped in the words",
    ]  # fmt: skip
    assert set(list(rows)[10:]) == set(answer["by_label"])
    low, high = answer["miou_ci"]
    free = rows["**free-running: image and report**"]
    assert free[0] == str(answer["n"])
    assert free[4:] == [f"{answer['miou']:.3f} ({low:.3f} to {high:.3f})", "0.000", "0.000"]
    assert f"- Wrong side of the patient: 0 of {answer['laterality']['n']} localised" in text
    assert "- Confidence: ECE 0." in text
    assert "- Phrases read: precision 1.000, recall 1.000; negated phrases localised: 0 of" in text


def sizes(folder: Path, *names: str) -> list[tuple[int, int]]:
    found = []
    for name in names:
        with PilImage.open(folder / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
            found.append(picture.size)
    return found


def test_pictures_open_and_have_their_sizes(report: tuple[Path, dict]) -> None:
    folder, _ = report
    assert sizes(folder, "reliability.png", "risk_coverage.png") == [(700, 600), (950, 500)]
    ((width, height),) = sizes(folder, "cases.png")
    assert width == round(4 * 4.2 * DPI)
    assert height == pytest.approx((3 * 4.95 + 0.5) * DPI, abs=1)


def test_page_shows_reference_and_predicted_boxes_in_their_colours(report: tuple[Path, dict]) -> None:
    with PilImage.open(report[0] / "cases.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in ((0xFF, 0xB0, 0x00), (0x35, 0xD0, 0xFF)):
        assert (np.abs(pixels - colour).max(axis=-1) < 12).sum() > 1000


def test_pictures_of_nothing_are_drawn_too(tmp_path: Path) -> None:
    nothing: dict[str, object] = {
        "bins": [],
        "risk_coverage": [],
        "error_by_quartile": [],
        "ece": None,
        "aurc": None,
        "n": 0,
    }
    draw_reliability(nothing, tmp_path / "reliability.png")
    draw_risk_coverage(nothing, tmp_path / "risk_coverage.png")
    draw_cases({}, tmp_path / "cases.png")
    assert sizes(tmp_path, "reliability.png", "risk_coverage.png") == [(700, 600), (950, 500)]
    with PilImage.open(tmp_path / "cases.png") as page:
        assert page.size == (420, 545)


def ranked(*ious: float) -> list[Prediction]:
    """Predictions of different pictures with these IoU."""
    return [make_prediction(boxes=(Box(0, 0, 10, 10 * iou),) if iou else (), case=i) for i, iou in enumerate(ious)]


def test_best_median_and_worst_are_chosen_once_each() -> None:
    chosen = choose_cases(ranked(0.1, 0.9, 0.5, 0.4, 1.0, 0.0, 0.6), each=2)
    assert {kind: [p.iou for p in found] for kind, found in chosen.items()} == {
        "best": [1.0, 0.9],
        "median": [0.6, 0.5],
        "worst": [0.0, 0.1],
    }


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_cases_are_never_shown_twice(count: int) -> None:
    chosen = [p.case for found in choose_cases(ranked(*np.linspace(0.2, 1, count))).values() for p in found]
    assert len(chosen) == len(set(chosen)) <= count
    assert len(chosen) >= min(count, 3)


def test_what_a_report_says_twice_is_shown_once_and_what_is_absent_not_at_all() -> None:
    twice = [make_prediction("nodule", case=3), make_prediction("a nodule", case=3), make_prediction(wanted=())]
    assert [len(found) for found in choose_cases(twice).values()] == [1, 0, 0]


def test_large_pictures_are_reduced_for_the_page() -> None:
    large = [dataclasses.replace(PhantomCases([0], 32)[0], load=lambda: np.zeros((3000, 1500), np.float32))]
    (exhibit,) = load_exhibits({"best": [make_prediction()]}, large)["best"]
    assert exhibit.image.shape == (LARGEST, LARGEST // 2)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in an empty folder with a tiny model beside it; exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "model", make_network(), tiny_tokens(), load_bank())

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowmvg", "evaluate", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return _run


def test_one_command_prints_a_markdown_table(run: Run, tmp_path: Path) -> None:
    manifest = write_phantom_set(tmp_path / "set", range(3), SIZE)
    others = write_phantom_set(tmp_path / "others", range(50, 60), 64)
    status, out, _ = run(
        *("--manifest", str(manifest), "--model", "model", "--protocol", "all", "--controls", "all"),
        *("--prior-from", str(others), "--report", "out/report", "--markdown"),
    )
    assert status == 0
    assert out == (tmp_path / "out/report/figures.md").read_text(encoding="utf-8")
    assert all(f"| {title}" in out for title in ("**free", "**phrase", "**teacher-forced", "control: median boxes"))
    assert sorted(path.name for path in (tmp_path / "out/report").iterdir()) == sorted(FILES)


def test_phantoms_as_json_keep_the_keys_of_the_contract(run: Run) -> None:
    status, out, _ = run("--phantoms", "2", "--model", "model", "--json")
    assert status == 0
    answer = json.loads(out)
    assert {"n", "ap10", "ap30", "ap50", "miou", "ap50_ci", "by_label", "no_box_rate", "blind", "seconds",
            "false_groundings", "phrase_recall", "laterality", "calibration", "first"} <= set(answer)  # fmt: skip
    assert "controls" not in answer


def test_protocols_are_printed_side_by_side(run: Run) -> None:
    status, out, _ = run("--phantoms", "1", "--model", "model", "--protocol", "all", "--controls", "none")
    assert status == 0
    assert out.split()[:4] == ["FIGURE", "FREE", "PHRASE", "FORCED"]


def test_what_cannot_be_done_is_said_before_anything_is_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    manifest = write_phantom_set(tmp_path / "set", range(2), 64)
    for arguments, says in (
        (("--phantoms", "1", "--report", "file/deep"), "the folder file/deep of --report cannot be made"),
        (("--phantoms", "1", "--model", "nowhere"), "nowhere/config.json is missing"),
        (("--manifest", str(manifest), "--prior-from", str(manifest)), "give a set of other patients"),
        (("--phantoms", "1", "--json", "--markdown"), "give either --json or --markdown"),
    ):
        status, out, err = run("--model", "model", *arguments)
        assert status != 0
        assert out == ""
        assert says in " ".join(err.split())


def test_a_picture_that_cannot_be_read_is_named(run: Run, tmp_path: Path) -> None:
    manifest = write_phantom_set(tmp_path / "set", range(1), 64)
    picture = next((tmp_path / "set" / "images").iterdir())
    picture.write_bytes(picture.read_bytes()[:300])
    status, out, err = run("--manifest", str(manifest), "--model", "model")
    assert (status, out) == (1, "")
    assert picture.name in err
