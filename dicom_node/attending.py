"""The two threads of an association that this node opened, kept from looking where there is nothing to be seen.

pynetdicom 3.0 has both look a thousand times a second whether something has come, which costs more than the messages
themselves. Here one waits at its socket, the other until the first has something for it.
"""

from __future__ import annotations

import queue
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pynetdicom import evt
from pynetdicom._handlers import (
    standard_dimse_recv_handler,
    standard_dimse_sent_handler,
    standard_pdu_recv_handler,
    standard_pdu_sent_handler,
)
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.pdu_primitives import A_RELEASE, P_DATA
from pynetdicom.transport import AssociationServer

LOOK_S = 0.05
"""Between two looks at what nobody is woken for: timers, and a thread that has ended."""

STOP_S = 2.0
"""For the other thread, where one waits for it."""

RELEASE_ASKED = "Evt12"
"""The event that the peer asks for the association's release (PS3.8 9.2)."""

DATA_SENT, DATA_CAME = "Evt9", "Evt10"
"""Events of the state machine (PS3.8 9.2) that end nothing: their messages are waited for by who asked."""

ACCEPTED = "Evt3"
"""The event that the peer accepts the association (PS3.8 9.2)."""

OURS = frozenset((DATA_SENT, "Evt11", "Evt14", "Evt15"))
"""Events that something of ours is to be sent: data, a release, its confirmation, an abort."""

RELEASED_EARLY = ("Evt13", "Sta9")
"""The peer, whose request for release crossed ours, confirms ours before we confirmed its own (PS3.8 7.2.2.7)."""


def attend(association: Association) -> None:
    """Let the threads of an association wait, before they are started; and say nothing of each PDU to a log."""
    quieten(association)
    checkpoint, bell, provider = _Checkpoint(association), _Bell(), association.dul
    outbox = _Outbox(association, bell)
    association._reactor_checkpoint = checkpoint
    provider.to_provider_queue = outbox
    provider._run_loop_delay = 0
    provider._is_transport_event = partial(_look, provider, provider._is_transport_event, bell)  # type: ignore[method-assign]
    provider.stop_dul = partial(_stop, provider, bell)  # type: ignore[method-assign]
    provider.run = partial(_run, provider.run, outbox, checkpoint)  # type: ignore[method-assign]
    machine, settled = provider.state_machine, _settled(association)
    machine.do_action = partial(_act, association, machine.do_action, checkpoint, settled)  # type: ignore[method-assign]


def _settled(association: Association) -> threading.Event:
    """Return an event that is set once the association's thread has looked at its acceptance."""
    settled = threading.Event()
    for outcome in (evt.EVT_ESTABLISHED, evt.EVT_ABORTED):
        association.bind(outcome, lambda _: settled.set())
    return settled


def quieten(bound: Association | AssociationServer) -> None:
    """Unbind pynetdicom's own log handlers, which copy every dataset and spell out every PDU to log nothing."""
    bound.unbind(evt.EVT_DIMSE_RECV, standard_dimse_recv_handler)
    bound.unbind(evt.EVT_DIMSE_SENT, standard_dimse_sent_handler)
    bound.unbind(evt.EVT_PDU_RECV, standard_pdu_recv_handler)
    bound.unbind(evt.EVT_PDU_SENT, standard_pdu_sent_handler)


class _Checkpoint(threading.Event):
    """Where an association's thread waits, paused: while a request of ours is under way, and while there is no news.

    Whoever clears it, and then finds the thread paused, may ask: the thread does not go on, and takes no answer. By
    pynetdicom 3.0 it is paused a moment longer than it waits.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self._news = threading.Event()
        self.set()

    def wake(self) -> None:
        """Have the thread look at what is new, as soon as it may."""
        self._news.set()

    def clear(self) -> None:
        """Keep the thread here; it says again that it is paused, which whoever serves a report unsays."""
        super().clear()
        self.wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread may go on, and has a reason to."""
        while True:
            self._association._is_paused = True
            if not self.is_set():
                super().wait(LOOK_S)
                continue
            self._news.wait(LOOK_S)
            self._news.clear()
            self._association._is_paused = False  # before the last look: whoever clears after it finds that
            if self.is_set():
                return True


class _Bell:
    """Wakes the thread that waits at a socket; it is gone with that thread."""

    def __init__(self) -> None:
        self._waiting, self._ringing = socket.socketpair()
        self._waiting.setblocking(False)
        self._ringing.setblocking(False)

    def ring(self) -> None:
        """Wake the thread; many rings are one."""
        with suppress(OSError):
            self._ringing.send(b"\0")

    def wait(self, connection: socket.socket | None) -> None:
        """Wait until it rings, or something comes, or a little while."""
        poll = select.poll()
        for one in (self._waiting, connection):
            if one is not None and one.fileno() >= 0:
                poll.register(one, select.POLLIN)
        poll.poll(1000 * LOOK_S)
        with suppress(OSError):
            self._waiting.recv(4096)

    def close(self) -> None:
        """Close the sockets of its own."""
        self._waiting.close()
        self._ringing.close()


class _Outbox(queue.Queue[Any]):
    """What is to be sent; whoever puts something there wakes the thread that sends it."""

    def __init__(self, association: Association, bell: _Bell) -> None:
        super().__init__()
        self._association, self._bell = association, bell
        self._is_over = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put something there; nobody is left to wait for an answer to what cannot be sent any more."""
        super().put(item, block, timeout)
        self._bell.ring()
        if self._is_over:
            self._give_up_all()

    def close(self) -> None:
        """Note that the thread is gone."""
        self._is_over = True
        self._give_up_all()
        self._bell.close()

    def give_up(self) -> bool:
        """Drop what is to be sent next, and tell who waits for its answer: the association ended, or ends, before.

        False if there is nothing.
        """
        try:
            dropped = self.get_nowait()
        except queue.Empty:
            return False
        if isinstance(dropped, P_DATA):
            self._association.dimse.msg_queue.put((None, None))
        elif isinstance(dropped, A_RELEASE) and dropped.result is None:
            confirmation = A_RELEASE()
            confirmation.result = "affirmative"
            self._association.dul.to_user_queue.put(confirmation)
        return True

    def _give_up_all(self) -> None:
        while self.give_up():
            pass


def _look(provider: DULServiceProvider, look: Callable[[], bool], bell: _Bell) -> bool:
    """Tell whether something came; where nothing did, wait until something does, or is to be sent."""
    came = look()
    if not came and provider.event_queue.empty():
        transport = provider.socket
        bell.wait(transport.socket if transport is not None and transport._is_connected else None)
    return came


def _stop(provider: DULServiceProvider, bell: _Bell) -> bool:
    """End the thread if its association is over (Sta1), as pynetdicom does, which waits for it in a loop."""
    if provider.state_machine.current_state != "Sta1":
        return False
    provider._kill_thread = True
    bell.ring()
    provider.join(STOP_S)
    return True


def _run(run: Callable[[], None], outbox: _Outbox, checkpoint: _Checkpoint) -> None:
    try:
        run()
    finally:
        outbox.close()
        checkpoint.wake()


def _act(
    association: Association,
    do_action: Callable[[str], None],
    checkpoint: _Checkpoint,
    settled: threading.Event,
    event: str,
) -> None:
    """Do what an event asks for; pynetdicom's thread would die of what the peer's release or abort came before."""
    provider = association.dul
    now = (event, provider.state_machine.current_state)
    if now == RELEASED_EARLY:
        provider.event_queue.put(event)  # after our confirmation, which is on its way
        return
    outbox: Any = provider.to_provider_queue
    if event in OURS and (now not in TRANSITION_TABLE or outbox.empty()):
        outbox.give_up()
        return
    do_action(event)
    if event == ACCEPTED:  # a report that follows at once would be in no presentation context yet
        settled.wait(STOP_S)
    if event == RELEASE_ASKED and not checkpoint.is_set():  # of who waits for an answer, which will not come
        association.dimse.msg_queue.put((None, None))
    if event not in (DATA_SENT, DATA_CAME):
        checkpoint.wake()
