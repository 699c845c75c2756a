"""The receiver's connections: who is accepted, and what reads what they send.

pynetdicom reads 4 KiB at a time, believes any length that a peer claims before it knows who the peer is, keeps a whole
dataset in memory, waits for a TLS hand-shake before it accepts anybody else, and lets every connection have its two
threads. Its server and its request handler are the places to mend that: they make the association's parts.
"""

from __future__ import annotations

import functools
import logging
import secrets
import socket
import ssl
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import AA_4
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_node.logs import log_event
from dicom_node.notices import NoticingProvider
from dicom_node.reading import ESTABLISHED, Intake, PduReader
from dicom_node.sockets import hang_up
from dicom_node.tls import explain, fingerprint, names_in

logger = logging.getLogger(__name__)

GREETING_S = 10
"""Time for a TLS hand-shake, and then for an association request (the ARTIM timer of PS3.8 9.1.5)."""

PDU_S = 60
"""Time for one PDU, once it has begun: who sends 128 KiB more slowly is hung up on."""

STRANGERS = 256
"""Connections without an association that are held at once, beside the associations."""

STRANGERS_OF_ADDRESS = 64
"""Those of one address."""

BACKLOG = 128

UNTAKEN_REPORTS = 16

DATA_SENT, DATA_CAME = "Evt9", "Evt10"
"""Events of the state machine (PS3.8 9.2) that end nothing."""

LOOK_S = 0.05
"""Between two looks whether a peer that is waited for is still there."""


@dataclass(frozen=True)
class PeerCertificate:
    """The certificate that a peer showed: its SHA-256, and the names in it."""

    fingerprint: str
    names: tuple[str, ...]


@dataclass
class Visit:
    """What is known of one association besides its own state.

    `refusal` is why it was turned away, if it was; `admitted`: it counts as an association, negotiated yet or not.
    `untaken_reports` bounds the reports of storage commitment that wait until its sender is quiet.
    """

    certificate: PeerCertificate | None = None
    refusal: str = ""
    admitted: bool = False
    untaken_reports: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(UNTAKEN_REPORTS))
    audit_key: str = field(default_factory=lambda: secrets.token_hex(16))


class ReceivingServer(ThreadedAssociationServer):
    """Accepts connections as `ReceivingHandler` does; several may share a port, the kernel spreads the associations.

    `intake` and `refused` are given before it serves: `refused` is called with the address and the reason of a
    hand-shake that failed. A port scan, or a monitor that probes the port, costs nothing lasting: connections without
    an association are few, and end after `GREETING_S`.
    """

    intake: Intake
    refused: Callable[[str, str], None]
    shares_port = False
    request_queue_size = BACKLOG

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._visits: weakref.WeakKeyDictionary[Association, Visit] = weakref.WeakKeyDictionary()
        self._greeting: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(*arguments, **options)

    def server_bind(self) -> None:
        """Bind the socket."""
        if self.shares_port:
            cast(socket.socket, self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; the TLS hand-shake is made by its own thread, so that nobody waits for it."""
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(GREETING_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Tell whether a connection is taken up: not while too many of them are no associations."""
        with self._lock:
            known = [association for association, visit in self._visits.items() if not visit.admitted]
            strangers = Counter(association.requestor.address for association in known if association.is_alive())
            strangers.update(self._greeting)
        return strangers.total() < STRANGERS and strangers[client_address[0]] < STRANGERS_OF_ADDRESS

    def admitted(self) -> list[Association]:
        """Return the associations that were let in and are not over, also those that are still being negotiated."""
        with self._lock:
            known = [association for association, visit in self._visits.items() if visit.admitted]
        return [one for one in known if one.is_alive() and not (one.is_released or one.is_aborted or one.is_rejected)]

    def visit_of(self, association: Association) -> Visit:
        """Return what is known of an association."""
        with self._lock:
            visit = self._visits.get(association)
            return visit if visit is not None else self._visits.setdefault(association, Visit())

    def note_visit(self, association: Association, visit: Visit) -> None:
        """Keep what is known of a connection that may become an association."""
        with self._lock:
            self._visits[association] = visit

    @contextmanager
    def greeting(self, address: str) -> Iterator[None]:
        """Count a connection that is in its hand-shake."""
        with self._lock:
            self._greeting[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._greeting[address] -= 1


class SharedPortServer(ReceivingServer):
    """Lets several receiver processes listen on one port."""

    shares_port = True


class ReceivingHandler(RequestHandler):
    """Makes the associations of a `ReceivingServer`."""

    server: ReceivingServer

    def handle(self) -> None:
        """Shake hands where TLS is spoken, then start an association."""
        self._certificate: PeerCertificate | None = None
        address = str(self.client_address[0])
        if self.server.ssl_context is not None:
            try:
                with self.server.greeting(address):
                    self._shake_hands(self.server.ssl_context)
            except OSError as error:
                self.request.close()
                self.server.refused(address, explain(error))
                return
        super().handle()

    def _shake_hands(self, context: ssl.SSLContext) -> None:
        self.request = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        self.request.settimeout(GREETING_S)
        self.request.do_handshake()
        if certificate := self.request.getpeercert(binary_form=True):
            names = names_in(self.request.getpeercert())
            self._certificate = PeerCertificate(fingerprint(certificate), names)

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dimse = NoticingProvider(association)
        reader = PduReader(association, self.request, self.server.intake)
        accepted, provider = association.dul.socket, association.dul
        if isinstance(accepted, AssociationSocket):
            accepted.recv = functools.partial(_receive, association, reader)  # type: ignore[method-assign]
            accepted._shutdown_socket = functools.partial(hang_up, self.request)  # type: ignore[method-assign]
        provider.receive_pdu = functools.partial(_receive_pdu, provider, provider.receive_pdu)  # type: ignore[method-assign]
        provider._is_transport_event = functools.partial(_look, association, reader)  # type: ignore[method-assign]
        provider.idle_timer_expired = reader.is_idle_too_long  # type: ignore[method-assign]
        provider.run = functools.partial(_run_provider, reader, provider.run)  # type: ignore[method-assign]
        provider._run_loop_delay = 0  # the reader waits where there is nothing to do
        machine = provider.state_machine
        machine.do_action = functools.partial(_act, association, reader, machine.do_action)  # type: ignore[method-assign]
        association.run = functools.partial(_run, association, reader, association.run)  # type: ignore[method-assign]
        self.server.note_visit(association, Visit(self._certificate))
        return association


def _receive(association: Association, reader: PduReader, count: int) -> bytearray:
    return reader.receive(_patience(association), count)


def _patience(association: Association) -> float:
    """Return the time for the next PDU, in seconds."""
    return PDU_S if association.is_established else GREETING_S


def _receive_pdu(
    provider: DULServiceProvider, receive: Callable[..., Any], wait: bool = False, timeout: float | None = None
) -> Any:
    """Return the next PDU; waits no longer than there is somebody who may send one.

    pynetdicom waits for an association request as long as it may take, also where the peer has hung up: each probe of a
    monitor would hold a thread for that time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while wait and provider.is_alive() and (deadline is None or time.monotonic() < deadline):
        if (received := receive(wait=True, timeout=LOOK_S)) is not None:
            return received
    return receive(wait=False)


def _look(association: Association, reader: PduReader) -> bool:
    try:
        return reader.look(_patience(association))
    except Exception as error:  # noqa: BLE001 - pynetdicom raises many kinds on damaged messages
        _break_off(association, reader, error)
        return True


def _act(association: Association, reader: PduReader, do_action: Callable[[str], None], event: str) -> None:
    """Let the state machine act. What foreign bytes make it raise ends the association, which hangs up; no more."""
    provider: Any = association.dimse
    reader.take_back()  # for this thread, which sends and hangs up
    try:
        do_action(event)
    except Exception as error:  # noqa: BLE001 - as above; it would end its thread
        _break_off(association, reader, error)
    if association.dul.state_machine.current_state != ESTABLISHED:
        reader.discard()
    if event not in (DATA_SENT, DATA_CAME):
        provider.wake()


def _break_off(association: Association, reader: PduReader, error: Exception) -> None:
    _tell_broken_off(error)
    reader.discard()
    association.dul.artim_timer.stop()
    association.dul.state_machine.transition(AA_4(association.dul))  # as if the peer had hung up


def _run(association: Association, reader: PduReader, run: Callable[[], None]) -> None:
    """Run the thread of an association. Where it raises, over a request without its syntaxes, the connection ends."""
    try:
        run()
    except Exception as error:  # noqa: BLE001 - as above
        _tell_broken_off(error)
        reader.take_back()
        if isinstance(association.dul.socket, AssociationSocket):
            association.dul.socket.close()
        association.kill()


def _run_provider(reader: PduReader, run: Callable[[], None]) -> None:
    """Run the thread of an association's upper layer, which alone lends it: nobody reads it after that."""
    try:
        run()
    finally:
        reader.take_back()


def _tell_broken_off(error: Exception) -> None:
    log_event(logger, "association broken off", level=logging.WARNING, reason=f"{type(error).__name__}: {error}")
