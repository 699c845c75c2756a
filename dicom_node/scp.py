"""The receiver: Storage SCP, Storage Commitment (as the SCP of senders, and for the reports of archives), C-ECHO.

What becomes of a study is decided elsewhere, from the rows: nothing here waits for a worker.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pydicom
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.attending import quieten
from dicom_node.clock import Clock
from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_COMMITMENT, make_report, read_request
from dicom_node.config import Settings
from dicom_node.confirmation import take_report
from dicom_node.door import (
    Door,
    caller_of,
    calling_ae_title,
    handle_rejected,
    handle_requested,
    keep_audit,
    measure,
    note_refusal,
    tell_pressure,
    visit_of,
)
from dicom_node.errors import InvalidInstanceError
from dicom_node.filing import Filing
from dicom_node.holding import check_references
from dicom_node.logs import log_event
from dicom_node.multiplexer import Multiplexer
from dicom_node.notices import make_notice
from dicom_node.peers import Admission, admit
from dicom_node.pressure import Pressure
from dicom_node.queries import note_commitment_request
from dicom_node.reading import Intake
from dicom_node.recorder import Recorder
from dicom_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Answer, Files, StoreRequest
from dicom_node.storage import Storage
from dicom_node.storing import SUCCESS, UNAVAILABLE, OutOfResourcesError, check_free_space, explain, store
from dicom_node.tls import server_context
from dicom_node.transport import GREETING_S, ReceivingHandler, ReceivingServer, SharedPortServer

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


KINDS = (
    ("1.2.840.10008.5.1.4.1.1.1.", "image"),
    ("1.2.840.10008.5.1.4.1.1.88.", "report"),
    ("1.2.840.10008.5.1.4.1.1.104.2.", "report"),
)
"""How arrivals are counted, by what their SOP class begins with."""

NOTICE_STATUS: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((InvalidInstanceError,), 0x0115),  # Invalid argument value (PS3.7 C.5.2)
    (UNAVAILABLE, 0x0213),  # Resource limitation (PS3.7 C.5.16)
)
"""What is answered to an N-ACTION or an N-EVENT-REPORT of storage commitment for each failure."""

NOT_AUTHORIZED = 0x0124
NO_SUCH_ACTION = 0x0123

LOOK_S = 1.0
"""Between two looks at the free space and the database."""


class Receiver:
    """A listening SCP."""

    def __init__(self, server: ReceivingServer, door: Door, multiplexer: Multiplexer) -> None:
        """`server` is bound already; its threads start here."""
        self._server = server
        self._multiplexer = multiplexer
        self._door = door
        self._stop = threading.Event()
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="receiver", daemon=True)
        self._thread.start()
        self._watch = threading.Thread(target=self._look, name="pressure", daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """Listen no more and abort what is open; what was acknowledged stays, and what is not audited yet is now."""
        self._stop.set()
        open_associations = self._server.active_associations
        self._server.shutdown()
        self._thread.join()
        for association in open_associations:
            association.abort(block=False)
        for association in self._server.active_associations:  # those that were being accepted
            association.abort(block=False)
        self._multiplexer.stop()
        self._watch.join(LOOK_S)  # it may be at that, too
        if self._door.unkept:
            keep_audit(self._door)

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._door.pressure.look()
            self._door.recorder.set("knowmvg_open_associations", len(self._server.admitted()))
            self._door.recorder.set("knowmvg_receivers_closed", bool(self._door.pressure.closed))
            if self._door.unkept and not self._door.pressure.database_away:
                keep_audit(self._door)


def start_receiver(
    settings: Settings,
    sessions: sessionmaker[Session],
    storage: Storage,
    clock: Clock,
    recorder: Recorder | None = None,
) -> Receiver:
    """Listen as `settings.receiver` says. Raises OSError if the address cannot be bound."""
    # a value that is not as PS3.5 wants it is no reason to print it: it may be a patient's
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    receiver = settings.receiver
    pressure = Pressure(functools.partial(measure, storage, sessions), receiver.min_free_bytes)
    filing = Filing(sessions, timedelta(seconds=settings.assembly.quiet_period_s))
    door = Door(settings, sessions, storage, clock, pressure, filing, recorder=recorder or Recorder.of(settings))
    pressure.changed = functools.partial(tell_pressure, door)
    server_class = SharedPortServer if receiver.processes > 1 else ReceivingServer
    server = server_class(
        ae := _make_ae(settings),
        (receiver.host, receiver.port),
        receiver.ae_title,
        ae.supported_contexts,
        ssl_context=server_context(receiver.tls) if receiver.tls else None,
        evt_handlers=_make_handlers(door),
        request_handler=ReceivingHandler,
    )
    ae._servers.append(server)
    files = Files(storage.receive, functools.partial(check_free_space, door), receiver.max_instance_bytes)
    store_all = functools.partial(_store_counted, door)
    server.intake = Intake(files, store_all, multiplexer := Multiplexer(store_all))
    server.refused = functools.partial(note_refusal, door, "", "")
    quieten(server)
    removed = storage.sweep_incoming((clock() - timedelta(hours=1)).timestamp())
    log_event(
        logger, "receiver listening", ae_title=receiver.ae_title, host=receiver.host, port=server.server_address[1],
        tls=receiver.tls is not None,
    )  # fmt: skip
    if removed:
        log_event(logger, "unfinished files removed", count=removed)
    return Receiver(server, door, multiplexer)


def _store_counted(door: Door, requests: Sequence[StoreRequest]) -> list[Answer]:
    """File instances, and count them."""
    answers = store(door, requests)
    for request, (status, _) in zip(requests, answers, strict=True):
        if status == SUCCESS:
            sop_class = f"{request.command.sop_class_uid}."
            kind = next((kind for root, kind in KINDS if sop_class.startswith(root)), "other")
            peer = calling_ae_title(request.association)
            door.recorder.count("knowmvg_instances_received", peer, kind)
            door.recorder.count("knowmvg_received_bytes", peer, kind, by=request.spool.size)
        else:
            door.recorder.count("knowmvg_instances_refused", f"0x{status:04X}")
    return answers


def _make_ae(settings: Settings) -> AE:
    receiver = settings.receiver
    ae = AE(ae_title=receiver.ae_title)
    ae.require_called_aet = True
    ae.maximum_associations = (
        100_000  # counted in `handle_requested`, where bare connections are told from associations
    )
    ae.maximum_pdu_size = receiver.max_pdu
    ae.acse_timeout = GREETING_S
    ae.network_timeout = receiver.idle_s
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    for uid in STORAGE_CLASSES:
        ae.add_supported_context(uid, TRANSFER_SYNTAXES)
    return ae


def _make_handlers(door: Door) -> list[Any]:
    return [
        (evt.EVT_REQUESTED, handle_requested, [door]),
        (evt.EVT_REJECTED, handle_rejected, [door]),
        (evt.EVT_N_ACTION, handle_commitment_request, [door]),
        (evt.EVT_N_EVENT_REPORT, handle_commitment_report, [door]),
    ]


# ---- storage commitment ----------------------------------------------------------------------------------------------


def handle_commitment_request(event: Event, door: Door) -> tuple[int, None]:
    """Answer an N-ACTION: keep what a sender asks; it is looked up and told afterwards (PS3.4 J.3.2).

    A sender with a `port` in the settings is called back; the others are told on this association, held open for it.
    What is asked again under its Transaction UID is told again.
    """
    if event.action_type != REQUEST_COMMITMENT:
        return NO_SUCH_ACTION, None
    admission = admit(door.settings, caller_of(event.assoc))
    if not isinstance(admission, Admission) or admission.role != "sender":
        return NOT_AUTHORIZED, None
    calling, address = calling_ae_title(event.assoc), str(event.assoc.requestor.address)
    failures = tuple(kind for kinds, _ in NOTICE_STATUS for kind in kinds)
    try:
        transaction_uid, references = read_request(event.action_information)
        if admission.peer is None or admission.peer.port is None:
            _tell_here(event, door, transaction_uid, references)
        else:
            with door.sessions.begin() as session:
                sender = (calling, address)
                noted = note_commitment_request(session, transaction_uid, sender, references, door.clock())
            if noted == "conflict":
                raise InvalidInstanceError("other instances were asked for under this Transaction UID")
    except failures as error:
        status = _notice_status(error)
        log_event(
            logger, "commitment request refused", level=logging.WARNING, calling_ae_title=calling,
            status=f"0x{status:04X}", reason=explain(error),
        )  # fmt: skip
        return status, None
    log_event(logger, "commitment requested", calling_ae_title=calling, instances=len(references))
    return SUCCESS, None


def _tell_here(event: Event, door: Door, transaction_uid: str, references: tuple[tuple[str, str], ...]) -> None:
    """Look up now, tell when the sender is quiet. Raises OutOfResourcesError where too many reports wait for that."""
    kept, failed = check_references(references, door.sessions, door.storage)
    event_type, report = make_report(transaction_uid, kept, failed)
    notice = make_notice((PUSH_MODEL, PUSH_MODEL_INSTANCE), event_type, report, event.context.transfer_syntax)
    if not visit_of(event.assoc).untaken_reports.acquire(blocking=False):
        raise OutOfResourcesError("too many reports wait on this association")
    threading.Thread(target=_report_here, args=(event, notice), name="commitment report", daemon=True).start()


def _report_here(event: Event, notice: N_EVENT_REPORT) -> None:
    provider: Any = event.assoc.dimse
    try:
        status = provider.notify(notice, event.context.context_id)
        log_event(logger, "commitment report sent", status=f"0x{status:04X}")
    except TimeoutError as error:
        log_event(logger, "commitment report not taken", level=logging.WARNING, reason=str(error))
    finally:
        visit_of(event.assoc).untaken_reports.release()


def handle_commitment_report(event: Event, door: Door) -> tuple[int, None]:
    """Answer an N-EVENT-REPORT of an archive that was asked for storage commitment (PS3.4 J.3.3)."""
    failures = tuple(kind for kinds, _ in NOTICE_STATUS for kind in kinds)
    try:
        ds = event.event_information
        calling = calling_ae_title(event.assoc)
        return take_report(ds, calling, door.settings, door.sessions, door.clock, door.recorder), None
    except failures as error:
        return _notice_status(error), None


def _notice_status(error: Exception) -> int:
    return next(code for kinds, code in NOTICE_STATUS if isinstance(error, kinds))
