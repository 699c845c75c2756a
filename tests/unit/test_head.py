"""The head of a file is what pydicom reads of it, whoever reads which part; bounds hold for both."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node import head, instance
from dicom_node.head import BLOCK_BYTES, read_head
from tests.builders import encode, make_code, make_cxr_dataset, make_report_dataset

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)


def encode_as(ds: Dataset, syntax: str, *, undefined: bool = False) -> bytes:
    """Return Part 10 bytes in a native transfer syntax, sequences with or without their lengths."""
    ds.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in ds and syntax == ExplicitVRBigEndian:
        ds["PixelData"].VR = "OW"
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def make_image(**attributes: Any) -> Dataset:
    """Return an image whose head has sequences, and letters of an older character set."""
    order = Dataset()
    order.RequestedProcedurePriority = "STAT"
    return make_cxr_dataset(
        SpecificCharacterSet="ISO_IR 100", SeriesDescription="Röntgen", ViewCodeSequence=[make_code("1", "SCT", "PA")],
        RequestAttributesSequence=[order], **attributes,
    )  # fmt: skip


def outcome(content: bytes) -> object:
    """Return what becomes of a file: what is known of it, or that it is refused."""
    try:
        return instance.read_instance(content)
    except head.InvalidInstanceError:
        return "refused"


def outcome_by_pydicom(content: bytes) -> object:
    """Return the same, all of it read by pydicom."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "_scan", lambda *_: None)
        return outcome(content)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("make", [make_image, make_report_dataset])
def test_every_encoding_reads_as_by_pydicom(make: Any, syntax: str, undefined: bool) -> None:
    content = encode_as(make(), syntax, undefined=undefined)
    found = outcome(content)
    assert isinstance(found, instance.Instance)
    assert found == outcome_by_pydicom(content)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_plain_head_is_read_without_pydicom(monkeypatch: pytest.MonkeyPatch, syntax: str) -> None:
    content = encode_as(make_image(), syntax)
    expected = outcome_by_pydicom(content)
    for name in ("data_element_generator", "read_dataset"):
        monkeypatch.setattr(head, name, None)
    assert outcome(content) == expected


@pytest.mark.parametrize("length", [BLOCK_BYTES // 2, BLOCK_BYTES, 4 * BLOCK_BYTES])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_is_behind_a_long_element_is_read(syntax: str, length: int) -> None:
    ds = make_image()
    ds.add_new(0x00091010, "UN", bytes(length))  # read before Patient ID, Rows and View Code Sequence
    found = outcome(encode_as(ds, syntax))
    assert isinstance(found, instance.Instance)
    assert (found.patient_id, found.rows, found.view_code) == (ds.PatientID, ds.Rows, ("1", "SCT"))
    assert found.description.startswith("RÖNTGEN")
    assert found.procedure_priority == "STAT"


FILES = [encode_as(make(), syntax) for make in (make_image, make_report_dataset) for syntax in SYNTAXES[:2]]
CHANGES = st.lists(st.tuples(st.integers(132, 900), st.binary(min_size=1, max_size=6)), max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FILES), CHANGES, st.integers(132, 4000))
@example(FILES[0], [(4000, b"")], 144)
def test_damage_is_read_as_by_pydicom(content: bytes, changes: list[tuple[int, bytes]], end: int) -> None:
    damaged = bytearray(content)
    for at, change in changes:
        damaged[at : at + len(change)] = change
    content = bytes(damaged[:end])
    assert outcome(content) == outcome_by_pydicom(content)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_empty_character_set_is_none(syntax: str) -> None:
    content = encode_as(make_cxr_dataset(SpecificCharacterSet=""), syntax)
    found = outcome(content)
    assert isinstance(found, instance.Instance)
    assert found == outcome_by_pydicom(content)


def test_a_head_in_another_encoding_than_it_says_is_read() -> None:
    explicit = encode_as(make_image(), ExplicitVRLittleEndian)
    lies = explicit.replace(ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2\0\0\0", 1)
    assert len(lies) == len(explicit)
    found = outcome(lies)
    assert isinstance(found, instance.Instance)
    assert found.rows == 140


def test_a_file_without_a_transfer_syntax_is_refused() -> None:
    content = encode(make_cxr_dataset())
    at = content.index(struct.pack("<HH", 2, 0x10))
    broken = content[: at + 8] + bytes(content[at + 6]) + content[at + 8 + content[at + 6] :]
    with pytest.raises(head.InvalidInstanceError, match="Transfer Syntax"):
        read_head(BytesIO(broken), instance._EXTENT)
