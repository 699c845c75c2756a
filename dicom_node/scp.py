"""The Storage SCP: success is answered only when the bytes are synced under their final name and the row is committed.

Bytes are kept as sent, in any transfer syntax; only their header is read here, never pixels or a report's content.
What becomes of a study is decided elsewhere, from the rows: nothing here waits for a worker.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.events import Event
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.config import PeerSettings, Settings
from dicom_node.errors import InvalidInstanceError
from dicom_node.instance import Instance, read_instance
from dicom_node.logs import log_event
from dicom_node.queries import Recorded, record_instance
from dicom_node.storage import FileStorage, StoredFile, instance_key, sync
from dicom_node.transport import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Intake,
    ReceivingHandler,
    ReceivingServer,
    SharedPortServer,
    Spool,
    SpoolingProvider,
)

logger = logging.getLogger(__name__)

VERIFICATION = "1.2.840.10008.1.1"
TRANSFER_SYNTAXES = (*ALL_TRANSFER_SYNTAXES, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
"""Those that pynetdicom knows, and two retired ones that archives still hold (JPEG spectral selection, progression)."""

STORAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography Image
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray Image - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray Image - For Processing
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.35",  # Extensible SR
    "1.2.840.10008.5.1.4.1.1.88.40",  # Procedure Log
    "1.2.840.10008.5.1.4.1.1.88.50",  # Mammography CAD SR
    "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection Document
    "1.2.840.10008.5.1.4.1.1.88.65",  # Chest CAD SR
    "1.2.840.10008.5.1.4.1.1.88.67",  # X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.68",  # Radiopharmaceutical Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.69",  # Colon CAD SR
    "1.2.840.10008.5.1.4.1.1.88.70",  # Implantation Plan SR
    "1.2.840.10008.5.1.4.1.1.88.71",  # Acquisition Context SR
    "1.2.840.10008.5.1.4.1.1.88.72",  # Simplified Adult Echo SR
    "1.2.840.10008.5.1.4.1.1.88.73",  # Patient Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.88.74",  # Planned Imaging Agent Administration SR
    "1.2.840.10008.5.1.4.1.1.88.75",  # Performed Imaging Agent Administration SR
    "1.2.840.10008.5.1.4.1.1.88.76",  # Enhanced X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.104.2",  # Encapsulated CDA
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
)
"""What is taken in: radiographs, every SR, and reports as CDA documents. The node's own results come back from archives
that route everything."""


class MismatchError(InvalidInstanceError):
    """The dataset is another instance than the request says."""


class OutOfResourcesError(OSError):
    """The storage has less free space than the configuration asks for."""


UNAVAILABLE = (OSError, OperationalError, InterfaceError, PoolTimeoutError)
"""What a disk or a database that is full, locked or away raises."""

SUCCESS = 0x0000
STORE_STATUS: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((MismatchError,), 0xA900),  # Error: Data Set does not match SOP Class (PS3.4 B.2.3)
    ((InvalidInstanceError,), 0xC000),  # Error: Cannot understand (PS3.4 B.2.3)
    (UNAVAILABLE, 0xA700),  # Refused: Out of Resources; the sender keeps it and tries again (PS3.4 B.2.3)
)
"""What is answered for each failure; the first row that fits counts. Anything else is a bug, and pynetdicom answers
0xC211."""

CALLING_TITLE_REJECTED = (0x01, 0x01, 0x03)
"""Rejected permanently, by the user, calling AE title not recognized (PS3.8 9.3.4)."""


@dataclass(frozen=True)
class Door:
    """What the handlers are given."""

    settings: Settings
    sessions: sessionmaker[Session]
    storage: FileStorage
    clock: Clock


class Receiver:
    """A listening SCP."""

    def __init__(self, server: ReceivingServer) -> None:
        """`server` is bound already; its thread starts here."""
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="receiver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more and abort what is open; what was acknowledged stays."""
        open_associations = self._server.active_associations
        self._server.shutdown()
        self._thread.join()
        for association in open_associations:
            association.abort(block=False)


def start_receiver(settings: Settings, sessions: sessionmaker[Session], storage: FileStorage, clock: Clock) -> Receiver:
    """Listen as `settings.receiver` says. Raises OSError if the address cannot be bound."""
    # a value that is not as PS3.5 wants it is no reason to print it: it may be a patient's
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    door = Door(settings, sessions, storage, clock)
    receiver = settings.receiver
    shared = receiver.processes > 1
    server_class = SharedPortServer if shared else ReceivingServer
    server = server_class(
        ae := _make_ae(settings),
        (receiver.host, receiver.port),
        receiver.ae_title,
        ae.supported_contexts,
        evt_handlers=_make_handlers(door),
        request_handler=ReceivingHandler,
    )
    ae._servers.append(server)
    server.intake = Intake(storage.receive, functools.partial(_check_free_space, door))
    server.quieten()
    removed = storage.sweep_incoming((clock() - timedelta(hours=1)).timestamp() if shared else None)
    log_event(
        logger, "receiver listening", ae_title=receiver.ae_title, host=receiver.host, port=server.server_address[1]
    )
    if removed:
        log_event(logger, "unfinished files removed", count=removed)
    return Receiver(server)


def _make_ae(settings: Settings) -> AE:
    receiver = settings.receiver
    ae = AE(ae_title=receiver.ae_title)
    ae.require_called_aet = True
    ae.maximum_associations = receiver.max_associations
    ae.maximum_pdu_size = receiver.max_pdu
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.add_supported_context(VERIFICATION)
    for uid in STORAGE_CLASSES:
        ae.add_supported_context(uid, TRANSFER_SYNTAXES)
    return ae


def _make_handlers(door: Door) -> list[Any]:
    return [
        (evt.EVT_REQUESTED, handle_requested, [door]),
        (evt.EVT_REJECTED, handle_rejected),
        (evt.EVT_C_STORE, handle_store, [door]),
        (evt.EVT_ABORTED, handle_closed),
        (evt.EVT_CONN_CLOSE, handle_closed),
    ]


def handle_requested(event: Event, door: Door) -> None:
    """Reject an association of somebody who is no peer, before anything is negotiated."""
    request: Any = event.assoc.requestor.primitive
    address = str(event.assoc.requestor.address)
    if is_peer(door.settings, str(request.calling_ae_title).strip(), address):
        return
    event.assoc.requestor.ae_title = request.calling_ae_title
    event.assoc.acse.send_reject(*CALLING_TITLE_REJECTED)
    evt.trigger(event.assoc, evt.EVT_REJECTED, {})
    event.assoc.kill()


def handle_rejected(event: Event) -> None:
    """Log who was turned away."""
    requestor: Any = event.assoc.requestor
    log_event(
        logger, "association rejected", level=logging.WARNING, calling_ae_title=str(requestor.ae_title).strip(),
        called_ae_title=str(requestor.primitive.called_ae_title).strip(), address=requestor.address,
        advice="receiver.peers and receiver.ae_title say who may call what; receiver.max_associations how many at once",
    )  # fmt: skip


def handle_closed(event: Event) -> None:
    """Remove what came of an instance whose sender hung up in the middle of it."""
    if isinstance(event.assoc.dimse, SpoolingProvider):
        event.assoc.dimse.discard()


def is_peer(settings: Settings, calling_ae_title: str, address: str) -> bool:
    """Tell whether a sender is let in: by AE title and address, or because everybody is."""
    receiver = settings.receiver
    return receiver.any or any(
        peer.ae_title.strip() == calling_ae_title and _normalize(address) in _addresses(peer) for peer in receiver.peers
    )


def _addresses(peer: PeerSettings) -> set[str]:
    """Every address of a peer; a host name may have several, and none while the name server is away."""
    try:
        return {_normalize(str(entry[4][0])) for entry in socket.getaddrinfo(peer.address, None)}
    except OSError:
        log_event(logger, "peer address unknown", level=logging.WARNING, ae_title=peer.ae_title, address=peer.address)
        return set()


def _normalize(address: str) -> str:
    """Return an address as text that can be compared: an IPv4 address in IPv6 clothes is that IPv4 address."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def handle_store(event: Event, door: Door) -> Dataset | int:
    """Answer a C-STORE: file the instance, or say why not with the status of `STORE_STATUS`."""
    request: Any = event.request
    failures = tuple(kind for kinds, _ in STORE_STATUS for kind in kinds)
    try:
        recorded = _file(event, door)
    except failures as error:
        return _refuse(event, error)
    log_event(
        logger, f"instance {LOGGED[recorded.kind]}", sop_instance_uid=request.AffectedSOPInstanceUID,
        calling_ae_title=_calling_ae_title(event), job_id=recorded.job_id, revision=recorded.revision or None,
    )  # fmt: skip
    return SUCCESS


LOGGED = {"new": "filed", "repeat": "held already", "conflict": "kept aside", "own": "ignored"}
"""Kinds of `Recorded`, in words."""


def _calling_ae_title(event: Event) -> str:
    return str(event.assoc.requestor.ae_title).strip()


def _refuse(event: Event, error: Exception) -> Dataset:
    """Return the response's status and, for the sender's log, its Error Comment (0000,0902), LO."""
    request: Any = event.request
    status = next(code for kinds, code in STORE_STATUS if isinstance(error, kinds))
    reason = str(error) if isinstance(error, InvalidInstanceError | OutOfResourcesError) else type(error).__name__
    log_event(
        logger, "instance refused", level=logging.WARNING, status=f"0x{status:04X}", reason=reason,
        sop_instance_uid=request.AffectedSOPInstanceUID, calling_ae_title=_calling_ae_title(event),
    )  # fmt: skip
    response = Dataset()
    response.Status = status
    response.ErrorComment = reason[:64].encode("ascii", "replace").decode().replace("\\", "/")
    return response


def _file(event: Event, door: Door) -> Recorded:
    """Keep the instance's bytes, then its row; raises what `STORE_STATUS` lists."""
    spool: Any = event.request.DataSet  # type: ignore[union-attr]  # a C-STORE
    try:
        path = spool.finish()
        if path is None:
            raise InvalidInstanceError("the request has no dataset")
        instance = read_instance(path)
        _check_request(event, instance)
        if instance.is_own_result:
            return Recorded("own")
        stored = StoredFile(_key(instance, spool), spool.sha256, spool.size)
        sync(path)
        door.storage.file(stored.key, path)
    finally:
        spool.discard()
    quiet_period = timedelta(seconds=door.settings.assembly.quiet_period_s)
    with door.sessions.begin() as session:
        recorded = record_instance(session, instance, stored, _calling_ae_title(event), door.clock(), quiet_period)
    if recorded.kind == "own":
        door.storage.remove(stored.key)
    return recorded


def _key(instance: Instance, spool: Spool) -> str:
    return instance_key(instance.study_instance_uid, instance.sop_instance_uid, spool.sha256)


def _check_free_space(door: Door) -> None:
    free, least = door.storage.free_bytes(), door.settings.receiver.min_free_bytes
    if free < least:
        raise OutOfResourcesError(f"{free} bytes free, receiver.min_free_bytes is {least}")


def _check_request(event: Event, instance: Instance) -> None:
    request: Any = event.request
    if request.AffectedSOPClassUID != instance.sop_class_uid:
        raise MismatchError("its SOP Class UID is not that of the request")
    if request.AffectedSOPInstanceUID != instance.sop_instance_uid:
        raise MismatchError("its SOP Instance UID is not that of the request")
