"""What comes by a message: its dataset goes to a file, fragment by fragment, behind the head that makes it DICOM.

And the messages of one association: few of them wait at once, and notices to the peer go between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import N_EVENT_REPORT, DimsePrimitiveType
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.clock import derive_uid
from dicom_node.errors import InvalidInstanceError
from dicom_node.instance import is_valid_uid

MAX_COMMAND_BYTES = 64 * 1024
"""Longest command set that is read: they are hundreds of bytes (PS3.7 6.3)."""

MAX_INFORMATION_BYTES = 4 * 1024**2
"""Longest dataset of a message that stores nothing: a request for storage commitment of 10,000 instances is half."""

CHECK_SPACE_EVERY = 16 * 1024**2
"""Bytes of a dataset between two looks at the free space."""

IMPLEMENTATION_CLASS_UID = derive_uid("implementation", "KnowMVG Node")
IMPLEMENTATION_VERSION_NAME = "KNOWMVG_NODE"
"""Who wrote a file (PS3.10 7.1); without a version, so that the same dataset always gives the same file."""

MAX_UNANSWERED = 16
"""Requests of one association that wait for their answers: one by the standard (PS3.7 D.3.3.3), and some overlap."""

QUIET_S = 1.0
"""A peer that has asked nothing for so long is taken to wait for what the node has to tell."""

QUIET_WITHIN_S = 10.0
"""So long the node waits for such a pause."""

ANSWER_WITHIN_S = 30.0
LOOK_S = 0.02

C_STORE_RQ = 0x0001
RESPONSE = 0x8000
"""The bit of a Command Field (0000,0100) that makes it a response's (PS3.7 E.1-1)."""


@dataclass(frozen=True)
class Intake:
    """Where datasets go: `receive` opens a new file, `check_space` raises OSError where there is too little left."""

    receive: Callable[[], BinaryIO]
    check_space: Callable[[], None]
    max_bytes: int


class Spool(BytesIO):
    """The dataset of a message, in a file behind its File Meta Information; removed with this object unless taken.

    pynetdicom writes the fragments to it where it would fill a BytesIO. A write that fails is remembered in `error`,
    and the rest is dropped: only the C-STORE's answer can tell the sender. The dataset of a message that stores nothing
    stays in memory, where pynetdicom decodes it.
    """

    def __init__(self, intake: Intake, message: DIMSEMessage, association: Association) -> None:
        super().__init__()
        self.error: OSError | InvalidInstanceError | None = None
        self.path: Path | None = None
        self.size = 0
        self._intake, self._message, self._association = intake, weakref.ref(message), association
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._unchecked = 0

    @property
    def sha256(self) -> str:
        """The digest of the dataset alone, so that a repeat is known as one."""
        return self._digest.hexdigest()

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # pynetdicom writes bytes
        """Append a fragment."""
        if not self._is_store:
            return self._keep(data)
        if self.error is None:
            try:
                self._append(data)
            except (OSError, InvalidInstanceError) as error:
                self.error = error
                self.discard()
        return len(data)

    @property
    def _is_store(self) -> bool:
        message = self._message()
        return message is not None and message.command_set.get("CommandField") == C_STORE_RQ

    def _keep(self, data: bytes) -> int:
        if self.tell() + len(data) > MAX_INFORMATION_BYTES:
            raise ValueError(f"a message that stores nothing has more than {MAX_INFORMATION_BYTES} bytes")
        return super().write(data)

    def finish(self) -> Path | None:
        """Return the file, complete but not synced; None if there was no dataset. Raises what a write raised."""
        if self._file is not None and self.error is None:
            try:
                self._file.close()
            except OSError as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.path

    def discard(self) -> None:
        """Remove the file, unless it has been moved away."""
        if self._file is not None:
            self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._intake.check_space()
            self._file = self._intake.receive()
            self.path = Path(self._file.name)
            weakref.finalize(self, self.path.unlink, missing_ok=True)
            self.size = self._file.write(self._head())
        if self.size + len(data) > self._intake.max_bytes:
            raise InvalidInstanceError(f"it has more than {self._intake.max_bytes} bytes (receiver.max_instance_bytes)")
        self._unchecked += len(data)
        if self._unchecked > CHECK_SPACE_EVERY:
            self._intake.check_space()
            self._unchecked = 0
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _head(self) -> bytes:
        message = self._message()
        assert message is not None and message.context_id is not None
        command = message.command_set
        context = self._association._accepted_cx[message.context_id]
        return encode_head(
            str(command.get("AffectedSOPClassUID", "")),
            str(command.get("AffectedSOPInstanceUID", "")),
            str(context.transfer_syntax[0]),
        )


def encode_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble and File Meta Information (PS3.10 7.1) of a dataset that follows as it was sent.

    What a request gives as its UIDs is written only where it is a UID; such a request is refused later.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid if is_valid_uid(sop_class_uid) else "")
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid if is_valid_uid(sop_instance_uid) else "")
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, meta)
    return head.getvalue()


def make_notice(sop_uids: tuple[str, str], event_type: int, ds: Dataset, transfer_syntax_uid: str) -> N_EVENT_REPORT:
    """Return the N-EVENT-REPORT about a SOP Class and Instance, its dataset encoded already."""
    syntax = UID(transfer_syntax_uid)
    content = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    assert content is not None
    notice = N_EVENT_REPORT()
    notice.AffectedSOPClassUID, notice.AffectedSOPInstanceUID = map(UID, sop_uids)
    notice.EventTypeID, notice.EventInformation = event_type, BytesIO(content)
    return notice


class SpoolingProvider(DIMSEServiceProvider):
    """Receives messages, their datasets into a `Spool` each, and sends each message whole.

    The peer's requests are served on while it is asked to take a notice: pynetdicom's own way stops serving, and takes
    whatever comes next as the answer.
    """

    def __init__(self, association: Association, intake: Intake) -> None:
        super().__init__(association)
        self._intake = intake
        self._lock = threading.Lock()
        self._unanswered = 0
        self._answered_at = time.monotonic()
        self._turn = threading.Lock()
        self._notices = 0
        self._answer: Any = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in a part of a message. Raises ValueError, which ends the association, over what a peer may send."""
        if self.message is None:
            if max(self._unanswered, self.msg_queue.qsize()) >= MAX_UNANSWERED:
                raise ValueError(f"more than {MAX_UNANSWERED} requests wait for their answers")
            self.message = DIMSEMessage()
            self.message.data_set = Spool(self._intake, self.message, self.assoc)
        message, dataset = self.message, self.message.data_set
        if message.encoded_command_set.tell() > MAX_COMMAND_BYTES:
            raise ValueError(f"a command set has more than {MAX_COMMAND_BYTES} bytes")
        super().receive_primitive(primitive)
        if self.message is message:
            return
        command = int(message.command_set.get("CommandField", 0))
        if not command & RESPONSE:
            with self._lock:
                self._unanswered += 1
        if command != C_STORE_RQ and isinstance(dataset, Spool):
            dataset.discard()  # it began as a C-STORE's, and its command set has become another's

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message: its fragments come one after another, whichever threads send."""
        with self._lock:
            super().send_msg(primitive, context_id)
            if primitive.MessageIDBeingRespondedTo is not None:
                self._unanswered -= 1
                self._answered_at = time.monotonic()

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message for the association's thread; an answer to a notice is kept for who waits for it."""
        context_id, message = super().get_msg(block)
        if not isinstance(message, N_EVENT_REPORT):  # a request of that kind has a thread of its own, and is not here
            return context_id, message
        if message.is_valid_response and message.MessageIDBeingRespondedTo == self._notices:
            self._answer = message
        return None, None

    def notify(self, notice: N_EVENT_REPORT, context_id: int) -> int:
        """Send a notice when the peer asks nothing; return the status of its answer. One at a time.

        Raises TimeoutError, which says why, where the peer is not quiet, does not answer, or is gone.
        """
        if not self._turn.acquire(timeout=QUIET_WITHIN_S):
            raise TimeoutError("earlier ones are not answered yet")
        try:
            self._wait(self._is_quiet, QUIET_WITHIN_S, "the peer goes on sending")
            self._answer, self._notices = None, self._notices % 0xFFFF + 1
            notice.MessageID = self._notices
            self.send_msg(notice, context_id)
            self._wait(lambda: self._answer is not None, ANSWER_WITHIN_S, "the peer does not answer")
            return int(self._answer.Status)
        finally:
            self._turn.release()

    def _is_quiet(self) -> bool:
        idle_s = time.monotonic() - self._answered_at
        return self.message is None and self._unanswered == 0 and idle_s >= QUIET_S

    def _wait(self, condition: Callable[[], bool], within_s: float, reason: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if not self.assoc.is_established:
                raise TimeoutError("the association is over")
            if time.monotonic() >= deadline:
                raise TimeoutError(reason)
            time.sleep(LOOK_S)

    def discard(self) -> None:
        """Remove what came of a message that will not be completed, and of those that nobody will take up."""
        if self.message is not None and isinstance(self.message.data_set, Spool):
            self.message.data_set.discard()
        with contextlib.suppress(queue.Empty):
            while True:
                _, waiting = self.msg_queue.get_nowait()
                if isinstance(spool := getattr(waiting, "DataSet", None), Spool):
                    spool.discard()
        self.msg_queue.put((None, None))  # pynetdicom's word for nothing more
