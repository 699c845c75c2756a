"""P-DATA and command sets, next to pynetdicom's own reading and writing of them."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.pdu import P_DATA_TF

from dicom_node import pdata
from dicom_node.pdata import Command, Fragment, decode_command, encode_fragment, encode_store_response, split_fragments

CR = "1.2.840.10008.5.1.4.1.1.1"
contents = st.binary(max_size=60)
fragments = st.builds(Fragment, st.integers(1, 255), st.booleans(), st.booleans(), contents)


def body_of(pdu: bytes) -> memoryview:
    return memoryview(pdu)[pdata.PDU_HEAD_BYTES :]


def plain(fragment: Fragment) -> tuple[Any, ...]:
    return fragment.context_id, fragment.is_command, fragment.is_last, bytes(fragment.content)


@given(fragments)
def test_a_fragment_is_what_pynetdicom_reads(fragment: Fragment) -> None:
    pdu = P_DATA_TF()
    pdu.decode(encode_fragment(fragment))
    (item,) = pdu.presentation_data_value_items
    assert item.presentation_context_id == fragment.context_id
    assert item.presentation_data_value == bytes([fragment.control]) + fragment.content
    assert [plain(one) for one in split_fragments(body_of(encode_fragment(fragment)))] == [plain(fragment)]


@given(st.lists(fragments, max_size=4))
def test_a_pdu_of_several_fragments_is_split(several: list[Fragment]) -> None:
    body = b"".join(bytes(body_of(encode_fragment(one))) for one in several)
    assert [plain(one) for one in split_fragments(memoryview(body))] == [plain(one) for one in several]


@given(st.binary(max_size=40))
def test_any_body_is_split_or_refused(body: bytes) -> None:
    try:
        whole = sum(6 + len(one.content) for one in split_fragments(memoryview(body)))
    except ValueError:
        return
    assert whole == len(body)


def request_bytes(primitive: Any, message: DIMSEMessage) -> bytes:
    message.primitive_to_message(primitive)
    (first, *_) = message.encode_msg(1, 16384)
    return bytes(first.presentation_data_value_list[0][1][1:])


@pytest.mark.parametrize("has_dataset", [True, False])
def test_the_command_set_of_a_store_request_is_read(has_dataset: bool) -> None:
    request = C_STORE()
    request.MessageID, request.Priority = 513, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(CR), UID("1.2.3")
    request.DataSet = BytesIO(b"12") if has_dataset else None
    command = decode_command(request_bytes(request, C_STORE_RQ()))
    assert command == Command(pdata.C_STORE_RQ, 513, has_dataset, CR, "1.2.3", priority=1)


def test_the_command_set_of_another_request_is_read() -> None:
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 7, UID("1.2.840.10008.1.1")
    command = decode_command(request_bytes(request, C_ECHO_RQ()))
    assert (command.field, command.has_dataset) == (0x0030, False)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\0\0\0\0",
        struct.pack("<HHL", 0, 0x0100, 2),
        struct.pack("<HHLH", 8, 0x0100, 2, 1),
        struct.pack("<HHLL", 0, 0x0100, 4, 1),
        struct.pack("<HHLH", 0, 0x0110, 2, 1),
    ],
    ids=["nothing", "half an element", "no value", "another group", "a long command field", "no command field"],
)
def test_what_is_no_command_set_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="command set"):
        decode_command(encoded)


@given(st.binary(max_size=80))
def test_any_command_set_is_read_or_refused(encoded: bytes) -> None:
    try:
        decode_command(encoded)
    except ValueError:
        return


@pytest.mark.parametrize(("status", "comment"), [(0x0000, ""), (0xA700, "5 bytes free"), (0xC000, "é" * 70)])
def test_the_answer_is_what_pynetdicom_reads(status: int, comment: str) -> None:
    command = Command(pdata.C_STORE_RQ, 65535, True, CR, "1.2.34")
    encoded = encode_store_response(command, status, comment)
    message = C_STORE_RSP()
    message.command_set = decode(BytesIO(encoded), True, True)
    assert message.command_set.CommandGroupLength == len(encoded) - 12
    answer: Any = message.message_to_primitive()
    assert (answer.Status, answer.MessageIDBeingRespondedTo) == (status, 65535)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (CR, "1.2.34")
    expected = comment.encode("ascii", "replace").decode()[:64] or None
    assert message.command_set.get("ErrorComment") == expected


@given(st.binary(min_size=1, max_size=100), st.integers(0, 40))
def test_a_command_set_is_split_for_peers_that_take_little(command_set: bytes, max_pdu_bytes: int) -> None:
    pieces = pdata.split_command(3, command_set, max_pdu_bytes)
    assert b"".join(bytes(piece.content) for piece in pieces) == command_set
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    if max_pdu_bytes > 6:
        assert all(len(encode_fragment(piece)) - 6 <= max_pdu_bytes for piece in pieces)
