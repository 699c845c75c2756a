"""What the demonstration compares: the study it makes, and the results it accepts or refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.cli.demo import find_faults
from dicom_node.cli.demo_study import make_image_dataset, make_report_dataset
from dicom_node.instance import read_instance
from dicom_node.pixels import render
from dicom_node.report import read_report
from dicom_node.results.findings import GroundedImage, findings_document
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr
from dicom_node.results.values import ResultInput
from grounding.phantoms.study import make_study
from tests.builders import encode
from tests.fakes import FakeGrounder

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
PHANTOM = make_study(900_019, shape=(192, 160))
IMAGE = make_image_dataset(PHANTOM.image, "1", NOW)
REPORT = make_report_dataset(PHANTOM, IMAGE, "1", NOW)


def test_the_study_is_read_as_the_phantom_drew_and_wrote_it() -> None:
    assert np.abs(render(IMAGE) - PHANTOM.image).max() < 1 / 2000
    report = read_report(REPORT)
    used = " ".join(report.text[sentence.start : sentence.end] for sentence in report.sentences)
    for phrase in PHANTOM.phrases:
        assert phrase.phrase in used
    assert "Evaluate for" not in used


def test_the_study_is_one_study_of_one_patient() -> None:
    image, report = (read_instance(encode(ds)) for ds in (IMAGE, REPORT))
    assert image.study_instance_uid == report.study_instance_uid
    assert image.patient_id == report.patient_id
    assert image.series_instance_uid != report.series_instance_uid
    assert (image.role, report.role) == ("image", "report")


def make_results() -> tuple[dict[str, Any], list[Dataset]]:
    """Return the findings and the results of a fake model on the demonstration's study."""
    report = read_report(REPORT)
    grounding = FakeGrounder().ground([PHANTOM.image], report.to_report_text())
    result = ResultInput((IMAGE,), REPORT, report, grounding, NOW)
    built = [build_sr(result), build_gsps(result, 0)]
    images = [GroundedImage(IMAGE.SOPInstanceUID, IMAGE.Rows, IMAGE.Columns)]
    return findings_document(grounding, images, IMAGE.StudyInstanceUID), [ds for ds in built if ds is not None]


def test_results_that_agree_have_no_faults() -> None:
    document, results = make_results()
    assert len(results) == 2
    assert find_faults(IMAGE, document, results) == []


def break_patient(document: dict[str, Any], results: list[Dataset]) -> None:
    results[0].PatientID = "SOMEBODY ELSE"


def break_study(document: dict[str, Any], results: list[Dataset]) -> None:
    results[1].StudyInstanceUID = "1.2.3"


def break_box(document: dict[str, Any], results: list[Dataset]) -> None:
    document["findings"][0]["boxes"][0]["xyxy"][0] += 1


def drop_box(document: dict[str, Any], results: list[Dataset]) -> None:
    document["findings"][0]["boxes"] = []


def drop_presentation_state(document: dict[str, Any], results: list[Dataset]) -> None:
    del results[1]


def repeat_sr(document: dict[str, Any], results: list[Dataset]) -> None:
    results.append(results[0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_patient, "SR differs from the image in PatientID"),
        (break_study, "PR differs from the image in StudyInstanceUID"),
        (break_box, "the boxes of the SR are not those of the job"),
        (drop_box, "the boxes of the PR are not those of the job"),
        (drop_presentation_state, "1 SR and 0 GSPS"),
        (repeat_sr, "2 SR and 1 GSPS"),
    ],
)
def test_results_that_do_not_agree_are_refused(
    damage: Callable[[dict[str, Any], list[Dataset]], None], says: str
) -> None:
    document, results = make_results()
    damage(document, results)
    assert any(says in fault for fault in find_faults(IMAGE, document, results))
