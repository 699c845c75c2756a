"""Results as DICOM files: Explicit VR Little Endian, the bytes that pydicom writes, in a fraction of its time.

pydicom looks for ambiguous VRs in each item again at every level above it, and takes a dozen calls for each element.
Here strings and numbers of a result are packed as they are; what is not quite usual is left to pydicom.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from pydicom import dcmwrite
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import AMBIGUOUS_VR, write_data_element
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

CHARACTER_SET = "ISO_IR 192"
"""Of every result: UTF-8 (PS3.3 C.12.1.1.2)."""

_CHARACTER_SET_TAG = 0x00080005
_ITEM = struct.Struct("<HHL")
_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2sHL")
_SHORTEST_LONG = 0x10000

_LENGTH_32 = frozenset(str(vr) for vr in EXPLICIT_VR_LENGTH_32)
_STRINGS = (
    {vr: ("utf-8", b" ") for vr in ("LO", "LT", "SH", "ST", "UC", "UT")}
    | {vr: ("latin-1", b" ") for vr in ("AE", "AS", "CS", "DA", "DT", "TM", "UR")}
    | {"UI": ("latin-1", b"\0")}
)
"""How a single value is encoded, and padded to an even length (PS3.5 6.2)."""

_NUMBERS = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "UL": "L", "US": "H"}


class _UnusualError(Exception):
    """A dataset holds something that pydicom is to encode as a whole."""


class Encoder:
    """Encodes the results of one job; sequences that several of them share are encoded once."""

    def __init__(self) -> None:
        self._shared: dict[int, tuple[DataElement, bytes]] = {}

    def encode(self, ds: Dataset) -> bytes:
        """Return the bytes of the file that `pydicom.dcmwrite` makes of `ds`."""
        try:
            if (
                ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
                and ds.get("SpecificCharacterSet") == CHARACTER_SET
            ):
                return _encode_head(ds) + b"".join(map(self._encode_outermost, _in_order(ds)))
        except (_UnusualError, UnicodeEncodeError):
            pass
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        return buffer.getvalue()

    def _encode_outermost(self, element: DataElement) -> bytes:
        if element.VR != "SQ":
            return _encode_element(element)
        if id(element) not in self._shared:
            self._shared[id(element)] = element, _encode_element(element)  # with the element its number is kept
        return self._shared[id(element)][1]


def _encode_head(ds: Dataset) -> bytes:
    """Return preamble and File Meta Information as `dcmwrite` makes them."""
    identity, buffer = Dataset(), BytesIO()
    identity.file_meta = ds.file_meta
    identity.SOPClassUID, identity.SOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    dcmwrite(buffer, identity, enforce_file_format=True)
    return buffer.getvalue()[: -len(b"".join(map(_encode_element, _in_order(identity))))]


def _in_order(ds: Dataset) -> list[Any]:
    return sorted(ds.values(), key=_number_of)


def _number_of(element: DataElement | RawDataElement) -> int:
    return int(element.tag)  # a tag compares ten times as slowly


def _encode_element(element: Any) -> bytes:
    """Return an element of a dataset (PS3.5 7.1.2)."""
    if isinstance(element, RawDataElement) or element.VR in AMBIGUOUS_VR or element.tag & 0xFFFF == 0:
        raise _UnusualError
    vr: str = element.VR
    value = _encode_value(vr, element)
    if value is None or (len(value) >= _SHORTEST_LONG and vr not in _LENGTH_32):
        return _encode_by_pydicom(element)
    group, number = element.tag >> 16, element.tag & 0xFFFF
    if vr in _LENGTH_32:
        return _LONG.pack(group, number, vr.encode(), 0, len(value)) + value
    return _SHORT.pack(group, number, vr.encode(), len(value)) + value


def _encode_value(vr: str, element: DataElement) -> bytes | None:
    """Return the value field of an element, None where it is not one of the usual ones."""
    value = element.value
    if vr == "SQ":
        return None if element.is_undefined_length else b"".join(map(_encode_item, value))
    if vr in _STRINGS and isinstance(value, str):
        encoding, padding = _STRINGS[vr]
        encoded = value.encode(encoding)
        return encoded + padding * (len(encoded) % 2)
    if vr in _NUMBERS and isinstance(value, int | float):
        return struct.pack(f"<{_NUMBERS[vr]}", value)
    if vr in _NUMBERS and hasattr(value, "append") and not element.tag.is_private:
        return struct.pack(f"<{len(value)}{_NUMBERS[vr]}", *value)
    return None


def _encode_item(item: Dataset) -> bytes:
    """Return an item of a sequence, of a defined length (PS3.5 7.5)."""
    if _CHARACTER_SET_TAG in item or getattr(item, "is_undefined_length_sequence_item", False):
        raise _UnusualError
    content = b"".join(map(_encode_element, _in_order(item)))
    return _ITEM.pack(0xFFFE, 0xE000, len(content)) + content


def _encode_by_pydicom(element: DataElement) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_data_element(buffer, element, CHARACTER_SET)
    return buffer.getvalue()
