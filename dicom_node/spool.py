"""The dataset of a C-STORE on its way to the disk, behind the head that makes it a DICOM file (PS3.10 7.1)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pynetdicom.association import Association

from dicom_node.clock import derive_uid
from dicom_node.errors import InvalidInstanceError
from dicom_node.head import is_valid_uid
from dicom_node.pdata import Command

HELD_BYTES = 1024**2
"""So much of a dataset is held in memory, and goes to the disk with others that have come in the meantime."""

SMALL_BYTES = 512 * 1024
"""So much is small: what an instance costs beside its bytes is more than what they cost."""

CHECK_SPACE_EVERY = 16 * 1024**2
"""Bytes of a dataset between two looks at the free space."""

IMPLEMENTATION_CLASS_UID = derive_uid("implementation", "KnowMVG Node")
IMPLEMENTATION_VERSION_NAME = "KNOWMVG_NODE"
"""Who wrote a file (PS3.10 7.1); without a version, so that the same dataset always gives the same file."""


@dataclass(frozen=True)
class Files:
    """Where datasets go: `receive` opens a new file, `check_space` raises OSError where there is too little left."""

    receive: Callable[[], BinaryIO]
    check_space: Callable[[], None]
    max_bytes: int


Answer = tuple[int, str]
"""Status and Error Comment (0000,0902) of a response."""


@dataclass(frozen=True, slots=True, eq=False)
class StoreRequest:
    """A C-STORE request that has come, all of it: its command set, and the dataset in its spool."""

    association: Association
    context_id: int
    command: Command
    spool: Spool


class Spool:
    """A dataset as it comes, behind its File Meta Information: in memory as long as it is small, then in a file.

    The file is removed with this object unless released. A write that fails is remembered in `error`, and the rest is
    dropped: the sender is only told by the answer.
    """

    def __init__(self, files: Files, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> None:
        """The UIDs are the request's; nothing is made before the first fragment comes."""
        self.error: OSError | InvalidInstanceError | None = None
        self.path: Path | None = None
        self.size = 0
        self._files = files
        self._uids = (sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        self._digest = hashlib.sha256()
        self._held = BytesIO()
        self._file: BinaryIO | None = None
        self._remove: weakref.finalize[..., Any] | None = None
        self._unchecked = 0

    @property
    def sha256(self) -> str:
        """The digest of the dataset alone, so that a repeat is known as one."""
        return self._digest.hexdigest()

    @property
    def is_large(self) -> bool:
        """Whether its bytes cost more than all else: threads of their own take such in at the same time."""
        return self.size > SMALL_BYTES

    @property
    def source(self) -> Path | BinaryIO:
        """What came, as a DICOM file; call it when all has come. Raises what a write raised, or where nothing came."""
        if self.error is not None:
            raise self.error
        if self.size == 0:
            raise InvalidInstanceError("the request has no dataset")
        if self._file is None:
            self._held.seek(0)
            return self._held
        self._file.flush()
        assert self.path is not None
        return self.path

    def write(self, fragment: bytes | memoryview) -> None:
        """Append a fragment."""
        if self.error is None:
            try:
                self._append(fragment)
            except (OSError, InvalidInstanceError) as error:
                self.error = error
                self.discard()

    def write_out(self) -> None:
        """Have all of it in the file, on its way to the disk: several are then synced at once. Raises OSError."""
        if self._file is None:
            self._make_file()
        assert self._file is not None
        self._file.flush()
        with contextlib.suppress(OSError):  # it is a hint: begin to write what is in the cache
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Sync the file, which is complete. Raises OSError."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()

    @property
    def synced(self) -> Path:
        """The file that is complete and synced."""
        assert self.path is not None
        return self.path

    def release(self) -> None:
        """Forget the file, which has been moved away."""
        self.path = None
        if self._remove is not None:
            self._remove.detach()

    def discard(self) -> None:
        """Remove what came, unless it was released."""
        self._held = BytesIO()
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is not written yet may find the disk full
                self._file.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _append(self, fragment: bytes | memoryview) -> None:
        if self.size == 0:
            self._files.check_space()
            self.size = self._held.write(encode_head(*self._uids))
        if self.size + len(fragment) > self._files.max_bytes:
            raise InvalidInstanceError(f"it has more than {self._files.max_bytes} bytes (receiver.max_instance_bytes)")
        self._unchecked += len(fragment)
        if self._unchecked > CHECK_SPACE_EVERY:
            self._files.check_space()
            self._unchecked = 0
        if self._file is None and self.size + len(fragment) > HELD_BYTES:
            self._make_file()
        if self._file is None:
            self._held.write(fragment)
        else:
            self._file.write(fragment)
        self._digest.update(fragment)
        self.size += len(fragment)

    def _make_file(self) -> None:
        self._file = self._files.receive()
        self.path = Path(self._file.name)
        self._remove = weakref.finalize(self, self.path.unlink, missing_ok=True)
        self._file.write(self._held.getbuffer())
        self._held = BytesIO()


def encode_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble and File Meta Information (PS3.10 7.1) of a dataset that follows as it was sent.

    What a request gives as its UIDs is written only where it is a UID; such a request is refused later.
    """
    meta = b"".join(
        (
            struct.pack("<HH2sHL2s", 2, 0x0001, b"OB", 0, 2, b"\x00\x01"),
            _element(0x0002, b"UI", sop_class_uid if is_valid_uid(sop_class_uid) else ""),
            _element(0x0003, b"UI", sop_instance_uid if is_valid_uid(sop_instance_uid) else ""),
            _element(0x0010, b"UI", transfer_syntax_uid),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0x0000, b"UL", 4, len(meta)) + meta


def _element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
