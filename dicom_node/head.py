"""The head of a DICOM file: the elements that are looked at, up to where nothing more is, within bounds.

Elements of a defined length in one block of bytes are told apart here (PS3.5 7.1), which is nearly all of nearly every
head; pydicom takes three calls for each. It reads the rest, and whatever is not as it should be.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator, read_dataset, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from dicom_node.errors import InvalidInstanceError

DEFLATED = (
    DeflatedExplicitVRLittleEndian,
    "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
    "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
)
MAX_HEADER_BYTES = 2 * 1024**2
MAX_HEADER_READS = 50_000
"""Read, and inflated, at most: headers are kilobytes and a few thousand elements, but a megabyte of empty items costs
100 MB and seconds, and a megabyte of a deflated dataset may hold a gigabyte."""

BLOCK_BYTES = 32 * 1024
PREAMBLE_BYTES = 132

_UNDEFINED = 0xFFFFFFFF
_CHARACTER_SET = Tag("SpecificCharacterSet")
_TRANSFER_SYNTAX = Tag("TransferSyntaxUID")
_FIRST_AFTER_META = 0x00030000
_BEHIND_ALL = 1 << 32
_ITEM = (0xFFFE, 0xE000)
_ITEM_DELIMITATION = 0xFFFEE00D
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LENGTH = struct.Struct("<L")
_LETTERS = re.compile(rb"[A-Z][A-Z]")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_VRS = {vr.encode(): (str(vr), vr in EXPLICIT_VR_LENGTH_32) for vr in VR if len(vr) == 2}
"""VRs, and whether their lengths take four bytes (PS3.5 table 7.1-1)."""

_NO_VR = (None, False)


def is_valid_uid(uid: str) -> bool:
    """Tell whether `uid` can name a file and a row: digits and dots, at most 64 characters (PS3.5 9.1)."""
    return len(uid) <= 64 and _UID.fullmatch(uid) is not None


@dataclass(frozen=True)
class Extent:
    """What is read of a dataset: the elements `tags`, which end before `stops_at`, and without what is in `stops_in`.

    The tags are the objects that the elements are looked up by afterwards.
    """

    tags: Mapping[int, BaseTag]
    stops_at: int
    stops_in: frozenset[int] = frozenset()

    def stop_when(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        """Stop pydicom's reading."""
        number = tag.real  # as an int: a tag compares ten times as slowly
        return number >= self.stops_at or number in self.stops_in


_META = Extent({_TRANSFER_SYNTAX.real: _TRANSFER_SYNTAX}, _FIRST_AFTER_META)


@dataclass(frozen=True, slots=True)
class _Scanned:
    """Elements found, and where in the block the next begins, which is not looked at if `is_complete`."""

    elements: dict[BaseTag, Any]
    at: int
    is_complete: bool


@dataclass(slots=True)
class Head:
    """Elements that were read of a dataset: as they came, and as pydicom has them, for what that does not say outright.

    Most heads are never asked for the latter, which takes longer than to read them.
    """

    elements: Mapping[BaseTag, Any]
    is_implicit: bool = False
    encodings: Any = default_encoding
    made: Dataset | None = None

    @classmethod
    def of(cls, ds: Dataset) -> Head:
        """Return that of a dataset which pydicom has read."""
        return cls(ds._dict, made=ds)

    @property
    def dataset(self) -> Dataset:
        """The elements as a dataset."""
        if self.made is None:
            self.made = Dataset(dict(self.elements), parent_encoding=default_encoding)
            self.made.set_original_encoding(self.is_implicit, True, self.encodings)
        return self.made


def read_head(file: BinaryIO, extent: Extent) -> tuple[Head, str]:
    """Return that extent of a file's dataset, and the Transfer Syntax UID.

    Raises InvalidInstanceError for a head without measure or syntax, and what pydicom raises for one that is damaged.
    """
    block = file.read(BLOCK_BYTES)
    read_preamble(BytesIO(block[:PREAMBLE_BYTES]), force=False)
    meta = _scan(block, PREAMBLE_BYTES, False, _META)
    if meta is None or not meta.is_complete:
        return _read_unusual(file, extent)
    syntax = _syntax_of(meta.elements.get(_TRANSFER_SYNTAX))
    if syntax in DEFLATED:
        file.seek(meta.at)
        file, at = BytesIO(_inflate(file)), 0
        block = file.read(BLOCK_BYTES)
    else:
        at = meta.at
    scanned = None if syntax == ExplicitVRBigEndian else _scan(block, at, syntax == ImplicitVRLittleEndian, extent)
    if scanned is None:
        file.seek(at)
        return Head.of(_read_by_pydicom(_BudgetedReader(file), syntax, extent)), syntax
    elements = scanned.elements
    if not scanned.is_complete:
        file.seek(scanned.at)
        elements |= _read_rest(_BudgetedReader(file), syntax, extent, _encodings_of(elements))
    return Head(elements, syntax == ImplicitVRLittleEndian, _encodings_of(elements)), syntax


def _scan(block: bytes, at: int, is_implicit: bool, extent: Extent) -> _Scanned | None:
    """Return the elements of a block from `at` on; None where it is not in the encoding that is expected.

    It ends where an element has no defined length, or does not end in the block.
    """
    elements: dict[BaseTag, Any] = {}
    end, tags, stops_at, stops_in = len(block), extent.tags, extent.stops_at, extent.stops_in
    explicit, implicit, long_length = _EXPLICIT.unpack_from, _IMPLICIT.unpack_from, _LENGTH.unpack_from
    if is_implicit and _LETTERS.match(block, at + 4):
        return None
    vr: str | None = None
    while at + 12 <= end:  # without functions of its own: there are sixty elements, and each call costs as much again
        if is_implicit:  # PS3.5 7.1.3
            group, number, length = implicit(block, at)
            body = at + 8
        else:  # PS3.5 7.1.2
            group, number, encoded, length = explicit(block, at)
            vr, is_long = _VRS.get(encoded, _NO_VR)
            body = at + 8
            if is_long:
                (length,), body = long_length(block, body), at + 12
        tag = group << 16 | number
        if (tag >= stops_at or tag in stops_in) and tag != _ITEM_DELIMITATION:
            return _Scanned(elements, at, True)  # before the VR: behind the meta information the encoding is another
        if vr is None and not is_implicit:
            return None
        if length == _UNDEFINED or body + length > end or tag == _ITEM_DELIMITATION:
            break
        if (key := tags.get(tag)) is not None or tag == _CHARACTER_SET.real:
            value: Any = block[body : body + length] if length else empty_value_for_VR(vr, raw=True)
            key = key or _CHARACTER_SET
            elements[key] = RawDataElement(key, vr, length, value, body, is_implicit, True)
        at = body + length
    return _Scanned(elements, at, False)


def read_only_item(element: Any, tags: Mapping[int, BaseTag]) -> Head | None:
    """Return those elements of the item of a sequence as it was read; None unless it is one item of defined lengths."""
    if not isinstance(element, RawDataElement) or element.VR not in (None, "SQ") or not element.value:
        return None
    value: bytes = element.value
    if len(value) < _IMPLICIT.size or not element.is_little_endian:
        return None
    group, number, length = _IMPLICIT.unpack_from(value, 0)
    if (group, number) != _ITEM or length != len(value) - _IMPLICIT.size:
        return None
    scanned = _scan(value, _IMPLICIT.size, element.is_implicit_VR, Extent(tags, _BEHIND_ALL))
    if scanned is None or scanned.at != len(value):
        return None
    return Head(scanned.elements, element.is_implicit_VR)


def _read_rest(reader: Any, syntax: str, extent: Extent, encodings: Any) -> dict[BaseTag, Any]:
    """Return the elements from where `reader` is, as pydicom reads them."""
    is_implicit = syntax == ImplicitVRLittleEndian
    rest = data_element_generator(reader, is_implicit, True, extent.stop_when, None, encodings, list(extent.tags))
    return {element.tag: element for element in rest}


def _read_unusual(file: BinaryIO, extent: Extent) -> tuple[Head, str]:
    """Return the same by pydicom alone."""
    file.seek(0)
    reader: Any = _BudgetedReader(file)
    read_preamble(reader, force=False)
    meta = read_dataset(reader, is_implicit_VR=False, is_little_endian=True, stop_when=_META.stop_when)
    syntax = _syntax_of(meta.get_item(_TRANSFER_SYNTAX) if _TRANSFER_SYNTAX in meta else None)
    if syntax in DEFLATED:
        reader = _BudgetedReader(BytesIO(_inflate(file)))
    return Head.of(_read_by_pydicom(reader, syntax, extent)), syntax


def _read_by_pydicom(reader: Any, syntax: str, extent: Extent) -> Dataset:
    return read_dataset(
        reader,
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
        stop_when=extent.stop_when,
        specific_tags=list(extent.tags),
    )


def _syntax_of(element: Any) -> str:
    value = element.value if element is not None else b""
    syntax = value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else ""
    if not is_valid_uid(syntax):
        raise InvalidInstanceError("its File Meta Information has no Transfer Syntax UID")
    return syntax


def _encodings_of(elements: dict[BaseTag, Any]) -> Any:
    element = elements.get(_CHARACTER_SET)
    return default_encoding if element is None else list(_encodings(element.VR, element.value))


@functools.lru_cache(64)
def _encodings(vr: str | None, value: bytes | None) -> tuple[str, ...]:
    """Return the names that Python has for the character sets of a Specific Character Set (PS3.3 C.12.1.1.2)."""
    element = RawDataElement(_CHARACTER_SET, vr, len(value or b""), value, 0, vr is None, True)
    return tuple(convert_encodings(convert_raw_data_element(element).value))


class _BudgetedReader:
    """A file of which only so much may be read (skipping is free); a length that is only claimed is not allocated."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left, self._reads_left = file, MAX_HEADER_BYTES, MAX_HEADER_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left or self._reads_left == 0:
            raise InvalidInstanceError(f"its header has, or claims to have, more than {MAX_HEADER_BYTES} bytes")
        self._left -= size
        self._reads_left -= 1
        return self._file.read(size)


def _inflate(file: BinaryIO) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(MAX_HEADER_BYTES), MAX_HEADER_BYTES)
