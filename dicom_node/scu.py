"""Talking to archives and senders: C-STORE, C-FIND, C-ECHO, and both sides of storage commitment, as the SCU.

One association at a time, over TLS where the destination says so. Nothing is decided here about when to try again, and
nothing waits for ever: whoever stops answering, in the middle of a PDU or of a hand-shake, is hung up on.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, Literal, Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event
from pynetdicom.presentation import build_context, build_role
from pynetdicom.transport import AssociationSocket

from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_COMMITMENT, Reference, make_request
from dicom_node.config import ClientTlsSettings, DestinationSettings
from dicom_node.delivery import read_status
from dicom_node.errors import AbsentError, TransientError
from dicom_node.sockets import receive_exactly
from dicom_node.tls import client_context

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"

TRANSFER_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 30
JOIN_S = 2
PAUSE_S = 5
REJECTED_TRANSIENT = 2
"""Result of an A-ASSOCIATE-RJ, PS3.8 9.3.4."""

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)

NO_QUERY = (0x0122, 0x0124, 0xA900)
"""SOP class not supported, not authorized, identifier does not match SOP class (PS3.4 C.4.1.1.4): an archive that says
so answers no query. Whatever else is no success may be otherwise the next time."""

Finding = Literal["present", "absent", "unknown", "refused"]
"""What a query came to: the archive has it, or has not; it cannot say now, or broke off; it answers no query at all."""

SR_CLASSES: dict[str, tuple[str, ...]] = {
    "auto": (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR),
    "comprehensive_3d": (COMPREHENSIVE_3D_SR,),
    "comprehensive": (COMPREHENSIVE_SR,),
}
"""`sr_class` of a destination: the SR classes it may be given, the preferred one first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One encoding of a part: an instance, whose file `open` gives."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Part:
    """What a destination must have exactly one of: `candidates` say the same, the preferred one first."""

    name: str
    candidates: tuple[Candidate, ...]


Report = Callable[[Dataset], int]
"""Takes the Event Information of a storage commitment report, and returns the DIMSE status to answer."""


def prefer(part: Part, destination: DestinationSettings, accepted: str | None = None) -> Part:
    """Return `part` with the candidates that `destination` may be given, the one to be tried first in front.

    That is the SR of the class that the destination took last (`accepted`), so that the revisions of a study stay of
    one class and a refusal is not asked for again; else the class that `sr_class` names first.
    """
    if part.name != "sr":
        return part
    allowed = sorted(SR_CLASSES[destination.sr_class], key=lambda uid: uid != accepted)  # stable
    candidates = tuple(one for uid in allowed for one in part.candidates if one.sop_class_uid == uid)
    return replace(part, candidates=candidates)


class Archive:
    """An established association with a destination: what may be asked of it, one answer each."""

    def __init__(self, association: Association) -> None:
        self._association = association

    @property
    def is_open(self) -> bool:
        """Whether it has not been released, aborted or lost."""
        return self._association.is_established

    def accepts(self, abstract_syntax: str) -> bool:
        """Tell whether the destination accepted a presentation context for this SOP class."""
        return any(context.abstract_syntax == abstract_syntax for context in self._association.accepted_contexts)

    def store(self, candidate: Candidate) -> int | None:
        """Return the status of the C-STORE; None if no answer came or the association is gone.

        Raises TransientError where the file cannot be read.
        """
        if not self.is_open:
            return None
        try:
            with candidate.open() as file:
                ds = dcmread(file)
        except OSError as error:
            raise TransientError(f"result {candidate.sop_instance_uid} cannot be read: {error.strerror}") from error
        try:
            with _bounded(self._association):
                return _status_of(self._association.send_c_store(ds))
        except RuntimeError:  # it was lost between the look and the call
            return None

    def find(self, study_instance_uid: str, candidate: Candidate) -> Finding:
        """Ask whether the archive has an instance (C-FIND, PS3.4 C.6.2, IMAGE level)."""
        if not self.is_open:
            return "unknown"
        keys = Dataset()
        keys.QueryRetrieveLevel = "IMAGE"
        keys.StudyInstanceUID, keys.SeriesInstanceUID = study_instance_uid, candidate.series_instance_uid
        keys.SOPInstanceUID = candidate.sop_instance_uid
        try:
            with _bounded(self._association):
                return self._find(keys, candidate.sop_instance_uid)
        except RuntimeError:
            return "unknown"

    def _find(self, keys: Dataset, sop_instance_uid: str) -> Finding:
        finding: Finding = "absent"
        for answer, identifier in self._association.send_c_find(keys, STUDY_ROOT_FIND):
            status = _status_of(answer)
            if status in NO_QUERY:
                return "refused"
            if status not in (SUCCESS, *PENDING):
                return "unknown"
            shown = identifier.get("SOPInstanceUID") if identifier is not None else None
            if status in PENDING and shown == sop_instance_uid:
                finding = "present"
            elif status in PENDING and shown is None and finding == "absent":
                finding = "unknown"  # it shows something that cannot be read
        return finding

    def ask_commitment(self, transaction_uid: str, references: Sequence[Reference]) -> int | None:
        """Ask for storage commitment (N-ACTION, PS3.4 J.3.2) and return the status; None if no answer came."""
        if not self.is_open:
            return None
        request = make_request(transaction_uid, references)
        try:
            with _bounded(self._association):
                answer, _ = self._association.send_n_action(
                    request, REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE
                )
        except RuntimeError:
            return None
        return _status_of(answer)


class Connect(Protocol):
    """Gives an association with a destination; `scu.connect`, or a fake's."""

    def __call__(
        self,
        destination: DestinationSettings,
        abstract_syntaxes: Sequence[str],
        calling_ae_title: str,
        on_report: Report | None = None,
    ) -> AbstractContextManager[Archive]:
        """Raises AbsentError if there is none to be had."""
        ...


@contextmanager
def connect(
    destination: DestinationSettings,
    abstract_syntaxes: Sequence[str],
    calling_ae_title: str,
    on_report: Report | None = None,
) -> Iterator[Archive]:
    """Give an established association, released at the end; storage commitment reports on it go to `on_report`.

    Raises AbsentError that says why if there is none to be had.
    """
    peer = Peer(_describe(destination), destination.ae_title, destination.host, destination.port, destination.tls)
    with open_association(peer, abstract_syntaxes, calling_ae_title, on_report) as association:
        yield Archive(association)


def echo(destination: DestinationSettings, calling_ae_title: str) -> None:
    """Send C-ECHO; raises TransientError that says why if the destination does not answer with success."""
    peer = Peer(_describe(destination), destination.ae_title, destination.host, destination.port, destination.tls)
    with open_association(peer, [VERIFICATION], calling_ae_title) as association:
        if not Archive(association).accepts(VERIFICATION):
            raise TransientError(f"{_describe(destination)} answers, but does not accept C-ECHO")
        status = _status_of(association.send_c_echo())
    if status != SUCCESS:
        raise TransientError(f"{_describe(destination)} answered C-ECHO with {spell(status)}")


def report_commitment(peer: Peer, event_type: int, report: Dataset, calling_ae_title: str) -> None:
    """Tell a sender of its storage commitment on an association of our own (N-EVENT-REPORT, PS3.4 J.3.3).

    This side is the SCP of the service though it opens the association, so that the roles are negotiated (PS3.7
    D.3.3.4). Raises AbsentError if there is no association, TransientError if the sender does not take the report.
    """
    roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
    with open_association(peer, [PUSH_MODEL], calling_ae_title, roles=roles) as association:
        if not Archive(association).accepts(PUSH_MODEL):
            raise TransientError(f"{peer.name} does not accept reports of storage commitment")
        answer, _ = association.send_n_event_report(report, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    if (status := _status_of(answer)) != SUCCESS:
        raise TransientError(f"{peer.name} answered the report of storage commitment with {spell(status)}")


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

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        transport = super()._create_socket(*arguments)
        self._socket = transport.socket
        connect_socket = transport.connect

        def connect_timed(primitive: Any) -> None:
            connect_socket(primitive)
            if transport.socket is not None:
                self._socket = transport.socket  # TLS put another in its place
                transport.socket.settimeout(ANSWER_TIMEOUT_S)
                transport.recv = partial(receive_exactly, transport.socket, ANSWER_TIMEOUT_S)  # type: ignore[method-assign]

        transport.connect = connect_timed  # type: ignore[method-assign]
        return transport

    def close_socket(self) -> None:
        """Close the socket of an association that did not come about, or is over."""
        if self._socket is not None:
            self._socket.close()


@contextmanager
def _bounded(association: Association) -> Iterator[None]:
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
) -> Iterator[Association]:
    """Give an established association, released at the end. Raises AbsentError if there is none to be had."""
    ae = _Requestor(ae_title=calling_ae_title)
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_TIMEOUT_S
    contexts = [build_context(syntax, TRANSFER_SYNTAXES) for syntax in abstract_syntaxes]
    answering = _Answering()
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, _take_report, [on_report, answering])] if on_report else []
    tls = (client_context(peer.tls), peer.tls.server_name or peer.host) if peer.tls else None
    try:
        association = ae.associate(
            peer.host, peer.port, contexts, peer.ae_title, ext_neg=list(roles), evt_handlers=handlers, tls_args=tls
        )
    except OSError as error:  # a host name that does not resolve
        raise AbsentError(f"{peer.name} cannot be reached: {error}") from error
    if not association.is_established:
        ae.close_socket()
        raise AbsentError(_explain_no_association(peer, association))
    association.dimse.send_msg = partial(answering.send, association.dimse.send_msg)  # type: ignore[method-assign]
    try:
        yield association
    finally:
        answering.wait()
        if association.is_established:
            with _bounded(association):
                association.release()
        association.join(JOIN_S)
        ae.close_socket()


class _Answering:
    """A report that is being answered on an association, which is not released before: nothing may be sent after."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._done.set()

    def begin(self) -> None:
        """Note that a report came."""
        self._done.clear()

    def send(self, send_msg: Callable[[Any, int], None], primitive: Any, context_id: int) -> None:
        """Send a message, and note if that was the answer."""
        send_msg(primitive, context_id)
        if isinstance(primitive, N_EVENT_REPORT):
            self._done.set()

    def wait(self) -> None:
        """Wait, not for ever, until the answer is on its way."""
        self._done.wait(JOIN_S)


def _take_report(event: Event, on_report: Report, answering: _Answering) -> tuple[int, None]:
    answering.begin()
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


def _status_of(answer: Dataset) -> int | None:
    return int(answer.Status) if "Status" in answer else None


def spell(status: int | None) -> str:
    """Return a status as people are told it, with its meaning."""
    return read_status(status).text if status is None else f"status 0x{status:04X} ({read_status(status).text})"


def _describe(destination: DestinationSettings) -> str:
    return f"destination {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
