"""What may be taken over from the header of a received instance, made safe to write again.

Received headers miss attributes, hold impossible dates and speak old character sets; results must not inherit that.
Nothing is invented: a value that cannot be read is left empty.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Callable
from datetime import timedelta, timezone, tzinfo
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import DA, TM

MANUFACTURER = "KnowMVG"
MODEL_NAME = "KnowMVG Node"
PRIVATE_SCHEME = "99KNOWMVG"
OWN_TITLE = ("groundrep", PRIVATE_SCHEME, "Phrase Localization Report")

DECODE_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    MemoryError,
    struct.error,
    zlib.error,
    InvalidDicomError,
    BytesLengthException,
)
"""What pydicom and its decoders raise on damaged elements, as seen on the fuzzed samples and read in their source."""

_TEXT_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientComments",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)
_TYPE_2_KEYWORDS = ("PatientName", "PatientID", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_SEXES = ("M", "F", "O")
_TEXTS = frozenset(("AE", "AS", "CS", "DA", "LO", "LT", "SH", "ST", "TM", "UI"))
_WHOLE = re.compile(rb" *[+-]?[0-9]{1,9} *")
_PLAIN = re.compile(rb"[ -\[\]-}]*\0?")
"""Printable ASCII without the backslash, which parts values, and the tilde, which ISO_IR 13 reads otherwise."""
_AGE = re.compile(r"\d{3}[DWMY]")


def copy_identity(ds: Dataset) -> Dataset:
    """Return patient and study attributes of `ds` in ISO_IR 192, every Type 2 attribute present, bad dates blank."""
    identity = Dataset()
    identity.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _TEXT_KEYWORDS:
        value = read_text(ds, keyword)
        if value or keyword in _TYPE_2_KEYWORDS:
            setattr(identity, keyword, value)
    if identity.PatientSex not in _SEXES:
        identity.PatientSex = ""
    if not _AGE.fullmatch(identity.get("PatientAge", "000Y")):
        del identity.PatientAge
    for keyword in ("PatientBirthDate", "StudyDate"):
        setattr(identity, keyword, _checked(ds, keyword, _date_text))
    identity.StudyTime = _checked(ds, "StudyTime", _time_text)
    issuers = _copy_issuers(ds)
    if issuers:
        identity.IssuerOfAccessionNumberSequence = issuers
    return identity


def read_value(ds: Dataset, keyword: str) -> Any:
    """Return the value of `keyword`, or None where it is absent or cannot be decoded."""
    if _element(ds, keyword) is None:
        return None
    try:
        return ds.get(keyword)
    except DECODE_ERRORS:
        return None


# Nearly every value of a header is what its bytes say outright; pydicom takes ten times as long to come to that.


def read_plain_text(element: Any, keyword: str) -> str | None:
    """Return the text of an element as `read_text` does where it is one value of letters that are the same in every
    character set (PS3.5 6.1); else None: ask `read_text`."""
    raw, vr = _raw(element, keyword)
    return raw.decode("ascii").strip(" \0") if vr in _TEXTS and _PLAIN.fullmatch(raw) else None


def read_plain_codes(element: Any, keyword: str) -> list[str] | None:
    """Return the values of an element of VR CS without padding, or None: ask `read_value`."""
    raw, vr = _raw(element, keyword)
    plain = vr == "CS" and raw.strip(b" \0") and _PLAIN.fullmatch(raw.replace(b"\\", b""))
    return [value.strip(" \0") for value in raw.decode("ascii").split("\\")] if plain else None


def read_plain_number(element: Any, keyword: str) -> int | None:
    """Return the value of an element of VR US or IS that is one number, or None: ask `read_number`."""
    raw, vr = _raw(element, keyword)
    if vr == "US" and len(raw) == 2:
        return int.from_bytes(raw, "little" if element.is_little_endian else "big")
    return int(raw) if vr == "IS" and _WHOLE.fullmatch(raw) else None


def _element(ds: Dataset, keyword: str) -> Any:
    """Return an element as it was read, or None: what `Dataset.get_item` comes to by five calls."""
    return ds._dict.get(tag_of(keyword))


def _raw(element: Any, keyword: str) -> tuple[bytes, str]:
    """Return the bytes of a value and its VR; nothing, where it is absent or not as it was read."""
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return b"", ""
    return element.value, element.VR or _vr_of(keyword)


@functools.cache
def tag_of(keyword: str) -> BaseTag:
    """Return a tag, always the same object: others are compared by a call for each look into a dataset."""
    return Tag(keyword)


@functools.cache
def _vr_of(keyword: str) -> str:
    return dictionary_VR(Tag(keyword))


def read_text(ds: Dataset, keyword: str) -> str:
    """Return the (first) value of `keyword` as text without padding, empty where there is none."""
    value = first_value(read_value(ds, keyword))
    if value is None or isinstance(value, bytes):
        return ""
    try:
        return str(value).strip(" \0")
    except DECODE_ERRORS:
        return ""


def read_number(ds: Dataset, keyword: str) -> float | None:
    """Return the (first) value of `keyword` as a number, or None."""
    try:
        return float(first_value(read_value(ds, keyword)))
    except DECODE_ERRORS:
        return None


def read_items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of the sequence `keyword`, empty where it is absent or no sequence."""
    value = read_value(ds, keyword)
    try:
        return [item for item in value if isinstance(item, Dataset)] if value else []
    except DECODE_ERRORS:
        return []


def first_value(value: Any) -> Any:
    """Return the first of several values, or the only one; None for none."""
    if isinstance(value, (list, tuple, MultiValue)):
        return value[0] if len(value) else None
    return value


def read_lut(lut: Dataset) -> tuple[int, int, NDArray[np.uint16]] | None:
    """Return first mapped value, bits per entry and entries of a LUT item (PS3.3 C.11.1.1), None for a broken one."""
    try:
        entries, first, bits = (int(value) for value in read_value(lut, "LUTDescriptor"))
        raw, entries = read_value(lut, "LUTData"), entries or 65536
        if not isinstance(raw, bytes):
            table = np.asarray(raw, np.uint16)
        else:
            table = np.frombuffer(raw, np.uint8 if bits == 8 and len(raw) < 2 * entries else "<u2").astype(np.uint16)
    except DECODE_ERRORS:
        return None
    return (first, bits, table[:entries]) if len(table) >= entries and 8 <= bits <= 16 else None


def read_timezone(ds: Dataset) -> tzinfo | None:
    """Return Timezone Offset From UTC (PS3.3 C.12.1.1.8) of `ds`, or None where it says none."""
    text = read_text(ds, "TimezoneOffsetFromUTC")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes)) if minutes < 24 * 60 else None


def _checked(ds: Dataset, keyword: str, convert: Callable[[str], str]) -> str:
    try:
        return convert(read_text(ds, keyword))
    except DECODE_ERRORS:
        return ""


def _date_text(text: str) -> str:
    date = DA(text) if text else None
    return date.strftime("%Y%m%d") if date else ""


def _time_text(text: str) -> str:
    time = TM(text) if text else None
    if time is None:
        return ""
    return time.strftime("%H%M%S.%f" if time.microsecond else "%H%M%S")


def _copy_issuers(ds: Dataset) -> list[Dataset]:
    copies = []
    for issuer in read_items(ds, "IssuerOfAccessionNumberSequence"):
        copy = Dataset()
        for keyword in ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType"):
            if value := read_text(issuer, keyword):
                setattr(copy, keyword, value)
        if len(copy):
            copies.append(copy)
    return copies
