"""The receiver's connections: PDUs are read in large pieces, and datasets go to disk as their fragments come.

pynetdicom reads 4 KiB at a time, believes any length that a peer claims before it knows who the peer is, and keeps a
whole dataset in memory. Its request handler is the place to mend all three: it makes the association's parts.
"""

from __future__ import annotations

import functools
import hashlib
import socket
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom._handlers import (
    standard_dimse_recv_handler,
    standard_dimse_sent_handler,
    standard_pdu_recv_handler,
    standard_pdu_sent_handler,
)
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_node.clock import derive_uid
from dicom_node.instance import is_valid_uid

MAX_PDU_BYTES = 1024**2
"""Longest PDU that is read: association requests are kilobytes, P-DATA at most receiver.max_pdu (PS3.8 9.3)."""

CHECK_SPACE_EVERY = 16 * 1024**2
"""Bytes of a dataset between two looks at the free space."""

IMPLEMENTATION_CLASS_UID = derive_uid("implementation", "KnowMVG Node")
IMPLEMENTATION_VERSION_NAME = "KNOWMVG_NODE"
"""Who wrote a file (PS3.10 7.1); without a version, so that the same dataset always gives the same file."""


@dataclass(frozen=True)
class Intake:
    """Where datasets go: `receive` opens a new file, `check_space` raises OSError where there is too little left."""

    receive: Callable[[], BinaryIO]
    check_space: Callable[[], None]


class Spool(BytesIO):
    """The dataset of a message, in a file behind its File Meta Information; removed with this object unless taken.

    pynetdicom writes the fragments to it where it would fill a BytesIO. A write that fails is remembered in `error`,
    and the rest is dropped: only the C-STORE's answer can tell the sender.
    """

    def __init__(self, intake: Intake, message: DIMSEMessage, association: Association) -> None:
        super().__init__()
        self.error: OSError | None = None
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
        if self.error is None:
            try:
                self._append(data)
            except OSError as error:
                self.error = error
                self.discard()
        return len(data)

    def finish(self) -> Path | None:
        """Return the file, complete but not synced; None if there was no dataset. Raises the OSError of a write."""
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


class SpoolingProvider(DIMSEServiceProvider):
    """Receives messages, their datasets into a `Spool` each."""

    def __init__(self, association: Association, intake: Intake) -> None:
        super().__init__(association)
        self._intake = intake

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in a part of a message."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = Spool(self._intake, self.message, self.assoc)
        super().receive_primitive(primitive)

    def discard(self) -> None:
        """Remove what came of a message that will not be completed."""
        if self.message is not None and isinstance(self.message.data_set, Spool):
            self.message.data_set.discard()


class ReceivingServer(ThreadedAssociationServer):
    """Accepts connections as `ReceivingHandler` does; several may share a port, the kernel spreads the associations."""

    intake: Intake
    shares_port = False

    def server_bind(self) -> None:
        """Bind the socket."""
        if self.shares_port:
            cast(socket.socket, self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def quieten(self) -> None:
        """Unbind pynetdicom's own log handlers, which copy every dataset and spell out every PDU to log nothing."""
        self.unbind(evt.EVT_DIMSE_RECV, standard_dimse_recv_handler)
        self.unbind(evt.EVT_DIMSE_SENT, standard_dimse_sent_handler)
        self.unbind(evt.EVT_PDU_RECV, standard_pdu_recv_handler)
        self.unbind(evt.EVT_PDU_SENT, standard_pdu_sent_handler)


class SharedPortServer(ReceivingServer):
    """Lets several receiver processes listen on one port."""

    shares_port = True


class ReceivingHandler(RequestHandler):
    """Makes the associations of a `ReceivingServer`."""

    server: ReceivingServer

    def _create_association(self) -> Association:
        association = super()._create_association()
        accepted = association.dul.socket
        if isinstance(accepted, AssociationSocket) and accepted.socket is not None:
            accepted.socket.settimeout(self.ae.network_timeout)  # who stops in mid-PDU must not hold a thread for ever
            accepted.recv = functools.partial(receive_exactly, accepted.socket)  # type: ignore[method-assign]
        association.dimse = SpoolingProvider(association, self.server.intake)
        return association


def receive_exactly(connection: socket.socket, count: int) -> bytearray:
    """Return the next `count` bytes, fewer if the peer hangs up. Hangs up and raises OSError over the cap."""
    if count > MAX_PDU_BYTES:
        connection.shutdown(socket.SHUT_RDWR)
        raise OSError(f"the peer announces a PDU of {count} bytes; at most {MAX_PDU_BYTES} are read")
    buffer, received = bytearray(count), 0
    with memoryview(buffer) as view:
        while received < count:
            read = connection.recv_into(view[received:])
            if read == 0:
                break
            received += read
    del buffer[received:]
    return buffer
