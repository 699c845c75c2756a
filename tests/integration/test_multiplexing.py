"""Associations that send small instances, which one thread reads and files together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pynetdicom.association import Association
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import reading, spool, storing, transport
from dicom_node.multiplexer import Multiplexer
from dicom_node.pdata import Fragment, encode_fragment
from dicom_node.spool import StoreRequest
from tests.acceptance.peers import wait_until
from tests.builders import make_cxr_dataset
from tests.integration.test_reading import answers, context_of, echo_fragment, in_one_pdu, raw, store_fragments
from tests.integration.test_scp import SUCCESS, VERIFICATION, Node, associated, node, propose, sqlite_sessions

__all__ = ["node", "sqlite_sessions"]

BUG = 0xC211


def multiplexer_of(node: Node) -> Multiplexer:
    assert node.receiver is not None
    return node.receiver._multiplexer


def lend(node: Node, assoc: Association, instance: int) -> None:
    """Have an association send its first instance, upon which it is lent."""
    before = len(multiplexer_of(node)._lent)
    assert assoc.send_c_store(make_cxr_dataset(instance=instance)).Status == SUCCESS
    wait_until(lambda: len(multiplexer_of(node)._lent) == before + 1, "the association to be lent", 10)


@pytest.fixture
def lent(node: Node) -> Iterator[Association]:
    with associated(node) as assoc:
        lend(node, assoc, 1)
        yield assoc


class Gate:
    """Holds whoever files, from a moment on; knows what was filed together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        self.open = threading.Event()
        self.open.set()
        file = storing._file

        def wait(door: Any, requests: Sequence[StoreRequest]) -> Any:
            self.groups.append(len(requests))
            assert self.open.wait(30)
            return file(door, requests)

        monkeypatch.setattr(storing, "_file", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_what_comes_meanwhile_is_filed_together(node: Node, gate: Gate) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        senders = [stack.enter_context(associated(node)) for _ in range(4)]
        for number, sender in enumerate(senders, 1):
            lend(node, sender, number)
        gate.groups.clear()
        gate.open.clear()
        first = pool.submit(senders[0].send_c_store, make_cxr_dataset(instance=11))
        wait_until(lambda: gate.groups == [1], "the first to be filed", 10)
        others = [
            pool.submit(sender.send_c_store, make_cxr_dataset(instance=11 + number))
            for number, sender in enumerate(senders[1:], 1)
        ]
        time.sleep(0.1)  # less than the time after which they are taken back
        gate.open.set()
        assert [one.result(20).Status for one in (first, *others)] == [SUCCESS] * 4
    assert gate.groups == [1, 3]
    assert len(node.files()) == 8


def test_who_waits_for_the_disk_does_not_hold_up_the_others(node: Node, gate: Gate) -> None:
    with associated(node) as first, associated(node) as second, ThreadPoolExecutor(2) as pool:
        lend(node, first, 1)
        lend(node, second, 2)
        gate.open.clear()
        held = pool.submit(first.send_c_store, make_cxr_dataset(instance=11))
        wait_until(lambda: len(gate.groups) == 3, "the first to be filed", 10)
        assert pool.submit(second.send_c_echo).result(10).Status == SUCCESS
        gate.open.set()
        assert held.result(20).Status == SUCCESS


def test_requests_that_come_without_waiting_are_answered_in_their_order(node: Node, lent: Association) -> None:
    fragments = [
        one for number in (2, 3, 4) for one in store_fragments(lent, make_cxr_dataset(instance=number), 2, number)
    ]
    raw(lent, b"".join(map(encode_fragment, fragments)))
    assert answers(lent, 3) == [(number, SUCCESS) for number in (2, 3, 4)]
    assert len(node.files()) == 4


def test_other_messages_come_between_as_ever(node: Node, lent: Association) -> None:
    fragments = [
        *store_fragments(lent, make_cxr_dataset(instance=2), 1, 2), echo_fragment(lent, 3),
        *store_fragments(lent, make_cxr_dataset(instance=3), 1, 4),
    ]  # fmt: skip
    raw(lent, b"".join(map(encode_fragment, fragments)))
    assert sorted(answers(lent, 3)) == [(number, SUCCESS) for number in (2, 3, 4)]
    assert lent.send_c_echo().Status == SUCCESS
    lend(node, lent, 5)


def test_what_came_before_a_release_is_filed(node: Node, lent: Association) -> None:
    pixels = np.zeros((4, 4), np.uint16)  # so small that all of it is received at once
    datasets = [make_cxr_dataset(instance=number, pixels=pixels) for number in (2, 3)]
    fragments = [one for number, ds in enumerate(datasets, 2) for one in store_fragments(lent, ds, 1, number)]
    release = b"\x05\0\0\0\0\x04\0\0\0\0"
    raw(lent, in_one_pdu(fragments) + release)
    wait_until(lambda: len(node.rows()) == 3, "both to be filed", 10)
    lent._reactor_checkpoint.set()


def test_a_large_instance_between_small_ones(node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SMALL_BYTES", 1000)
    assert lent.send_c_store(make_cxr_dataset(instance=2)).Status == SUCCESS
    wait_until(lambda: not multiplexer_of(node)._lent, "the own thread to read it", 10)
    monkeypatch.undo()
    lend(node, lent, 3)
    assert len(node.files()) == 3


def test_one_that_trickles_holds_up_nobody(node: Node, lent: Association) -> None:
    content = b"".join(map(encode_fragment, store_fragments(lent, make_cxr_dataset(instance=2), 3, 2)))
    pieces = [content[at : at + len(content) // 40] for at in range(0, len(content), len(content) // 40)]
    with associated(node) as other:
        lend(node, other, 3)
        for number, piece in enumerate(pieces, 10):
            raw(lent, piece)
            assert other.send_c_store(make_cxr_dataset(instance=number)).Status == SUCCESS
    assert answers(lent, 1) == [(2, SUCCESS)]
    assert len(node.files()) == 3 + len(pieces)


@pytest.mark.parametrize("ending", ["release", "abort", "hang up"])
@pytest.mark.parametrize("pieces", [0, 3])
def test_one_that_leaves_leaves_nothing(node: Node, lent: Association, ending: str, pieces: int) -> None:
    fragments = store_fragments(lent, make_cxr_dataset(instance=2), 3)[:pieces]
    raw(lent, b"".join(map(encode_fragment, fragments)))
    lent._reactor_checkpoint.set()
    if ending == "hang up":
        lent.dul.socket.close()  # type: ignore[union-attr]
    else:
        getattr(lent, ending)()
    wait_until(lambda: not multiplexer_of(node)._lent, "the association to be returned", 10)
    wait_until(lambda: not node.unfinished(), "what came of it to be removed", 10)
    assert (len(node.files()), node.unfinished()) == (1, [])


def without_command(fragments: list[Fragment]) -> bytes:
    return b"".join(map(encode_fragment, fragments[1:]))


def of_a_pdu_of_no_type(_: list[Fragment]) -> bytes:
    return b"\x99\0\0\0\0\x04abcd"


def of_an_endless_pdu(_: list[Fragment]) -> bytes:
    return b"\x04\0\xff\xff\xff\xff"


@pytest.mark.parametrize("spoil", [without_command, of_a_pdu_of_no_type, of_an_endless_pdu])
def test_what_is_no_message_ends_the_association_alone(
    node: Node, lent: Association, spoil: Callable[[list[Fragment]], bytes]
) -> None:
    with associated(node) as other:
        lend(node, other, 7)
        raw(lent, spoil(store_fragments(lent, make_cxr_dataset(instance=2))))
        lent._reactor_checkpoint.set()
        wait_until(lambda: lent.is_aborted or not lent.is_established, "the association to end", 10)
        assert other.send_c_store(make_cxr_dataset(instance=8)).Status == SUCCESS


def test_a_bug_is_answered_and_the_others_are_filed(
    node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storing.read_instance

    def fail(*arguments: Any) -> Any:
        instance = read(*arguments)
        if instance.instance_number == 2:
            raise ZeroDivisionError
        return instance

    monkeypatch.setattr(storing, "read_instance", fail)
    spoiled, whole = make_cxr_dataset(instance=2), make_cxr_dataset(instance=3)
    spoiled.InstanceNumber, whole.InstanceNumber = 2, 3
    assert [lent.send_c_store(ds).Status for ds in (spoiled, whole)] == [BUG, SUCCESS]


def test_a_failure_of_reading_ends_the_association_alone(
    node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    with associated(node) as other:
        lend(node, other, 7)
        with monkeypatch.context() as patch:
            patch.setattr(reading, "decode_command", fail)
            raw(lent, encode_fragment(echo_fragment(lent, 2)))
            lent._reactor_checkpoint.set()
            wait_until(lambda: not lent.is_established, "the association to end", 10)
        assert other.send_c_store(make_cxr_dataset(instance=8)).Status == SUCCESS


def test_a_bug_of_filing_ends_the_associations_and_no_thread(
    node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(multiplexer_of(node), "_store", fail)
        raw(lent, b"".join(map(encode_fragment, store_fragments(lent, make_cxr_dataset(instance=2)))))
        lent._reactor_checkpoint.set()
        wait_until(lambda: not lent.is_established, "the association to end", 10)
    with associated(node) as other:
        lend(node, other, 3)
        assert other.send_c_store(make_cxr_dataset(instance=4)).Status == SUCCESS


def test_one_that_stalls_in_a_pdu_is_hung_up_on(node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PDU_S", 1)
    raw(lent, encode_fragment(Fragment(context_of(lent, VERIFICATION), True, True, bytes(100)))[:50])
    lent._reactor_checkpoint.set()
    wait_until(lambda: not lent.is_established, "the association to end", 10)


def test_one_that_says_nothing_is_idle(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> None:
    node = Node(tmp_path, sqlite_sessions)
    impatient = node.settings.receiver.model_copy(update={"idle_s": 1})
    node.settings = node.settings.model_copy(update={"receiver": impatient})
    node.start()
    try:
        with associated(node) as assoc:
            lend(node, assoc, 1)
            wait_until(lambda: assoc.is_aborted, "the association to be aborted when it is idle", 10)
    finally:
        node.stop()


def test_a_peer_that_takes_no_answer_is_answered_by_its_own_thread(
    node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bool] = []
    send = reading.NoticingProvider.send_answer

    def note(self: Any, fragments: Any, at_once: bool) -> None:
        sent.append(at_once)
        send(self, fragments, at_once)

    class Full:
        def poll(self, _: float) -> list[Any]:
            return []

    (reader,) = multiplexer_of(node)._lent.values()
    monkeypatch.setattr(reading.NoticingProvider, "send_answer", note)
    monkeypatch.setattr(reader, "_writable", Full())
    assert lent.send_c_store(make_cxr_dataset(instance=2)).Status == SUCCESS
    assert sent == [False]


def test_one_that_cannot_be_lent_is_read_by_its_own_thread(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    class Full:
        def register(self, *arguments: object) -> None:
            tried.append(arguments)
            raise OSError(28, "no watches left")

    multiplexer = multiplexer_of(node)
    with associated(node) as assoc, monkeypatch.context() as patch:
        patch.setattr(multiplexer, "_epoll", Full())
        assert [assoc.send_c_store(make_cxr_dataset(instance=number)).Status for number in (1, 2)] == [SUCCESS] * 2
        assert (len(tried), multiplexer._lent) == (1, {})
    assert len(node.files()) == 2


def test_one_that_sends_many_pdus_in_a_row_has_its_own_thread(
    node: Node, lent: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[Any] = []
    multiplexer = multiplexer_of(node)
    remove = multiplexer.remove

    def note(one: Any) -> None:
        returned.append(one)
        remove(one)

    monkeypatch.setattr(multiplexer, "remove", note)
    monkeypatch.setattr(reading, "AHEAD", 5)
    fragments = store_fragments(lent, make_cxr_dataset(instance=2), 40, 2)
    raw(lent, b"".join(map(encode_fragment, fragments)))
    assert answers(lent, 1) == [(2, SUCCESS)]
    assert len(returned) == 1
    assert lent.send_c_store(make_cxr_dataset(instance=3)).Status == SUCCESS


def test_one_that_is_killed_when_it_is_lent_is_returned(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplexer = multiplexer_of(node)
    lend_as_ever = multiplexer.lend

    def lend_late(one: Any) -> None:
        lend_as_ever(one)
        one._dul.kill_dul()

    monkeypatch.setattr(multiplexer, "lend", lend_late)
    assoc = propose(node)
    assert assoc.send_c_store(make_cxr_dataset(instance=1)).Status == SUCCESS
    wait_until(lambda: not multiplexer._lent, "the association to be returned", 10)
    assoc.abort()


def test_a_receiver_ends_while_associations_are_lent(node: Node, lent: Association) -> None:
    multiplexer = multiplexer_of(node)
    node.stop()
    assert not multiplexer._thread.is_alive()
