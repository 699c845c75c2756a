"""Associations that this node opened, over against peers that do at each moment what a test says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import acse
from pynetdicom.dimse_primitives import C_FIND, C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import negotiate_as_requestor

from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicom_node.errors import TransientError
from dicom_node.scu import STUDY_ROOT_FIND, VERIFICATION, Archive, Candidate, connect, echo
from tests.acceptance.peers import wait_until
from tests.acceptor import ABORTED, RELEASE_ASKED, RELEASE_RP, RELEASE_RQ, RELEASED, Acceptor, Conversation
from tests.builders import make_report_dataset, write
from tests.fakes import COMPREHENSIVE_SR

AT_ONCE_S = 10
"""Far less than `requestor.ANSWER_TIMEOUT_S`, which whoever is not told waits for."""


@pytest.fixture(autouse=True)
def _no_trace(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test leaves a thread behind, takes long, or has pynetdicom note an error."""
    threads, began = threading.active_count(), time.monotonic()
    with caplog.at_level(logging.ERROR):
        yield
    assert time.monotonic() - began < AT_ONCE_S
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    wait_until(lambda: threading.active_count() <= threads, "the threads of the association to end", 5)


def hold(archive: Archive) -> None:
    """Keep the association's own thread from answering the peer, as while a request is under way."""
    association = archive._association
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused, "the association's thread to pause", 5)


def await_state(archive: Archive, state: str) -> None:
    machine = archive._association.dul.state_machine
    wait_until(lambda: machine.current_state == state, f"the association to be in {state}", 5)


# ---- releases that cross (PS3.8 7.2.2.7) -----------------------------------------------------------------------------


def confirm_afterwards(peer: Conversation) -> None:
    """Do as the standard says: the acceptor confirms when the requestor has."""
    peer.receive()
    peer.send(RELEASE_RQ)
    assert peer.receive()[0] == RELEASED
    peer.send(RELEASE_RP)
    assert peer.receive_until() == [0]


def confirm_at_once(peer: Conversation) -> None:
    peer.receive()
    peer.send(RELEASE_RQ, RELEASE_RP)
    assert peer.receive_until() == [RELEASED, 0]


def confirm_before_asking(peer: Conversation) -> None:
    peer.receive()
    peer.send(RELEASE_RP, RELEASE_RQ)
    assert peer.receive_until() == [0]


@pytest.mark.parametrize("talk", [confirm_afterwards, confirm_at_once, confirm_before_asking])
def test_releases_that_cross_end_the_association_quietly(talk: Callable[[Conversation], None]) -> None:
    with Acceptor(talk) as peer, connect(peer.destination, [VERIFICATION], "KNOWMVG") as archive:
        pass
    assert archive._association.is_released


def test_a_peer_that_asks_for_release_before_ours_is_sent_is_answered() -> None:
    def ask_first(peer: Conversation) -> None:
        peer.send(RELEASE_RQ)
        assert peer.receive_until() == [RELEASED, 0]

    with Acceptor(ask_first) as peer, connect(peer.destination, [VERIFICATION], "KNOWMVG") as archive:
        hold(archive)
        await_state(archive, "Sta8")
    assert archive._association.is_released


def test_a_peer_that_has_been_answered_between_the_look_and_our_release_is_not_waited_for() -> None:
    def ask_first(peer: Conversation) -> None:
        peer.send(RELEASE_RQ)
        assert peer.receive_until() == [RELEASED, 0]

    with Acceptor(ask_first) as peer, connect(peer.destination, [VERIFICATION], "KNOWMVG") as archive:
        association = archive._association
        wait_until(lambda: not association.is_alive() and not association.dul.is_alive(), "the release", 5)
        association.is_established = True  # as it was when we looked


def test_a_peer_that_hangs_up_where_releases_cross_is_let_go() -> None:
    def leave(peer: Conversation) -> None:
        peer.receive()
        peer.send(RELEASE_RQ)

    with Acceptor(leave) as peer, connect(peer.destination, [VERIFICATION], "KNOWMVG") as archive:
        pass
    assert not archive.is_open


# ---- answers to what was not asked -----------------------------------------------------------------------------------

FIND_NOTHING = Candidate("1.2", "1.3", "1.4", Path("none").open)


def make_answer(kind: Any, number: int, status: int = 0x0000, **shown: str) -> Any:
    answer = kind()
    answer.MessageIDBeingRespondedTo, answer.Status = number, status
    if shown:
        identifier = Dataset()
        identifier.update(shown)
        answer.Identifier = BytesIO(encode(identifier, False, True) or b"")
    return answer


def test_an_answer_to_a_query_counts_by_its_number() -> None:
    def show(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        found = make_answer(C_FIND, asked.MessageID, 0xFF00, SOPInstanceUID="1.3")
        peer.say(context_id, found, make_answer(C_FIND, asked.MessageID))
        peer.receive()
        peer.send(RELEASE_RP)

    with Acceptor(show) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        assert archive.find("1.1", FIND_NOTHING) == "present"
        assert archive.is_open


@pytest.mark.parametrize(
    "stale",
    [
        lambda number: make_answer(C_FIND, number - 1, 0xFF00, SOPInstanceUID="1.3"),
        lambda number: make_answer(C_FIND, number - 1),
        lambda number: make_answer(C_STORE, number),
    ],
)
def test_an_answer_to_something_else_is_none_to_a_query(stale: Callable[[int], Any]) -> None:
    def talk(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        peer.say(context_id, stale(asked.MessageID), make_answer(C_FIND, asked.MessageID))
        assert peer.receive_until(ABORTED)[-1] in (0, ABORTED)

    with Acceptor(talk) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        assert archive.find("1.1", FIND_NOTHING) == "unknown"
        assert not archive.is_open


def test_a_stale_answer_among_those_to_a_query_makes_them_all_count_for_nothing() -> None:
    def talk(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        found = make_answer(C_FIND, asked.MessageID, 0xFF00, SOPInstanceUID="1.3")
        peer.say(context_id, found, make_answer(C_FIND, asked.MessageID + 1))
        peer.receive_until(ABORTED)

    with Acceptor(talk) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        assert archive.find("1.1", FIND_NOTHING) == "unknown"


@pytest.mark.parametrize(("kind", "behind"), [(N_ACTION, 1), (C_STORE, 0), (C_FIND, 0)])
def test_an_answer_to_something_else_is_none_to_a_request_for_commitment(kind: Any, behind: int) -> None:
    def talk(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        peer.say(context_id, make_answer(kind, asked.MessageID - behind))
        assert peer.receive_until(ABORTED)[-1] in (0, ABORTED)

    with Acceptor(talk) as peer, connect(peer.destination, [PUSH_MODEL], "KNOWMVG") as archive:
        assert archive.ask_commitment("1.2.3", [("1.2", "1.3")]) is None
        assert not archive.is_open


def test_an_answer_to_something_else_is_none_to_an_echo() -> None:
    def talk(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        peer.say(context_id, make_answer(N_ACTION, asked.MessageID))
        peer.receive_until(ABORTED)

    with Acceptor(talk) as peer, pytest.raises(TransientError, match="no answer"):
        echo(peer.destination, "KNOWMVG")


def test_an_answer_that_nothing_was_asked_for_ends_the_association() -> None:
    def talk(peer: Conversation) -> None:
        peer.say(1, make_answer(C_FIND, 1))
        assert peer.receive_until(ABORTED)[-1] == ABORTED

    with Acceptor(talk) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        wait_until(lambda: not archive.is_open, "the association to be ended", 5)


def test_an_answer_that_came_before_the_question_is_none() -> None:
    def talk(peer: Conversation) -> None:
        peer.say(1, make_answer(C_FIND, 1))
        assert peer.receive_until(ABORTED)[-1] == ABORTED

    with Acceptor(talk) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        hold(archive)
        wait_until(lambda: not archive._association.dimse.msg_queue.empty(), "the answer", 5)
        assert archive.find("1.1", FIND_NOTHING) == "unknown"


# ---- a release that crosses a request of ours ------------------------------------------------------------------------


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    ds = make_report_dataset(sop_class_uid=COMPREHENSIVE_SR)
    path = write(ds, tmp_path / "1.dcm")
    return Candidate(COMPREHENSIVE_SR, ds.SOPInstanceUID, ds.SeriesInstanceUID, partial(path.open, "rb"))


@pytest.mark.parametrize(
    ("ask", "nothing"),
    [
        (lambda archive, candidate: archive.store(candidate), None),
        (lambda archive, candidate: archive.find("1.1", candidate), "unknown"),
        (lambda archive, _: archive.ask_commitment("1.2.3", [("1.2", "1.3")]), None),
    ],
)
def test_a_release_that_crosses_a_request_wakes_who_waits_for_its_answer(
    candidate: Candidate, ask: Callable[[Archive, Candidate], object], nothing: object
) -> None:
    def talk(peer: Conversation) -> None:
        peer.receive_message()
        peer.send(RELEASE_RQ)
        assert peer.receive_until() == [RELEASED, 0]

    classes = [COMPREHENSIVE_SR, STUDY_ROOT_FIND, PUSH_MODEL]
    with Acceptor(talk) as peer, connect(peer.destination, classes, "KNOWMVG") as archive:
        assert ask(archive, candidate) == nothing
        assert not archive.is_open


def test_a_release_that_came_between_the_look_and_the_request_wakes_as_well(candidate: Candidate) -> None:
    def talk(peer: Conversation) -> None:
        peer.send(RELEASE_RQ)
        assert peer.receive_until() == [RELEASED, 0]

    with Acceptor(talk) as peer, connect(peer.destination, [STUDY_ROOT_FIND], "KNOWMVG") as archive:
        archive._association.acse.is_release_requested = lambda: False  # its thread has not looked yet
        await_state(archive, "Sta8")
        assert archive._find(Dataset(), candidate.sop_instance_uid) == "unknown"  # `find` would have looked


# ---- what goes out ---------------------------------------------------------------------------------------------------


def take_one(taken: list[tuple[int, Any]]) -> Callable[[Conversation], None]:
    """Return what takes an instance and is released."""

    def talk(peer: Conversation) -> None:
        context_id, asked = peer.receive_message()
        taken.append((context_id, asked))
        peer.say(context_id, make_answer(C_STORE, asked.MessageID))
        peer.receive_until(RELEASE_ASKED)
        peer.send(RELEASE_RP)

    return talk


def test_an_answer_to_a_report_does_not_come_between_the_parts_of_a_request(candidate: Candidate) -> None:
    answer = N_EVENT_REPORT()
    answer.MessageIDBeingRespondedTo, answer.Status, answer.EventTypeID = 1, 0x0000, 1
    answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID = UID(PUSH_MODEL), UID(PUSH_MODEL_INSTANCE)
    sent: list[int] = []
    with (
        Acceptor(take_one([])) as peer,
        connect(peer.destination, [COMPREHENSIVE_SR, PUSH_MODEL], "KNOWMVG") as archive,
    ):
        association = archive._association
        of_report = next(one for one in association.accepted_contexts if one.abstract_syntax == PUSH_MODEL)
        answering = threading.Thread(target=association.dimse.send_msg, args=(answer, of_report.context_id))
        send_pdu = association.dul.send_pdu

        def send(primitive: Any) -> None:
            if isinstance(primitive, P_DATA):
                sent.append(primitive.presentation_data_value_list[0][0])
                if len(sent) == 1:  # the rest of it follows
                    answering.start()
                    answering.join(0.5)
            send_pdu(primitive)

        association.dul.send_pdu = send
        assert archive.store(candidate) == 0x0000
        answering.join()
    assert len(sent) >= 3
    assert sent.index(of_report.context_id) == len(sent) - 1


@pytest.mark.parametrize("looks_after_s", [0.0, 0.5])
def test_an_association_is_not_released_before_the_second_of_two_reports_is_answered(
    looks_after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are reports lost that come before this side has looked at what was accepted."""
    answered, second = list[int](), threading.Event()

    def look(*arguments: Any) -> Any:
        time.sleep(looks_after_s)
        return negotiate_as_requestor(*arguments)

    monkeypatch.setattr(acse, "negotiate_as_requestor", look)

    def take(report: Dataset) -> int:
        if report.TransactionUID == "1.1":
            assert second.wait(5)  # the second came before the first is answered
        else:
            second.set()
            time.sleep(0.5)
        return 0x0000

    def talk(peer: Conversation) -> None:
        for number in (1, 2):
            report = N_EVENT_REPORT()
            report.MessageID, report.EventTypeID = number, 1
            report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = UID(PUSH_MODEL), UID(PUSH_MODEL_INSTANCE)
            transaction = Dataset()
            transaction.TransactionUID = f"1.{number}"
            report.EventInformation = BytesIO(encode(transaction, False, True) or b"")
            peer.say(1, report)
        for _ in range(2):
            _, answer = peer.receive_message()
            assert answer.Status == 0x0000
            answered.append(answer.MessageIDBeingRespondedTo)
        assert peer.receive()[0] == RELEASE_ASKED
        peer.send(RELEASE_RP)

    with Acceptor(talk) as peer, connect(peer.destination, [PUSH_MODEL], "KNOWMVG", take):
        assert second.wait(5)
    assert answered == [1, 2]


def test_a_transfer_syntax_that_was_not_proposed_is_not_sent_in(candidate: Candidate) -> None:
    def choose(_: str, proposed: Sequence[str]) -> str:
        return ImplicitVRLittleEndian if ImplicitVRLittleEndian in proposed else ExplicitVRBigEndian

    taken = list[tuple[int, Any]]()
    with Acceptor(take_one(taken), choose) as peer, connect(peer.destination, [COMPREHENSIVE_SR], "KNOWMVG") as archive:
        accepted = {one.context_id: one.transfer_syntax for one in archive._association.accepted_contexts}
        assert sorted(accepted.values()) == [[ImplicitVRLittleEndian], [ExplicitVRBigEndian]]
        assert archive.accepts(COMPREHENSIVE_SR)
        assert archive.store(candidate) == 0x0000
    ((context_id, asked),) = taken
    assert accepted[context_id] == [ImplicitVRLittleEndian]
    assert decode(asked.DataSet, True, True).SOPInstanceUID == candidate.sop_instance_uid


@pytest.mark.parametrize("uid", [COMPREHENSIVE_SR, STUDY_ROOT_FIND, PUSH_MODEL])
def test_who_accepts_only_what_was_not_proposed_accepts_nothing(uid: str) -> None:
    def talk(peer: Conversation) -> None:
        peer.receive_until(RELEASE_ASKED)
        peer.send(RELEASE_RP)

    def choose(abstract_syntax: str, _: Sequence[str]) -> str:
        return ExplicitVRBigEndian if abstract_syntax == uid else ExplicitVRLittleEndian

    classes = [COMPREHENSIVE_SR, STUDY_ROOT_FIND, PUSH_MODEL]
    with Acceptor(talk, choose) as peer, connect(peer.destination, classes, "KNOWMVG") as archive:
        assert [archive.accepts(one) for one in classes] == [one != uid for one in classes]
