"""Kept instances are read whole, but no deflated dataset that is a thousand times its file."""

from __future__ import annotations

import zlib
from io import BytesIO

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node import file
from dicom_node.file import read_dataset
from dicom_node.spool import encode_head
from tests.builders import decode, encode, make_cxr_dataset


def deflate(content: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(content) + squeeze.flush()


def test_a_dataset_is_read_with_and_without_its_pixels() -> None:
    content = encode(make_cxr_dataset())
    assert read_dataset(BytesIO(content)) == decode(content)
    assert "PixelData" not in read_dataset(BytesIO(content), pixels=False)


def test_a_deflated_dataset_is_read_and_a_bomb_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    head = encode_head("1.2", "1.3", str(DeflatedExplicitVRLittleEndian))
    small = b"\x10\x00\x10\x00PN\x04\x00A^B "
    assert read_dataset(BytesIO(head + deflate(small))).PatientName == "A^B"
    monkeypatch.setattr(file, "MAX_INFLATED_BYTES", 4 * 1024**2)
    bomb = small + b"\x09\x00\x01\x10OB\x00\x00" + (64 * 1024**2).to_bytes(4, "little") + bytes(64 * 1024**2)
    packed = deflate(bomb)
    assert len(packed) < 100_000
    with pytest.raises(ValueError, match="inflates to more than"):
        read_dataset(BytesIO(head + packed))
