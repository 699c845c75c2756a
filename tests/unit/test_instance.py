"""Identity and facts of received bytes: right on good ones, one kind of error on others, and cheap on hostile ones."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from dicom_node.errors import InvalidInstanceError
from dicom_node.head import MAX_HEADER_BYTES
from dicom_node.header import MANUFACTURER
from dicom_node.instance import (
    _KEYWORDS,
    _LAST_READ,
    MAX_REFERENCES,
    Instance,
    read_instance,
)
from tests.builders import (
    CR_STORAGE,
    DX_PROCESSING_STORAGE,
    encode,
    make_code,
    make_cxr_dataset,
    make_report_dataset,
    make_section,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
IMAGE = encode(make_cxr_dataset())
REPORT = encode(make_report_dataset(image=make_cxr_dataset()))
DOSE_TITLE = make_code("113701", "DCM", "X-Ray Radiation Dose Report")
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"


def encode_as(ds: Dataset, syntax: str) -> bytes:
    """Return Part 10 bytes in any native transfer syntax."""
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds["PixelData"].VR = "OW"
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def make_part10(dataset: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return Part 10 bytes around a dataset that is encoded already."""
    head = BytesIO()
    ds = make_cxr_dataset()
    ds.file_meta.TransferSyntaxUID = syntax
    empty = Dataset()
    empty.file_meta = ds.file_meta
    empty.SOPClassUID, empty.SOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    dcmwrite(head, empty, enforce_file_format=True)
    whole = head.getvalue()
    start = 144 + int.from_bytes(whole[140:144], "little")
    return whole[:start] + dataset


def encode_dataset(ds: Dataset) -> bytes:
    """Return the dataset alone in Explicit VR Little Endian, whatever its values."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.getvalue()


def dataset_of(part10: bytes) -> bytes:
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def refused(content: bytes) -> str:
    """Return why `content` is refused."""
    with pytest.raises(InvalidInstanceError) as raised:
        read_instance(content)
    return str(raised.value)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_facts_of_a_radiograph() -> None:
    ds = make_cxr_dataset(PatientID=" 12 ", AccessionNumber="A1")
    instance = read_instance(encode(ds))
    assert instance == Instance(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        study_instance_uid=ds.StudyInstanceUID,
        series_instance_uid=ds.SeriesInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        modality="DX",
        patient_id="12",
        patient_birth_date="19600101",
        patient_sex="F",
        accession_number="A1",
        image_type=("ORIGINAL", "PRIMARY", ""),
        presentation_intent="FOR PRESENTATION",
        rows=140,
        columns=96,
        view_position="PA",
        view_code=("272479007", "SCT"),
        patient_orientation=("L", "F"),
        body_part="CHEST",
        series_number=1,
        instance_number=1,
    )
    assert instance.role == "image"


def test_facts_of_a_report() -> None:
    image = make_cxr_dataset()
    instance = read_instance(encode(make_report_dataset(image=image)))
    assert instance.role == "report"
    assert instance.title == ("18748-4", "LN")
    assert instance.content_datetime == "20260102113000"
    assert (instance.completion_flag, instance.preliminary_flag) == ("COMPLETE", "FINAL")
    assert instance.evidence == (image.SOPInstanceUID,)


def test_a_file_reads_as_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(IMAGE)
    assert read_instance(path) == read_instance(IMAGE)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_native_transfer_syntax_reads_the_same(syntax: str) -> None:
    instance = read_instance(encode_as(make_cxr_dataset(), syntax))
    assert instance.transfer_syntax_uid == syntax
    assert instance.facts() | {"transfer_syntax_uid": ""} == read_instance(IMAGE).facts() | {"transfer_syntax_uid": ""}


def test_a_compressed_image_is_identified_without_decoding() -> None:
    content = make_part10(dataset_of(IMAGE), JPEG2000Lossless)
    assert read_instance(content).transfer_syntax_uid == JPEG2000Lossless


@pytest.mark.parametrize(
    ("ds", "role"),
    [
        (make_cxr_dataset(sop_class_uid=CR_STORAGE), "image"),
        (make_cxr_dataset(sop_class_uid=DX_PROCESSING_STORAGE), "other"),
        (make_cxr_dataset(PresentationIntentType="FOR PROCESSING"), "other"),
        (make_report_dataset(sop_class_uid=KEY_OBJECTS), "other"),
        (
            make_report_dataset(ConceptNameCodeSequence=[make_code("113701", "DCM", "X-Ray Radiation Dose Report")]),
            "other",
        ),
        (make_report_dataset(ConceptNameCodeSequence=None), "report"),
        (make_report_dataset(sop_class_uid=GSPS), "other"),
    ],
)
def test_role(ds: Dataset, role: str) -> None:
    assert read_instance(encode(ds)).role == role


def test_own_results_are_known_by_their_equipment() -> None:
    equipment = Dataset()
    equipment.Manufacturer = MANUFACTURER
    by_general = make_report_dataset(Manufacturer=MANUFACTURER)
    by_contributing = make_report_dataset(sop_class_uid=GSPS, ContributingEquipmentSequence=[equipment])
    for ds in (by_general, by_contributing):
        instance = read_instance(encode(ds))
        assert instance.is_own_result
        assert instance.role == "other"
    assert not read_instance(encode(make_cxr_dataset(Manufacturer=MANUFACTURER))).is_own_result
    assert not read_instance(encode(make_report_dataset(Manufacturer=f"{MANUFACTURER} phantom"))).is_own_result


def test_no_attribute_that_is_read_stands_behind_the_last_one() -> None:
    assert max(map(Tag, _KEYWORDS)) == _LAST_READ


def test_facts_survive_json() -> None:
    for content in (IMAGE, REPORT):
        instance = read_instance(content)
        facts = json.loads(json.dumps(instance.facts()))
        assert Instance.from_facts(facts | {"of_a_newer_version": 1}) == instance


def test_texts_are_made_fit_for_any_database() -> None:
    instance = read_instance(
        encode(make_cxr_dataset(PatientID="A\0B\x1bC", AccessionNumber="x" * 5000, Modality="dx\\cr"))
    )
    assert "\0" not in instance.patient_id
    assert len(instance.accession_number) == 256
    assert instance.modality == "dx"
    json.dumps(instance.facts()).encode()


def test_numbers_that_are_none_are_none() -> None:
    ds = make_cxr_dataset()
    ds.add_new("SeriesNumber", "LO", "many")
    ds.add_new("InstanceNumber", "LO", "1e300")
    instance = read_instance(encode(ds))
    assert (instance.series_number, instance.instance_number) == (None, None)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1." + "2" * 64, "1..2", "../../etc/passwd"])
def test_a_uid_that_is_missing_or_no_uid_is_named(keyword: str, value: str | None) -> None:
    ds = make_cxr_dataset()
    if value is None:
        del ds[keyword]
    else:
        ds.add_new(keyword, "LO", value)
    assert keyword in refused(make_part10(encode_dataset(ds)))


@pytest.mark.parametrize("content", [b"", b"DICM", b"\x89PNG\r\n\x1a\n" * 100, b"\0" * 1000, b"\0" * 128 + b"DICM"])
def test_what_is_no_dicom_file_is_refused(content: bytes, tmp_path: Path) -> None:
    refused(content)
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InvalidInstanceError):
        read_instance(path)


def test_reasons_hold_nothing_of_the_content() -> None:
    ds = make_cxr_dataset(PatientName="Secret^Person", PatientID="SECRET")
    ds.add_new("StudyInstanceUID", "LO", "SECRET")
    assert "SECRET" not in refused(make_part10(encode_dataset(ds))).upper()


def test_a_missing_file_is_an_invalid_instance(tmp_path: Path) -> None:
    with pytest.raises(InvalidInstanceError):
        read_instance(tmp_path / "none")


@given(st.binary(max_size=600))
def test_any_bytes_give_an_instance_or_the_one_error(content: bytes) -> None:
    with suppress(InvalidInstanceError):
        read_instance(make_part10(content))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([IMAGE, REPORT]), st.integers(1, 20))
def test_damaged_headers_give_an_instance_or_the_one_error(seed: int, content: bytes, flips: int) -> None:
    rng = random.Random(seed)
    damaged = bytearray(content)
    end = min(len(content), 2500)
    for _ in range(flips):
        damaged[rng.randrange(132, end)] = rng.randrange(256)
    with suppress(InvalidInstanceError):
        json.dumps(read_instance(bytes(damaged[: rng.randrange(132, len(damaged))])).facts()).encode()


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
def test_every_file_of_the_corpus_gives_an_instance_or_the_one_error() -> None:
    paths = sorted(path for path in DATA.rglob("*") if path.is_file())
    outcomes = {path: _outcome(path) for path in paths}
    assert len(outcomes) > 250
    assert all(outcomes[path] == "ok" for path in paths if path.parent.name == "structured_reports")


def _outcome(path: Path) -> str:
    try:
        json.dumps(read_instance(path).facts()).encode()
    except InvalidInstanceError as error:
        return str(error)
    return "ok"


# ---- what bytes say outright is what pydicom makes of them -----------------------------------------------------------


def read_both_ways(content: bytes) -> tuple[Instance | str, Instance | str]:
    """Return what is read of a header, and what pydicom alone would read of it."""

    def read() -> Instance | str:
        try:
            return read_instance(content)
        except InvalidInstanceError as error:
            return str(error)

    quickly = read()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_plain_text", "read_plain_codes", "read_plain_number"):
            patch.setattr(f"dicom_node.instance.{name}", lambda ds, keyword: None)
        return quickly, read()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([IMAGE, REPORT]), st.integers(1, 8))
def test_damaged_headers_are_read_as_pydicom_reads_them(seed: int, content: bytes, flips: int) -> None:
    rng = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(flips):
        damaged[rng.randrange(132, min(len(content), 2500))] = rng.choice(
            [0, 0x20, 0x5C, 0x7E, 0x1B, rng.randrange(256)]
        )
    quickly, slowly = read_both_ways(bytes(damaged))
    assert quickly == slowly


VALUES = st.text("AZaz09 .-+^=\\~\x1b\x00é%", max_size=20)


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES, VALUES, VALUES, st.sampled_from(["", "ISO_IR 13", "ISO_IR 100", "ISO_IR 192", "ISO 2022 IR 87"]))
@pytest.mark.filterwarnings("ignore")
def test_any_values_are_read_as_pydicom_reads_them(
    text: str, codes: str, number: str, other: str, character_set: str
) -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        ds = make_cxr_dataset()
        ds.SpecificCharacterSet = character_set
        values = {"PatientID": text, "AccessionNumber": text, "ImageType": codes, "Modality": codes}
        values |= {
            "PatientOrientation": codes,
            "SeriesNumber": number,
            "BodyPartExamined": other,
            "ContentDate": number,
        }
        for keyword, value in values.items():
            ds[keyword] = RawDataElement(
                Tag(keyword), ds[keyword].VR if keyword in ds else "DA", len(value.encode()), value.encode(), 0,
                False, True,
            )  # fmt: skip
        content = encode_raw(ds, syntax)
        quickly, slowly = read_both_ways(content)
        assert isinstance(quickly, Instance) and quickly == slowly


def encode_raw(ds: Dataset, syntax: str) -> bytes:
    """Return the bytes of a dataset whose raw elements are written as they are."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    values = {tag: ds.get_item(tag) for tag in sorted(ds.keys()) if tag < Tag("PixelData")}
    for tag, element in values.items():
        if isinstance(element, RawDataElement):
            content = element.value + b" " * (len(element.value) % 2)
            endian = "<" if buffer.is_little_endian else ">"
            buffer.write(struct.pack(f"{endian}HH", tag.group, tag.element))
            if buffer.is_implicit_VR:
                buffer.write(struct.pack("<L", len(content)) + content)
            else:
                buffer.write(element.VR.encode() + struct.pack(f"{endian}H", len(content)) + content)
        else:
            part = Dataset()
            part.add(element)
            write_dataset(buffer, part)
    return make_part10(buffer.getvalue(), syntax)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
def test_every_file_of_the_corpus_is_read_as_pydicom_reads_it() -> None:
    for path in sorted(path for path in DATA.rglob("*") if path.is_file()):
        quickly, slowly = read_both_ways(path.read_bytes())
        assert quickly == slowly, path.name


# ---- hostile input ---------------------------------------------------------------------------------------------------


def header(tag: tuple[int, int], vr: bytes, length: int) -> bytes:
    """Return the header of an explicit VR little endian element with a long length."""
    return struct.pack("<HH2sHL", *tag, vr, 0, length)


UNDEFINED = 0xFFFFFFFF
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
EMPTY_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
SEQUENCE = header((0x0008, 0x1140), b"SQ", UNDEFINED)


def peak_bytes(content: bytes) -> int:
    """Return how much memory reading `content`, which must be refused, took at most."""
    tracemalloc.start()
    try:
        refused(content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused() -> None:
    refused(make_part10((SEQUENCE + ITEM) * 20_000))


def test_a_claimed_length_is_not_allocated() -> None:
    claims = header((0x0008, 0x0060), b"UT", 0xFFFFFFF0) + b"CR"
    assert peak_bytes(make_part10(claims)) < 2**20


def test_endless_empty_items_are_refused_early() -> None:
    endless = SEQUENCE + EMPTY_ITEM * (4 * MAX_HEADER_BYTES // 8)
    refused(make_part10(endless))


def test_endless_elements_are_refused_early() -> None:
    element = struct.pack("<HH2sH", 0x0009, 0x0010, b"LO", 0)
    assert "claims to have" in refused(make_part10(element * (2 * MAX_HEADER_BYTES // 8)))


def test_a_deflate_bomb_is_not_inflated() -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = (
        squeezer.compress(header((0x0008, 0x0060), b"UT", 2**28)) + squeezer.compress(bytes(2**27)) + squeezer.flush()
    )
    content = make_part10(bomb, DeflatedExplicitVRLittleEndian)
    assert len(content) < 2**18
    assert peak_bytes(content) < 8 * MAX_HEADER_BYTES


def test_pixels_behind_a_deflated_header_are_not_inflated() -> None:
    ds = make_cxr_dataset()
    ds.PixelData = bytes(2**25)
    tracemalloc.start()
    content = encode_as(ds, DeflatedExplicitVRLittleEndian)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert read_instance(content).rows == 140
    assert tracemalloc.get_traced_memory()[1] - before < 4 * MAX_HEADER_BYTES
    tracemalloc.stop()


def test_references_are_limited() -> None:
    references: list[Any] = []
    for number in range(MAX_REFERENCES + 10):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR_STORAGE, f"1.2.{number}"
        references.append(item)
    ds = make_report_dataset(image=make_cxr_dataset())
    study = ds.CurrentRequestedProcedureEvidenceSequence[0]
    study.ReferencedSeriesSequence[0].ReferencedSOPSequence = references
    assert len(read_instance(encode(ds)).evidence) == MAX_REFERENCES


def test_a_long_report_is_identified_by_its_beginning() -> None:
    sections = [make_section(("121070", "DCM", "Findings"), ["word " * 2000] * 400)]
    content = encode(make_report_dataset(sections))
    assert len(content) > 1.5 * MAX_HEADER_BYTES
    assert read_instance(content).role == "report"


def make_request(priority: str) -> Dataset:
    """Return an image with a request of this priority in its Request Attributes Sequence."""
    request = Dataset()
    request.RequestedProcedurePriority = priority
    return make_cxr_dataset(RequestAttributesSequence=[request])


@pytest.mark.parametrize(
    ("ds", "priority"),
    [
        (make_cxr_dataset(), ""),
        (make_cxr_dataset(RequestedProcedurePriority="STAT"), "STAT"),
        (make_cxr_dataset(RequestedProcedurePriority="stat", StudyPriorityID="LOW"), "STAT"),
        (make_cxr_dataset(StudyPriorityID="HIGH"), "HIGH"),
        (make_request("HIGH"), "HIGH"),
        (make_report_dataset(RequestedProcedurePriority="ROUTINE"), "ROUTINE"),
    ],
)
def test_the_priority_of_the_order_is_read(ds: Dataset, priority: str) -> None:
    assert read_instance(encode(ds)).procedure_priority == priority


@pytest.mark.parametrize(("value", "priority"), [(0, "MEDIUM"), (1, "HIGH"), (2, "LOW"), (7, "")])
def test_the_priority_of_a_store_is_kept_with_the_instance(value: int, priority: str) -> None:
    instance = read_instance(encode(make_cxr_dataset()), value)
    assert Instance.from_facts(instance.facts()).c_store_priority == priority
