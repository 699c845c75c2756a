"""The association requestor (PS3.8 7.1): associations that this node opens, and what pynetdicom's are mended with.

Nothing waits for ever: whoever stops answering, in the middle of a PDU or of a hand-shake, is hung up on. And nothing
looks a thousand times a second whether something has come: the threads of an association wait until something has.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket

from dicom_node.attending import attend
from dicom_node.config import ClientTlsSettings
from dicom_node.dialogue import Dialogue
from dicom_node.errors import AbsentError
from dicom_node.sockets import receive_exactly
from dicom_node.tls import client_context

TRANSFER_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 30
JOIN_S = 2
PAUSE_S = 5
PAUSED_LOOK_S = 0.0001
REJECTED_TRANSIENT = 2
"""Result of an A-ASSOCIATE-RJ, PS3.8 9.3.4."""

LOW_PRIORITY = 2
"""Of a C-STORE, PS3.7 9.3.1.1."""

Report = Callable[[Dataset], int]
"""Takes the Event Information of a storage commitment report, and returns the DIMSE status to answer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is called: `name` is what people are told."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: ClientTlsSettings | None = None


class _Requestor(ApplicationEntity):
    """An application entity that waits for nobody: its sockets time out, and are closed where nobody answers.

    pynetdicom 3.0 leaves the socket open then, and takes every time-out off it once it is connected: a peer that stops
    in the middle of a PDU, or no longer reads, would hold the thread for ever.
    """

    _socket: socket.socket | None = None

    def __init__(self, ae_title: str, dialogue: Dialogue) -> None:
        super().__init__(ae_title)
        self._dialogue = dialogue

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        transport = super()._create_socket(*arguments)
        attend(transport.assoc)
        self._dialogue.bind(transport.assoc)  # before a report may come
        self._socket = transport.socket
        connect_socket = transport.connect

        def connect_timed(primitive: Any) -> None:
            connect_socket(primitive)
            if transport.socket is not None:
                self._socket = transport.socket  # TLS put another in its place
                transport.socket.settimeout(ANSWER_TIMEOUT_S)
                transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                transport.recv = partial(_receive, transport.socket)  # type: ignore[method-assign]

        transport.connect = connect_timed  # type: ignore[method-assign]
        return transport

    def close_socket(self) -> None:
        """Close the socket of an association that did not come about, or is over."""
        if self._socket is not None:
            self._socket.close()


def _receive(connection: socket.socket, count: int) -> bytearray:
    """Return the next bytes of a PDU, and acknowledge them at once.

    A peer that leaves Nagle's algorithm on (RFC 896) sends the second half of an answer, its dataset, only when the
    first is acknowledged, which Linux puts off by 40 ms.
    """
    received = receive_exactly(connection, ANSWER_TIMEOUT_S, count)
    with suppress(OSError, AttributeError):  # it is gone, or this is no Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return received


@contextmanager
def bounded(association: Association) -> Iterator[None]:
    """Let a request go on that waits for the association's thread to pause, after a while in any case.

    pynetdicom 3.0 waits for that without an end; the answer itself it waits for as long as its time-outs say.
    """
    timer = threading.Timer(PAUSE_S, setattr, (association, "_is_paused", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_run_reactor = Association._run_reactor


def _run_reactor_to_its_end(association: Association) -> None:
    """Run the thread of an association, and leave it paused: nobody waits for it to pause any more.

    pynetdicom 3.0 spins for ever where it is asked to send or to release just when its thread has ended, because the
    peer hung up in that moment.
    """
    try:
        _run_reactor(association)
    finally:
        association._is_paused = True


Association._run_reactor = _run_reactor_to_its_end  # type: ignore[method-assign, assignment]


@contextmanager
def open_association(
    peer: Peer,
    abstract_syntaxes: Sequence[str],
    calling_ae_title: str,
    on_report: Report | None = None,
    roles: Sequence[Any] = (),
    apart: Collection[str] = (),
) -> Iterator[Association]:
    """Give an established association, released at the end. Raises AbsentError if there is none to be had.

    SOP classes that are `apart` are proposed once for each transfer syntax: the peer does not choose one, so that what
    is kept in one of them can be sent as it is.
    """
    dialogue = Dialogue(peer.name)
    ae = _Requestor(calling_ae_title, dialogue)
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_TIMEOUT_S
    contexts = [
        build_context(abstract_syntax, proposed)
        for abstract_syntax in abstract_syntaxes
        for proposed in ([[one] for one in TRANSFER_SYNTAXES] if abstract_syntax in apart else [TRANSFER_SYNTAXES])
    ]
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, _take_report, [on_report, dialogue])] if on_report else []
    tls = (client_context(peer.tls), peer.tls.server_name or peer.host) if peer.tls else None
    try:
        association = ae.associate(
            peer.host, peer.port, contexts, peer.ae_title, ext_neg=list(roles), evt_handlers=handlers, tls_args=tls
        )
    except OSError as error:  # a host name that does not resolve
        raise AbsentError(f"{peer.name} cannot be reached: {error}") from error
    if not association.is_established:
        ae.close_socket()
        note_early_answer(association)
        raise AbsentError(_explain_no_association(peer, association))
    try:
        yield association
    finally:
        dialogue.wait()
        if association.is_established:
            with bounded(association):
                association.release()
        association.join(JOIN_S)
        ae.close_socket()


def note_early_answer(association: Association) -> None:
    """Have an association that did not come about know the answer that it never looked at.

    pynetdicom 3.0 takes a peer that rejects, and hangs up, before the thread that asked has looked at the connection
    for one that could not be reached.
    """
    if association.acceptor.primitive is None:
        answer: Any = association.dul.receive_pdu()
        if isinstance(answer, A_ASSOCIATE):
            association.acceptor.primitive = answer
            association.is_rejected = bool(answer.result)


def send_stored(
    association: Association, context_id: int, sop_uids: tuple[str, str], dataset: bytes | memoryview, number: int
) -> Dataset:
    """Send a C-STORE, of this Message ID, of a dataset in the transfer syntax of its presentation context already.

    Returns what `Association.send_c_store` does, which would decode and encode it: the status, or an empty dataset if
    no answer came; the association is over then. Raises RuntimeError if it was before.
    """
    if not association.is_established:
        raise RuntimeError("the association is over")
    request: Any = C_STORE()
    request.MessageID, request.Priority, request.DataSet = number, LOW_PRIORITY, BytesIO(dataset)
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = map(UID, sop_uids)
    association._reactor_checkpoint.clear()  # or its thread would take the answer
    while not association._is_paused:
        time.sleep(PAUSED_LOOK_S)
    association.dimse.send_msg(request, context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    if answer is None:
        association._handle_no_response()
        return Dataset()
    return association._check_received_status(answer)


def _take_report(event: Event, on_report: Report, dialogue: Dialogue) -> tuple[int, None]:
    dialogue.begin()
    return on_report(event.event_information), None


def _explain_no_association(peer: Peer, association: Association) -> str:
    if association.is_rejected:
        answer: Any = association.acceptor.primitive
        if answer.result == REJECTED_TRANSIENT:
            return f"{peer.name} rejected the association for now: it is busy, or short of something"
        return (
            f"{peer.name} rejected the association: check that it knows the AE title "
            f"{association.requestor.ae_title!r} of this node and that its own is right in the configuration"
        )
    if association.acceptor.primitive is not None:
        return f"{peer.name} accepted none of the SOP classes of the results, or broke off"
    tls = ", or not over TLS as configured (certificates, `openssl s_client`)" if peer.tls else ""
    return f"{peer.name} cannot be reached: nothing answers as a DICOM node there{tls}"
