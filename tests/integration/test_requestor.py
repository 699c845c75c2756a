"""Associations that this node opened, over against peers that do at each moment what a test says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from dicom_node.scu import VERIFICATION, Archive, connect
from tests.acceptance.peers import wait_until
from tests.acceptor import RELEASE_RP, RELEASE_RQ, RELEASED, Acceptor, Conversation

AT_ONCE_S = 10
"""Far less than `requestor.ANSWER_TIMEOUT_S`, which whoever is not told waits for."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
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
def test_releases_that_cross_end_the_association_quietly(talk) -> None:
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
