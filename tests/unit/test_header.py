"""What is taken over from received headers: readable values, blank for the rest, never an exception."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.header import copy_identity, read_items, read_lut, read_number, read_text, read_timezone
from tests.builders import decode, encode, make_cxr_dataset, make_item

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"


def test_identity_is_copied_as_it_is():
    image = make_cxr_dataset(PatientAge="042Y", IssuerOfPatientID="HOSPITAL")
    identity = copy_identity(image)
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "PatientAge", "StudyInstanceUID", "StudyTime"):
        assert identity[keyword].value == image[keyword].value
    assert "PixelData" not in identity


@pytest.mark.parametrize("keyword", ["Rows", "PixelPaddingValue"])
def test_number_of_a_wrong_length_is_none(keyword):
    """pydicom raises an exception of its own here, which is none of Python's."""
    ds = make_cxr_dataset()
    tag = pydicom.tag.Tag(keyword)
    ds[tag] = pydicom.dataelem.RawDataElement(tag, "US", 3, b"\1\2\3", 0, False, True)
    assert read_number(ds, keyword) is None
    assert read_text(ds, keyword) == ""


def test_empty_header_gives_all_type_2_attributes_blank():
    identity = copy_identity(Dataset())
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        assert not identity[keyword].value


@pytest.mark.parametrize(
    ("keyword", "written", "kept"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "O", "O"),
        ("PatientBirthDate", "19601350", ""),
        ("PatientBirthDate", "1960.01.02", "19600102"),
        ("StudyTime", "256060", ""),
        ("StudyTime", "101112.25", "101112.250000"),
        ("StudyTime", "1011", "101100"),
        ("StudyDate", "garbage", ""),
    ],
)
def test_values_are_normal_or_blank(keyword, written, kept):
    assert str(copy_identity(make_cxr_dataset(**{keyword: written}))[keyword].value) == kept


@pytest.mark.parametrize("age", ["81", "81Y", "abcY", "0420Y"])
def test_bad_age_is_left_out(age):
    assert "PatientAge" not in copy_identity(make_cxr_dataset(PatientAge=age))


def test_issuer_of_the_accession_number_is_copied():
    issuer = make_item("", None, None, LocalNamespaceEntityID="HOSP", UniversalEntityIDType="ISO")
    identity = copy_identity(make_cxr_dataset(IssuerOfAccessionNumberSequence=[issuer, Dataset()]))
    (copied,) = identity.IssuerOfAccessionNumberSequence
    assert (copied.LocalNamespaceEntityID, copied.UniversalEntityIDType) == ("HOSP", "ISO")
    assert "ValueType" not in copied


def test_first_value_and_missing_ones():
    ds = make_cxr_dataset(WindowCenter=[3, 4])
    assert read_number(ds, "WindowCenter") == 3.0
    assert read_number(ds, "PatientName") is None
    assert read_number(Dataset(), "Rows") is None
    assert read_text(Dataset(), "PatientName") == ""
    assert read_items(ds, "Rows") == []
    assert read_items(ds, "ModalityLUTSequence") == []


@pytest.mark.parametrize(
    ("text", "hours"), [("+0100", 1.0), ("-0330", -3.5), ("", None), ("+9999", None), ("noon", None)]
)
def test_timezone_is_read_or_unknown(text, hours):
    zone = read_timezone(make_cxr_dataset(TimezoneOffsetFromUTC=text))
    assert (zone.utcoffset(None) if zone else None) == (timedelta(hours=hours) if hours is not None else None)


def test_lut_is_read_in_words_and_in_bytes():
    for raw, bits in ((np.arange(300, dtype="<u2").tobytes(), 16), (bytes(range(256)) + bytes(44), 8)):
        lut = Dataset()
        lut.add_new("LUTDescriptor", "US", [300, 7, bits])
        lut.add_new("LUTData", "OW", raw)
        read = read_lut(lut)
        assert read is not None
        assert (read[0], read[1], len(read[2]), int(read[2][200])) == (7, bits, 300, 200)


@pytest.mark.parametrize("descriptor", [[300, 0, 40], [500, 0, 16], [1, 2], []])
def test_broken_lut_is_none(descriptor):
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", descriptor)
    lut.add_new("LUTData", "OW", bytes(600))
    assert read_lut(lut) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared samples are not here")
def test_names_in_all_character_sets_survive():
    for path in sorted((DATA / "charsets").glob("*.dcm")):
        ds = pydicom.dcmread(path)
        identity = copy_identity(ds)
        identity.file_meta = make_cxr_dataset().file_meta
        again = decode(encode(identity))
        assert str(again.PatientName) == str(ds.get("PatientName", "")), path.name


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared samples are not here")
def test_malformed_headers_are_copied_or_left_blank():
    copied = 0
    for path in sorted((DATA / "malformed").glob("*.dcm")):
        try:
            ds = pydicom.dcmread(path, force=True)
        except Exception:  # noqa: BLE001 - which files pydicom itself refuses is not what is tested
            continue
        assert "PatientID" in copy_identity(ds)
        copied += 1
    assert copied > 200


def test_value_that_cannot_be_decoded_is_none():
    ds = decode(encode(make_cxr_dataset(WindowCenter="2048")).replace(b"2048", b"xy.z"))
    assert read_number(ds, "WindowCenter") is None
