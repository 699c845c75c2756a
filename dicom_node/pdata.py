"""P-DATA-TF PDUs (PS3.8 9.3.5) and command sets (PS3.7 6.3.1). Pure: bytes in, values out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

P_DATA_TF = 0x04
PDU_HEAD_BYTES = 6
"""PDU type, a reserved byte, and the length of what follows."""

NO_DATASET = 0x0101
"""The value of Command Data Set Type (0000,0800) that says so."""

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
C_CANCEL_RQ = 0x0FFF

_ITEM = struct.Struct(">LBB")
_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")
_UL = struct.Struct("<L")

_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_PRIORITY = 0x0700
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000


@dataclass(frozen=True, slots=True)
class Fragment:
    """A presentation data value: a piece of one message's command set or dataset (PS3.8 E.2)."""

    context_id: int
    is_command: bool
    is_last: bool
    content: bytes | memoryview

    @property
    def control(self) -> int:
        """The message control header."""
        return self.is_command | self.is_last << 1


def split_fragments(body: memoryview) -> Iterator[Fragment]:
    """Yield the presentation data values of a P-DATA-TF, of which `body` is all behind its length.

    Raises ValueError where the lengths do not fit.
    """
    at, end = 0, len(body)
    while at < end:
        if end - at < _ITEM.size:
            raise ValueError("a presentation data value is cut short")
        length, context_id, control = _ITEM.unpack_from(body, at)
        stop = at + 4 + length
        if length < 2 or stop > end:
            raise ValueError("a presentation data value is longer than its PDU, or too short")
        yield Fragment(context_id, bool(control & 1), bool(control & 2), body[at + _ITEM.size : stop])
        at = stop


def split_command(context_id: int, command_set: bytes, max_pdu_bytes: int) -> list[Fragment]:
    """Return the presentation data values of a command set. The peer takes PDUs of `max_pdu_bytes` (0: of any size)."""
    most = max(max_pdu_bytes - _ITEM.size, 1) if max_pdu_bytes else len(command_set)
    starts = range(0, len(command_set), most)
    return [Fragment(context_id, True, at + most >= len(command_set), command_set[at : at + most]) for at in starts]


def encode_fragment(fragment: Fragment) -> bytes:
    """Return the P-DATA-TF PDU of one presentation data value."""
    length = len(fragment.content)
    item = _ITEM.pack(length + 2, fragment.context_id, fragment.control)
    return struct.pack(">BBL", P_DATA_TF, 0, length + _ITEM.size) + item + fragment.content


@dataclass(frozen=True, slots=True)
class Command:
    """What is read of a command set. A C-STORE's UIDs are as they came, without padding."""

    field: int
    message_id: int | None
    has_dataset: bool
    sop_class_uid: str
    sop_instance_uid: str
    priority: int = 0
    """0 medium, 1 high, 2 low."""


def decode_command(encoded: bytes) -> Command:
    """Return what a command set says, in Implicit VR Little Endian as always. Raises ValueError where it is none."""
    values = _elements(encoded)
    field = _short(values, _COMMAND_FIELD)
    if field is None:
        raise ValueError("a command set has no Command Field")
    return Command(
        field,
        _short(values, _MESSAGE_ID),
        _short(values, _COMMAND_DATA_SET_TYPE) != NO_DATASET,
        _uid(values, _AFFECTED_SOP_CLASS_UID),
        _uid(values, _AFFECTED_SOP_INSTANCE_UID),
        _short(values, _PRIORITY) or 0,
    )


def _elements(encoded: bytes) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if len(encoded) - at < _ELEMENT.size:
            raise ValueError("a command set is cut short")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += _ELEMENT.size
        if group != 0 or length > len(encoded) - at:
            raise ValueError("a command set has elements of other groups, or is cut short")
        values[element] = encoded[at : at + length]
        at += length
    return values


def _short(values: dict[int, bytes], element: int) -> int | None:
    value = values.get(element, b"")
    return int(_US.unpack(value)[0]) if len(value) == _US.size else None


def _uid(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("ascii", "replace").rstrip("\0 ")


def encode_store_response(command: Command, status: int, comment: str = "") -> bytes:
    """Return the command set of a C-STORE-RSP (PS3.7 9.3.1.2); `comment` is the Error Comment, a LO."""
    elements = [
        (_AFFECTED_SOP_CLASS_UID, _pad(command.sop_class_uid, b"\0")),
        (_COMMAND_FIELD, _US.pack(C_STORE_RSP)),
        (_MESSAGE_ID_BEING_RESPONDED_TO, _US.pack(command.message_id or 0)),
        (_COMMAND_DATA_SET_TYPE, _US.pack(NO_DATASET)),
        (_STATUS, _US.pack(status)),
        *([(_ERROR_COMMENT, _pad(comment, b" "))] if comment else []),
        (_AFFECTED_SOP_INSTANCE_UID, _pad(command.sop_instance_uid, b"\0")),
    ]
    body = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)
    return _ELEMENT.pack(0, 0, _UL.size) + _UL.pack(len(body)) + body


def _pad(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")[:64]
    return value + padding * (len(value) % 2)
