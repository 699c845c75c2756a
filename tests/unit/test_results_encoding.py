"""Results as files: what is encoded here is what pydicom writes, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.results import encoding
from dicom_node.results.encoding import Encoder
from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import build_sr, recast_sr
from dicom_node.results.values import ResultInput
from tests.builders import make_result_input
from tests.validation.results import draw_result


def results_of(result: ResultInput) -> Iterator[Dataset]:
    sr = build_sr(result)
    if sr is not None:
        yield sr
        yield recast_sr(sr, replace(result, sr_class="comprehensive"))
    for index in range(len(result.images)):
        if (gsps := build_gsps(result, index)) is not None:
            yield gsps


def written(ds: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
@pytest.mark.parametrize("seed", range(40))
def test_bytes_are_those_that_pydicom_writes(seed: int) -> None:
    encoder = Encoder()
    for ds in results_of(draw_result(seed)):
        assert encoder.encode(ds) == written(ds)


def test_nothing_of_a_usual_result_is_left_to_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [written(ds) for ds in results_of(make_result_input())]
    monkeypatch.setattr(encoding, "dcmwrite", only_head)
    assert [Encoder().encode(ds) for ds in results_of(make_result_input())] == expected


def only_head(buffer: BytesIO, ds: Dataset, *, enforce_file_format: bool) -> None:
    assert len(ds) <= 2
    dcmwrite(buffer, ds, enforce_file_format=enforce_file_format)


def test_what_is_not_usual_is_as_pydicom_writes_it() -> None:
    for change in (_name_a_character_set, _add_an_ambiguous_element, _add_odd_values, _add_what_utf_8_cannot_hold):
        (ds, *_) = results_of(make_result_input())
        change(ds)
        assert Encoder().encode(ds) == written(ds), change


def test_another_transfer_syntax_is_as_pydicom_writes_it() -> None:
    (ds, *_) = results_of(make_result_input())
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert Encoder().encode(ds) == written(ds)


def _name_a_character_set(ds: Dataset) -> None:
    ds.ContentSequence[0].SpecificCharacterSet = "ISO_IR 100"


def _add_an_ambiguous_element(ds: Dataset) -> None:
    ds.PixelRepresentation = 1
    ds.add_new("SmallestImagePixelValue", "US or SS", -2)


def _add_odd_values(ds: Dataset) -> None:
    item = Dataset()
    item.PatientName, item.PatientComments = "Müller^Jürgen", ""
    item.OtherPatientIDs, item.ImageType = ["1", "2"], ["DERIVED", "SECONDARY"]
    item.PixelSpacing, item.InstanceNumber = [0.1, 0.2], 7
    item.SimpleFrameList, item.GraphicData = [1, 2, 3], [0.5, 1.5]
    item.EncapsulatedDocument, item.StudyDate = b"abc", None
    item.add_new(0x00091001, "UN", b"private")
    item.add_new("PatientInsurancePlanCodeSequence", "SQ", [])
    item.add_new("InstitutionAddress", "ST", "a" * 70_000)
    ds.ReferencedStudySequence = [item]


def _add_what_utf_8_cannot_hold(ds: Dataset) -> None:
    ds.InstitutionName = "\ud800"
