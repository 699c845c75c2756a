"""`knowmvg sample-pack`: the same bytes each time, boxes as they were painted, and no validator finds an error."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicom_node.cli.sample_studies import CASES, MARK, SHAPE, write_case, write_pack
from dicom_node.cli.validators import TOOLS, validate
from dicom_node.errors import NodeError
from dicom_node.results.reading import read_boxes
from grounding.knowledge import load_bank
from grounding.phantoms.study import make_study
from tests.acceptance.peers import require

SHORT = ("right-apical-pneumothorax", "negated-only", "lossy")
BANK = load_bank()


@pytest.mark.timeout(900)
def test_no_validator_finds_an_error_in_the_pack(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    require(*TOOLS)
    full = request.config.getoption("--full")
    cases = [case for case in CASES if full or case.name in SHORT]
    verdicts = write_pack(tmp_path, cases)
    assert [(verdict.summary, verdict.errors) for verdict in verdicts if verdict.errors or not verdict.ran] == []
    assert {verdict.tool for verdict in verdicts} == set(TOOLS)
    digests = json.loads((tmp_path / "manifest.json").read_text())
    held = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in held if not name.endswith(".log")} == {*digests, "manifest.json", MARK}
    assert {n: hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in digests} == digests
    text = (tmp_path / "README.txt").read_text()
    assert all(f"{case.name}/" in text for case in cases)
    assert len((tmp_path / "validators.log").read_text().splitlines()) == len(verdicts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_the_same_each_time_and_shows_what_was_painted(case, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written = write_case(case, tmp_path / name, BANK)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second
    film = pydicom.dcmread(tmp_path / "first" / "image.dcm")
    painted = {box.xyxy for phrase in make_study(case.seed, shape=SHAPE).phrases for box in phrase.boxes}
    for name in written.documents:
        boxes = read_boxes(pydicom.dcmread(tmp_path / "first" / name))
        on_film = {found.box.xyxy for found in boxes if found.sop_instance_uid == film.SOPInstanceUID}
        assert sorted(on_film) == [pytest.approx(xyxy, abs=0.01) for xyxy in sorted(painted)]
    assert len(written.states) == (case.images if painted else 0)
    assert (case.name == "negated-only") == (not painted)


def test_the_films_are_what_their_cases_say(tmp_path: Path) -> None:
    films = {}
    for case in CASES:
        (tmp_path / case.name).mkdir()
        write_case(case, tmp_path / case.name, BANK)
        films[case.name] = pydicom.dcmread(tmp_path / case.name / "image.dcm")
    assert films["monochrome1"].PhotometricInterpretation == "MONOCHROME1"
    assert films["lossy"].file_meta.TransferSyntaxUID.is_compressed
    assert float(films["lossy"].LossyImageCompressionRatio) > 5
    assert "山田" in str(films["names"].PatientName)
    assert len({film.StudyInstanceUID for film in films.values()}) == len(CASES)
    phrases = [phrase for phrase in make_study(CASES[0].seed, shape=SHAPE).phrases if phrase.boxes]
    assert [phrase.label for phrase in phrases] == ["pneumothorax"]
    assert "right apical" in phrases[0].phrase
    assert phrases[0].boxes[0].x2 < SHAPE[1] / 2  # the patient's right is at the left of the film


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(NodeError, match="no sample pack"):
        write_pack(tmp_path, ())
    assert (tmp_path / "thesis.txt").exists()
    write_pack(tmp_path / "new", ())
    (tmp_path / "new" / "left.dcm").touch()
    write_pack(tmp_path / "new", ())
    assert not (tmp_path / "new" / "left.dcm").exists()


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [validate(name, tmp_path, ["x.dcm"]).summary for name in TOOLS] == [
        f"{name}: x.dcm: not installed" for name in TOOLS
    ]


def test_each_validator_finds_errors_in_what_is_broken(tmp_path: Path) -> None:
    """A check that cannot fail shows nothing."""
    require(*TOOLS)
    case = CASES[0]
    write_case(case, tmp_path, BANK)
    for name in ("sr.dcm", "gsps.dcm"):
        ds = pydicom.dcmread(tmp_path / name)
        if name == "sr.dcm":
            del ds.CompletionFlag
            ds.ContentSequence[0].ValueType = "NONSENSE"
        else:
            del ds.ReferencedSeriesSequence
        ds.PatientID = "another"
        ds.save_as(tmp_path / name)
    ds = pydicom.dcmread(tmp_path / "sr.3d.dcm")
    reported = next(item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121058")
    reported.ConceptCodeSequence[0].CodeValue = "0"
    ds.save_as(tmp_path / "template.dcm")
    broken = {"dciodvfy": ["sr.dcm"], "dcentvfy": ["image.dcm", "sr.dcm"], "dsrdump": ["sr.dcm"],
              "dcmpschk": ["gsps.dcm"], "DicomSRValidator": ["template.dcm"]}  # fmt: skip
    assert [name for name in TOOLS if not validate(name, tmp_path, broken[name]).errors] == []


def test_the_command_is_there() -> None:
    command = [sys.executable, "-m", "dicom_node.cli", "sample-pack", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--out" in done.stdout
