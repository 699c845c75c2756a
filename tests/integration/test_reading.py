"""C-STOREs in every way that PS3.8 annex E lets a sender cut them, and in ways that it does not."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import notices, reading, spool, storing
from dicom_node.instance import DX_PRESENTATION_STORAGE, Instance
from dicom_node.pdata import Fragment, encode_fragment
from tests.acceptance.peers import wait_until
from tests.builders import make_cxr_dataset
from tests.integration.test_scp import (
    CANNOT_UNDERSTAND,
    SUCCESS,
    VERIFICATION,
    Node,
    associated,
    dataset_bytes,
    node,
    sqlite_sessions,
)
from tests.senders import Sender

__all__ = ["node", "sqlite_sessions"]


@pytest.fixture
def assoc(node: Node) -> Iterator[Association]:
    with associated(node) as association:
        yield association


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each look of a reader at its connection."""
    seen: list[int] = []
    look = reading.PduReader.look

    def count(self: reading.PduReader, within_s: float) -> bool:
        seen.append(1)
        return look(self, within_s)

    monkeypatch.setattr(reading.PduReader, "look", count)
    return seen


def context_of(assoc: Association, uid: str) -> int:
    return int(next(one.context_id for one in assoc.accepted_contexts if one.abstract_syntax == uid))  # type: ignore[arg-type]


def command_of(primitive: Any, message: DIMSEMessage) -> bytes:
    message.primitive_to_message(primitive)
    return bytes(next(iter(message.encode_msg(1, 16384))).presentation_data_value_list[0][1][1:])


def store_fragments(assoc: Association, ds: Dataset, pieces: int = 1, number: int = 1) -> list[Fragment]:
    """Return the fragments of a C-STORE request: its command set, and its dataset, in so many pieces each."""
    content = dataset_bytes(ds)
    request: Any = C_STORE()
    request.MessageID, request.Priority, request.DataSet = number, 2, BytesIO(content)
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    context = context_of(assoc, ds.SOPClassUID)
    command = command_of(request, C_STORE_RQ())
    return cut(context, True, command, pieces) + cut(context, False, content, pieces)


def echo_fragment(assoc: Association, number: int) -> Fragment:
    request: Any = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = number, UID(VERIFICATION)
    return Fragment(context_of(assoc, VERIFICATION), True, True, command_of(request, C_ECHO_RQ()))


def cut(context: int, is_command: bool, content: bytes, pieces: int) -> list[Fragment]:
    size = -(-len(content) // pieces)
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    return [Fragment(context, is_command, number == len(parts), part) for number, part in enumerate(parts, 1)]


def in_one_pdu(fragments: Sequence[Fragment]) -> bytes:
    body = b"".join(encode_fragment(one)[6:] for one in fragments)
    return b"\x04\x00" + len(body).to_bytes(4, "big") + body


def raw(assoc: Association, content: bytes) -> None:
    assoc._reactor_checkpoint.clear()
    connection: socket.socket = assoc.dul.socket.socket  # type: ignore[union-attr,assignment]
    connection.sendall(content)


def answers(assoc: Association, count: int) -> list[tuple[int, int]]:
    """Return message number and status of so many answers."""
    got = [assoc.dimse.get_msg(block=True)[1] for _ in range(count)]
    assoc._reactor_checkpoint.set()
    return [(one.MessageIDBeingRespondedTo, one.Status) for one in got]  # type: ignore[union-attr]


@pytest.mark.parametrize("pieces", [1, 2, 150])
def test_a_message_may_come_in_any_number_of_pdus(node: Node, assoc: Association, pieces: int) -> None:
    ds = make_cxr_dataset()
    raw(assoc, b"".join(map(encode_fragment, store_fragments(assoc, ds, pieces))))
    assert answers(assoc, 1) == [(1, SUCCESS)]
    assert node.files()[0].read_bytes().endswith(dataset_bytes(ds))


def test_several_messages_may_come_in_one_pdu(node: Node, assoc: Association) -> None:
    first, second = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    fragments = [*store_fragments(assoc, first, 3, 1), *store_fragments(assoc, second, 2, 2)]
    raw(assoc, in_one_pdu(fragments))
    assert answers(assoc, 2) == [(1, SUCCESS), (2, SUCCESS)]
    assert len(node.files()) == 2


def test_other_messages_may_come_between(node: Node, assoc: Association) -> None:
    first, second = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    fragments = [
        echo_fragment(assoc, 1), *store_fragments(assoc, first, 1, 2), echo_fragment(assoc, 3),
        *store_fragments(assoc, second, 1, 4), echo_fragment(assoc, 5),
    ]  # fmt: skip
    raw(assoc, in_one_pdu(fragments))
    assert sorted(answers(assoc, 5)) == [(number, SUCCESS) for number in range(1, 6)]


def test_a_sender_that_takes_little_at_a_time_is_answered_in_pieces(node: Node) -> None:
    ae = Sender("PACS")
    ae.add_requested_context(DX_PRESENTATION_STORAGE)
    assoc = ae.associate("127.0.0.1", node.port, ae_title="KNOWMVG", max_pdu=40)
    received: list[int] = []
    assoc.bind(evt.EVT_DATA_RECV, lambda event: received.append(len(event.data)))
    assert assoc.send_c_store(make_cxr_dataset()).Status == SUCCESS
    assoc.release()
    assert max(received) <= 46
    assert len(received) > 3


def without_dataset(fragments: list[Fragment]) -> list[Fragment]:
    return fragments[1:]


def with_a_command_in_the_middle(fragments: list[Fragment]) -> list[Fragment]:
    return [*fragments[:4], fragments[0], *fragments[4:]]


def of_another_context(fragments: list[Fragment]) -> list[Fragment]:
    last = fragments[-1]
    return [*fragments[:-1], Fragment(last.context_id + 2, last.is_command, last.is_last, last.content)]


def of_no_context(fragments: list[Fragment]) -> list[Fragment]:
    return [Fragment(251, one.is_command, one.is_last, one.content) for one in fragments]


def of_no_command(fragments: list[Fragment]) -> list[Fragment]:
    return [Fragment(fragments[0].context_id, True, True, b"nonsense"), *fragments[3:]]


def of_empty_pieces(fragments: list[Fragment]) -> list[Fragment]:
    return [Fragment(fragments[0].context_id, True, False, b""), *fragments]


def without_a_message_id(fragments: list[Fragment]) -> list[Fragment]:
    whole = b"".join(bytes(one.content) for one in fragments[:3])
    at = whole.index(struct.pack("<HHL", 0, 0x0110, 2))
    return [Fragment(fragments[0].context_id, True, True, whole[:at] + whole[at + 10 :]), *fragments[3:]]


def of_an_endless_command(fragments: list[Fragment]) -> list[Fragment]:
    return [Fragment(fragments[0].context_id, True, False, bytes(16_000))] * 5


@pytest.mark.parametrize(
    "spoil",
    [
        without_dataset, with_a_command_in_the_middle, of_another_context, of_no_context, of_no_command,
        of_an_endless_command, of_empty_pieces, without_a_message_id,
    ],
)  # fmt: skip
def test_messages_that_are_none_end_the_association_and_leave_nothing(
    node: Node, assoc: Association, spoil: Callable[[list[Fragment]], list[Fragment]]
) -> None:
    fragments = spoil(store_fragments(assoc, make_cxr_dataset(), 3))
    raw(assoc, b"".join(map(encode_fragment, fragments)))
    assoc._reactor_checkpoint.set()
    wait_until(lambda: assoc.is_aborted, "the association to be aborted", 10)
    wait_until(lambda: not node.unfinished(), "what came of it to be removed", 10)
    assert node.rows() == []


def test_what_is_stored_is_of_the_class_that_was_negotiated(node: Node) -> None:
    """Who may only report storage commitment has no context for instances, and none of the others will do."""
    with associated(node) as assoc:
        context = context_of(assoc, VERIFICATION)
        fragments = store_fragments(assoc, make_cxr_dataset())
        raw(assoc, b"".join(encode_fragment(replace(one, context_id=context)) for one in fragments))
        assert answers(assoc, 1) == [(1, CANNOT_UNDERSTAND)]
    assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])


def test_a_cancel_request_is_no_request(node: Node, assoc: Association) -> None:
    """It has no answer, so that nothing waits for one."""
    elements = ((0x0100, 0x0FFF), (0x0120, 1), (0x0800, 0x0101))
    cancel = b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements)
    context = context_of(assoc, VERIFICATION)
    raw(assoc, encode_fragment(Fragment(context, True, True, cancel)) * (2 * notices.MAX_UNANSWERED))
    assoc._reactor_checkpoint.set()
    assert assoc.send_c_echo().Status == SUCCESS


def test_a_peer_that_says_nothing_costs_little(node: Node, looks: list[int]) -> None:
    with socket.create_connection(("127.0.0.1", node.port)):
        wait_until(lambda: len(looks) > 2, "a look", 5)
        looks.clear()
        time.sleep(1)
        assert len(looks) <= 2 / reading.IDLE_LOOK_S


@pytest.mark.parametrize("ending", ["release", "abort", "hang up"])
def test_a_sender_that_leaves_in_the_middle_leaves_nothing(
    node: Node, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "HELD_BYTES", 1000)
    with associated(node) as assoc:
        raw(assoc, b"".join(map(encode_fragment, store_fragments(assoc, make_cxr_dataset(), 3)[:-1])))
        wait_until(node.unfinished, "what came of it", 10)
        assoc._reactor_checkpoint.set()
        if ending == "hang up":
            assoc.dul.socket.close()  # type: ignore[union-attr]
        else:
            getattr(assoc, ending)()
        wait_until(lambda: not node.unfinished(), "what came of it to be removed", 10)
    assert node.rows() == []


def test_a_message_that_stores_nothing_may_not_be_endless(
    node: Node, assoc: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_INFORMATION_BYTES", 1000)
    (command, *_) = store_fragments(assoc, make_cxr_dataset())
    find = bytes(command.content).replace(b"\x00\x01\x02\x00\x00\x00\x01\x00", b"\x00\x01\x02\x00\x00\x00\x20\x00", 1)
    raw(assoc, encode_fragment(Fragment(command.context_id, True, True, find)))
    raw(assoc, encode_fragment(Fragment(command.context_id, False, False, bytes(2000))))
    assoc._reactor_checkpoint.set()
    wait_until(lambda: assoc.is_aborted, "the association to be aborted", 10)


def test_an_association_that_stores_slowly_is_not_idle(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, sqlite_sessions)
    impatient = node.settings.receiver.model_copy(update={"idle_s": 1})
    node.settings = node.settings.model_copy(update={"receiver": impatient})
    read = storing.read_instance

    def read_slowly(*arguments: Any) -> Instance:
        threading.Event().wait(2.5)
        return read(*arguments)

    monkeypatch.setattr(storing, "read_instance", read_slowly)
    node.start()
    try:
        with associated(node) as assoc:
            assert assoc.send_c_store(make_cxr_dataset()).Status == SUCCESS
            wait_until(lambda: assoc.is_aborted, "the association to be aborted when it is idle", 10)
    finally:
        node.stop()


def test_an_idle_association_costs_little(node: Node, looks: list[int]) -> None:
    """Its threads look around a few dozen times a second, not thousands."""
    with associated(node, []) as assoc:
        assert assoc.send_c_echo().Status == SUCCESS
        wait_until(lambda: len(looks) > 0, "a look", 5)
        looks.clear()
        time.sleep(1)
        assert len(looks) <= 2 / notices.IDLE_LOOK_S
