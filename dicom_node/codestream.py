"""What an encoded frame says of its own size, read from its first headers. Pure: bytes in, numbers out.

A decoder asks for the memory that the codestream claims, whatever the header of the instance says: both are compared
before it is called.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

JPEG_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70, 80, 81))
JPEG_2000_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
RLE = "1.2.840.10008.1.2.5"

RLE_EXPANSION = 64
"""Two bytes stand for 128 at most (PS3.5 G.3.1)."""

_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15 but for DHT, JPG and DAC (ISO/IEC 10918-1 B.1.1.3), and SOF55 of JPEG-LS (ISO/IEC 14495-1 C.1.1)."""

_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment: TEM, RST, SOI."""

_SCAN, _END = 0xDA, 0xD9
_SIZ = b"\xff\x4f\xff\x51"
"""SOC, and the SIZ that must follow it (ISO/IEC 15444-1 A.4.1, A.5.1)."""

_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"


@dataclass(frozen=True, slots=True)
class FrameSize:
    """Rows, columns and components of a frame."""

    rows: int
    columns: int
    components: int


def read_size(frame: bytes, syntax: str) -> FrameSize | None:
    """Return the size that a frame in JPEG, JPEG-LS or JPEG 2000 claims; None where it claims none that is found."""
    try:
        if syntax in JPEG_2000_SYNTAXES:
            return _read_jpeg_2000(frame)
        return _read_jpeg(frame) if syntax in JPEG_SYNTAXES else None
    except (struct.error, IndexError):
        return None


def check_size(frame: bytes, syntax: str, expected: FrameSize, bits_allocated: int) -> None:
    """Raise ValueError if a decoder would make something else of a frame than `expected`."""
    if syntax == RLE:
        size = expected.rows * expected.columns * expected.components * (bits_allocated // 8)
        if size > RLE_EXPANSION * len(frame):
            raise ValueError(f"{len(frame)} bytes in RLE cannot be {size}")
        return
    said = read_size(frame, syntax)
    if said != expected:
        raise ValueError(f"the codestream says it is {said}, not {expected}")


def _read_jpeg(frame: bytes) -> FrameSize | None:
    """Walk the marker segments as libjpeg does: what is no marker is skipped, and so are fill bytes."""
    at = frame.find(b"\xff\xd8")
    while 0 <= at < len(frame):
        at = frame.find(b"\xff", at)
        while at >= 0 and frame[at] == 0xFF:
            at += 1
        if at < 0:
            return None
        marker, at = frame[at], at + 1
        if marker in _START_OF_FRAME:
            _, _, rows, columns, components = struct.unpack_from(">HBHHB", frame, at)
            return FrameSize(rows, columns, components)
        if marker in (_SCAN, _END):
            return None
        if marker and marker not in _ALONE:
            at += max(2, struct.unpack_from(">H", frame, at)[0])
    return None


def _read_jpeg_2000(frame: bytes) -> FrameSize | None:
    at = _find_codestream(frame)
    if at is None or not frame.startswith(_SIZ, at):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", frame, at + len(_SIZ) + 4)
    (components,) = struct.unpack_from(">H", frame, at + len(_SIZ) + 36)
    return FrameSize(bottom - top, right - left, components)


def _find_codestream(frame: bytes) -> int | None:
    """Return where the codestream begins: at once, or in the jp2c box of a JP2 file (ISO/IEC 15444-1 I.4)."""
    if not frame.startswith(_JP2):
        return 0
    at = 0
    while at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", frame, at + 8), 16
        if kind == b"jp2c":
            return at + head
        if length < head:
            return None
        at += length
    return None
