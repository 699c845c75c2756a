"""Every result document through foreign validators: dciodvfy of dicom3tools, dsrdump and dcmpschk of DCMTK.

Over many more results: `tests/validation`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr
from dicom_node.results.values import Equipment, Reference, ResultInput, ResultOptions
from grounding.types import Concept
from tests.builders import (
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    CR_STORAGE,
    ENHANCED_SR,
    MULTI_FRAME_SC,
    make_cda_dataset,
    make_cxr_dataset,
    make_finding,
    make_findings,
    make_report_dataset,
    make_result_input,
    write,
)
from tests.validators import ALLOWED, FOREIGN, check_report_with_dcmtk, check_state_with_dcmtk, check_with_dciodvfy

RADIOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "dicom"


def make_short_lut() -> Dataset:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [4096, 0, 12])
    lut.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16).tobytes())
    return lut


def japanese() -> ResultInput:
    image = make_cxr_dataset(
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", SpecificCharacterSet=["", "ISO 2022 IR 87"]
    )
    return make_result_input(image, findings=[make_finding("左胸水貯留を認める", (1, 2, 30, 40))])


def two_images() -> ResultInput:
    images = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    findings = [make_finding("Left effusion", (1, 2, 30, 40), image=n) for n in (0, 1)]
    return make_result_input(*images, findings=findings)


def sparse_header() -> ResultInput:
    absent = dict.fromkeys(
        ("PatientName", "PatientBirthDate", "StudyTime", "StudyID", "ImagerPixelSpacing", "WindowCenter", "WindowWidth",
         "RescaleSlope", "RescaleIntercept", "RescaleType", "PatientOrientation", "StudyDescription")
    )  # fmt: skip
    return make_result_input(make_cxr_dataset(**absent, PatientSex="U", AccessionNumber=""))


def revised() -> ResultInput:
    study = make_cxr_dataset().StudyInstanceUID
    predecessor = Reference(COMPREHENSIVE_3D_SR, "2.25.7", "2.25.8", study)
    return make_result_input(revision=2, predecessors=(predecessor,), equipment=Equipment("Hospital", "STATION", "1.0"))


def of(*images: Dataset, **values: Any) -> Callable[[], ResultInput]:
    return lambda: make_result_input(*images, **values)


CDA = (
    "<ClinicalDocument><component><structuredBody><component><section><title>Findings</title>"
    "<text>Small left pleural effusion.</text></section></component></structuredBody></component></ClinicalDocument>"
)

INPUTS: dict[str, Callable[[], ResultInput]] = {
    "dx monochrome2": of(),
    "dx monochrome1": of(make_cxr_dataset(photometric="MONOCHROME1")),
    "cr monochrome1": of(make_cxr_dataset(sop_class_uid=CR_STORAGE, photometric="MONOCHROME1")),
    "comprehensive": of(sr_class="comprehensive"),
    "plain tracking": of(options=ResultOptions(tracking="plain")),
    "without gsps": of(options=ResultOptions(gsps=False)),
    "japanese": japanese,
    "two images": two_images,
    "multi-frame": of(make_cxr_dataset(NumberOfFrames=2, SOPClassUID=MULTI_FRAME_SC)),
    "sparse header": sparse_header,
    "timezone": of(make_cxr_dataset(TimezoneOffsetFromUTC="+0100")),
    "revised": revised,
    "voi lut": of(make_cxr_dataset(WindowCenter=None, WindowWidth=None, VOILUTSequence=[make_short_lut()])),
    "enhanced report": of(report=make_report_dataset(image=make_cxr_dataset(), sop_class_uid=ENHANCED_SR)),
    "report as a CDA document": of(report=make_cda_dataset(CDA)),
    "report of another study": of(report=make_report_dataset(study="2")),
    "long phrase": of(findings=[make_finding("word " * 600, (1, 2, 30, 40))]),
    "long code": of(findings=[make_finding("x", (1, 2, 30, 40), finding=Concept("1" * 18, "SCT", "Odd finding"))]),
    "nothing localized, text": of(findings=make_findings()[2:]),
    "nothing localized, strict": of(
        findings=make_findings()[2:], options=ResultOptions(when_nothing_localized="tid1500")
    ),
    "nothing localized, comprehensive": of(findings=make_findings()[2:], sr_class="comprehensive"),
    "no phrases": of(findings=[]),
    "stored mirrored, boxes on the other side": of(make_cxr_dataset(PatientOrientation=["R", "F"])),
    "low confidence": of(options=ResultOptions(min_confidence=0.5)),
}


def build_all(result: ResultInput, folder: Path) -> tuple[Path, list[Path]]:
    """Write the SR and every presentation state of `result`; return their paths."""
    sr = build_sr(result)
    assert sr is not None
    states = [build_gsps(result, index) for index in range(len(result.images))]
    paths = [write(state, folder / f"{n}.dcm") for n, state in enumerate(states) if state is not None]
    return write(sr, folder / "sr.dcm"), paths


@pytest.mark.parametrize("name", INPUTS)
def test_documents_pass_dciodvfy(name, tmp_path):
    sr, states = build_all(INPUTS[name](), tmp_path)
    for path in (sr, *states):
        check_with_dciodvfy(path)


@pytest.mark.parametrize("name", INPUTS)
def test_sr_is_read_by_dcmtk(name, tmp_path):
    sr, _ = build_all(INPUTS[name](), tmp_path)
    check_report_with_dcmtk(sr)


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("japanese", "sparse header")])
def test_presentation_state_is_read_by_dcmtk(name, tmp_path):
    """Not for the Japanese patient and the one without a name: DCMTK 3.6 takes both names for errors."""
    _, states = build_all(INPUTS[name](), tmp_path)
    for path in states:
        check_state_with_dcmtk(path)


def test_dciodvfy_would_report_a_broken_document(tmp_path):
    """A check that cannot fail shows nothing."""
    sr = build_sr(make_result_input())
    assert sr is not None
    del sr.CompletionFlag
    with pytest.raises(AssertionError, match="CompletionFlag"):
        check_with_dciodvfy(write(sr, tmp_path / "sr.dcm"))


@pytest.mark.skipif(not RADIOGRAPHS.is_dir(), reason="the shared radiographs are not here")
@pytest.mark.parametrize("sr_class", ["comprehensive_3d", "comprehensive"])
@pytest.mark.parametrize(
    "name",
    [
        "cxr/NIH-DX-11129",
        "cxr/RG1_J2KI",
        "cxr/RG1_JLSN",
        "cxr/dx_image",
        "other_radiographs/RG2_J2KI",
        "other_radiographs/GH133",
    ],
)
def test_documents_of_real_radiographs_pass_dciodvfy(name, sr_class, tmp_path):
    image = pydicom.dcmread(RADIOGRAPHS / f"{name}.dcm", stop_before_pixels=True)
    findings = [make_finding("Left effusion", (11, 22, 133, 144)), make_finding("No nodule", negated=True)]
    report = make_report_dataset(image=image, sop_class_uid=COMPREHENSIVE_SR)
    result = make_result_input(image, report=report, findings=findings, sr_class=sr_class)
    sr, states = build_all(result, tmp_path)
    assert len(states) == 1
    for path in (sr, *states):
        check_with_dciodvfy(path, ALLOWED + FOREIGN)
