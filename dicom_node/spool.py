"""What comes by a message: its dataset goes to a file, fragment by fragment, behind the head that makes it DICOM."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
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

C_STORE_RQ = 0x0001


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


class SpoolingProvider(DIMSEServiceProvider):
    """Receives messages, their datasets into a `Spool` each."""

    def __init__(self, association: Association, intake: Intake) -> None:
        super().__init__(association)
        self._intake = intake

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in a part of a message. Raises ValueError, which ends the association, over what a command may have."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = Spool(self._intake, self.message, self.assoc)
        if self.message.encoded_command_set.tell() > MAX_COMMAND_BYTES:
            raise ValueError(f"a command set has more than {MAX_COMMAND_BYTES} bytes")
        super().receive_primitive(primitive)

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
