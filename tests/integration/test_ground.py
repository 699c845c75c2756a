"""One study offline, with a fake model: which results are written for which input, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from pydicom import dcmread
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.cli.ground import Outcome, ground_source, read_source
from dicom_node.config import load_settings
from dicom_node.errors import NodeError
from dicom_node.results.reading import read_boxes
from dicom_node.results.rendering import draw_report
from grounding.sets.manifest import ManifestError
from grounding.types import Grounding, Image, ReportText
from tests.builders import encode, make_cxr_dataset, make_report_dataset, write
from tests.fakes import FakeGrounder, FrozenClock

Ground = Callable[..., Outcome]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Ground files into the folder `out`, with settings given as sections."""

    def _ground(images: Sequence[Path], report: Path, grounder: FakeGrounder | None = None, text: str = "") -> Outcome:
        (tmp_path / "config.yaml").write_text(text)
        settings = load_settings(tmp_path / "config.yaml", {})
        source = read_source(images, report)
        return ground_source(source, grounder or FakeGrounder(), settings, FrozenClock(), tmp_path / "out")

    return _ground


class BothImagesGrounder(FakeGrounder):
    """A fake model that finds everything twice: in the first and in the second image."""

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Return each finding of the first image for the second one, too."""
        first = super().ground(images, report)
        return replace(first, findings=first.findings + tuple(replace(finding, image=1) for finding in first.findings))


def write_text(path: Path, text: str = "FINDINGS: Small left effusion. Heart size is normal.") -> Path:
    """Write a plain text report."""
    path.write_text(text, encoding="utf-8")
    return path


def test_a_dicom_study_gives_sr_gsps_picture_and_findings(tmp_path: Path, ground: Ground) -> None:
    image = make_cxr_dataset()
    report = write(make_report_dataset(image=image), tmp_path / "report.dcm")
    outcome = ground([write(image, tmp_path / "image.dcm")], report)
    assert outcome.files == ("result.sr.dcm", "result.gsps.dcm", "overlay.png", "findings.json")
    assert outcome.notes == ()
    written = tmp_path / "out"
    assert json.loads((written / "findings.json").read_text()) == outcome.document
    boxes = [tuple(box["xyxy"]) for finding in outcome.document["findings"] for box in finding["boxes"]]
    assert boxes
    for name in ("result.sr.dcm", "result.gsps.dcm"):
        ds = dcmread(written / name)
        assert (ds.StudyInstanceUID, ds.PatientID) == (image.StudyInstanceUID, image.PatientID)
        assert [found.box.xyxy for found in read_boxes(ds)] == boxes
    with PilImage.open(written / "overlay.png") as picture:
        assert picture.tobytes() == draw_report(dcmread(written / "result.sr.dcm"), image).tobytes()


def test_several_images_have_a_presentation_state_and_a_picture_each(tmp_path: Path, ground: Ground) -> None:
    images = [make_cxr_dataset(instance=number) for number in (1, 2)]
    paths = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(images)]
    outcome = ground(paths, write(make_report_dataset(image=images[0]), tmp_path / "r.dcm"), BothImagesGrounder())
    assert outcome.files == (
        "result.sr.dcm",
        "result.gsps.dcm",
        "result.gsps.2.dcm",
        "overlay.png",
        "overlay.2.png",
        "findings.json",
    )
    second = dcmread(tmp_path / "out" / "result.gsps.2.dcm")
    assert {found.sop_instance_uid for found in read_boxes(second)} == {images[1].SOPInstanceUID}


def test_a_text_report_gives_an_sr_without_a_source_report(tmp_path: Path, ground: Ground) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    outcome = ground([image], write_text(tmp_path / "report.txt"))
    assert "result.sr.dcm" in outcome.files
    assert any("no source report" in note for note in outcome.notes)
    assert "ReferencedInstanceSequence" not in dcmread(tmp_path / "out" / "result.sr.dcm")


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_a_picture_gives_no_dicom_results_and_says_so(tmp_path: Path, ground: Ground, name: str) -> None:
    PilImage.fromarray(np.zeros((40, 30), np.uint8)).save(tmp_path / name)
    outcome = ground([tmp_path / name], write_text(tmp_path / "report.txt"))
    assert outcome.files == ("overlay.png", "findings.json")
    assert outcome.notes == ("No SR and no presentation state: they can refer to DICOM images only.",)
    assert outcome.document["study_instance_uid"] is None
    assert outcome.document["images"] == [{"sop_instance_uid": None, "rows": 40, "columns": 30}]


def test_nothing_localized_gives_no_presentation_state_and_says_so(tmp_path: Path, ground: Ground) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    outcome = ground([image], write_text(tmp_path / "r.txt"), FakeGrounder(localizes=False))
    assert outcome.files == ("result.sr.dcm", "overlay.png", "findings.json")
    assert any(note.startswith("No presentation state") for note in outcome.notes)


def test_results_that_are_switched_off_are_not_written(tmp_path: Path, ground: Ground) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.sr.dcm").write_text("from an earlier run")
    outcome = ground([image], write_text(tmp_path / "r.txt"), text="results: {sr: false, gsps: false}")
    assert outcome.files == ("overlay.png", "findings.json")
    assert not (tmp_path / "out" / "result.sr.dcm").exists()


def test_low_confidence_is_not_localized_in_any_result(tmp_path: Path, ground: Ground) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    outcome = ground([image], write_text(tmp_path / "r.txt"), text="results: {min_confidence: 0.95}")
    assert all(not finding["localized"] and not finding["boxes"] for finding in outcome.document["findings"])
    assert read_boxes(dcmread(tmp_path / "out" / "result.sr.dcm")) == []


def test_the_same_input_at_the_same_time_gives_the_same_bytes(tmp_path: Path, ground: Ground) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    report = write(make_report_dataset(image=dcmread(image)), tmp_path / "report.dcm")
    runs = []
    for _ in range(2):
        ground([image], report)
        runs.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert runs[0] == runs[1]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_dataset_without_preamble_is_read_all_the_same(tmp_path: Path, ground: Ground, syntax: UID) -> None:
    image = make_cxr_dataset()
    with (tmp_path / "bare.dcm").open("wb") as file:
        bare = DicomFileLike(file)
        bare.is_implicit_VR, bare.is_little_endian = syntax.is_implicit_VR, True
        write_dataset(bare, image)
    report = write(make_report_dataset(image=image), tmp_path / "report.dcm")
    outcome = ground([tmp_path / "bare.dcm"], report)
    assert "result.gsps.dcm" in outcome.files
    assert outcome.document["images"][0]["sop_instance_uid"] == image.SOPInstanceUID


@pytest.mark.parametrize(("keyword", "what"), [("PatientID", "patient"), ("StudyInstanceUID", "study")])
def test_files_of_different_patients_or_studies_are_refused(tmp_path: Path, keyword: str, what: str) -> None:
    image = make_cxr_dataset()
    report = make_report_dataset(image=image)
    setattr(report, keyword, "9.9.9")
    paths = write(image, tmp_path / "image.dcm"), write(report, tmp_path / "report.dcm")
    with pytest.raises(NodeError, match=f"report.dcm and .*image.dcm are not of the same {what}"):
        read_source([paths[0]], paths[1])


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    image = write(make_cxr_dataset(), tmp_path / "image.dcm")
    text = write_text(tmp_path / "report.txt")
    truncated = tmp_path / "truncated.dcm"
    truncated.write_bytes(encode(make_cxr_dataset())[:2000])
    binary = tmp_path / "report.bin"
    binary.write_bytes(b"\xff\xfe\x00\x01" * 100)
    with pytest.raises(NodeError, match=r"truncated\.dcm"):
        read_source([truncated], text)
    with pytest.raises(ManifestError, match=r"report\.txt"):
        read_source([text], text)
    with pytest.raises(NodeError, match=r"report\.bin is neither a DICOM SR nor a text in UTF-8"):
        read_source([image], binary)
    with pytest.raises(NodeError, match="holds no text"):
        read_source([image], write_text(tmp_path / "empty.txt", "\n"))
    with pytest.raises(NodeError, match="holds no text"):
        read_source([image], image)
