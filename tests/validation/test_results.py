"""Results of every kind before foreign validators, and read back by highdicom: 500 drawn ones, and every real film."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.orientation import ground_stored, read_orientation
from dicom_node.pixels import render
from dicom_node.report import read_report
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr
from dicom_node.results.values import Mark, ResultInput, select_result_marks
from tests.builders import CREATED_AT, make_report_dataset, write
from tests.validation.conftest import SUM
from tests.validation.results import draw_result
from tests.validation.sight import load_model
from tests.validators import (
    check_report_with_dcmtk,
    check_state_with_dcmtk,
    check_with_dciodvfy,
    check_with_pixelmed,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
WITHOUT_META = "CR-MONO1-10-chest"
"""No file meta information and no SOP Class: nothing can refer to it (tests/unit/test_sr.py)."""

FILMS = [
    path
    for path in sorted((*DATA.glob("cxr/*.dcm"), *DATA.glob("other_radiographs/*.dcm")))
    if path.stem != WITHOUT_META
]

REPORT = (
    "FINDINGS: The heart is enlarged. Small left pleural effusion with adjacent consolidation in the left lower lobe. "
    "Nodule in the right upper zone. No pneumothorax. IMPRESSION: Cardiomegaly and left effusion."
)


def check_documents(result: ResultInput, folder: Path, *, pixelmed: bool) -> tuple[int, int]:
    """Write all documents of a result, have them validated and read back; return how many SRs and states there are."""
    sr = build_sr(result)
    states = [state for n in range(len(result.images)) if (state := build_gsps(result, n)) is not None]
    for number, state in enumerate(states):
        path = write(state, folder / f"{number}.dcm")
        check_with_dciodvfy(path, None)
        if state.get("PatientName") and str(state).isascii():  # DCMTK 3.6 takes other texts, and no name, for errors
            check_state_with_dcmtk(path)
    if sr is None:
        return 0, len(states)
    path = write(sr, folder / "sr.dcm")
    check_with_dciodvfy(path, None)
    check_report_with_dcmtk(path)
    check_with_highdicom(path, result)
    if pixelmed:
        check_with_pixelmed(path)
    return 1, len(states)


def check_with_highdicom(path: Path, result: ResultInput) -> None:
    """highdicom reads the same boxes, findings, sites and scores from the SR as were written to it."""
    marks, _ = select_result_marks(result)
    if not marks:
        return
    groups = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    assert len(groups) == len(marks)
    for group, mark in zip(groups, marks, strict=True):
        assert_same(group, mark, result)


def assert_same(group: hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations, mark: Mark, result: ResultInput) -> None:
    assert group.roi is not None
    finding, corners = mark.finding, group.roi.value
    np.testing.assert_array_equal((*corners.min(axis=0), *corners.max(axis=0)), np.float32(mark.box.xyxy))
    read = group.finding_type
    assert (read.value if read is not None else None) == (finding.finding.code if finding.finding else None)
    if finding.site is not None:
        (site,) = group.finding_sites
        assert site.value.value == finding.site.concept.code
        assert (site.laterality is None) == (finding.site.laterality is None)
    (certainty,) = group.get_measurements()
    assert float(certainty.value) == pytest.approx(100 * mark.score, abs=0.051)
    (comment,) = (item for item in group[0].ContentSequence if item.name.value == "121106")
    assert comment.value == finding.phrase
    source = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    assert source.ReferencedSOPInstanceUID == result.images[finding.image].SOPInstanceUID


@pytest.mark.seeds(25, 500)
@pytest.mark.timeout(1200)
def test_drawn_results_are_valid_and_read_back(seeds, tmp_path, record_property, pytestconfig):
    written = np.zeros(2, int)
    is_full = pytestconfig.getoption("--full")
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        written += check_documents(draw_result(seed), folder, pixelmed=is_full or seed in (2, 3))
    record_property(f"{SUM}: SRs of drawn results without an error of any validator", int(written[0]))
    record_property(f"{SUM}: presentation states of drawn results without an error", int(written[1]))


@pytest.mark.skipif(not FILMS, reason="the shared radiographs are not here")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", FILMS, ids=lambda path: path.stem)
def test_results_of_real_films_are_valid_and_read_back(path, tmp_path, record_property, pytestconfig):
    """By the shipped model, chest or not: which films are chosen is another matter."""
    result = ground(pydicom.dcmread(path))
    pixelmed = pytestconfig.getoption("--full") or path == FILMS[0]
    assert check_documents(result, tmp_path, pixelmed=pixelmed)[0] == 1
    record_property(f"{SUM}: real films whose results have no error", 1)


def ground(image: Dataset) -> ResultInput:
    """Return what the shipped model finds in a film."""
    header = make_report_dataset(REPORT, image=image)
    report = read_report(header)
    grounding = ground_stored(load_model(), [render(image)], [read_orientation(image)], report.to_report_text())
    return ResultInput((image,), header, report, grounding, CREATED_AT)
