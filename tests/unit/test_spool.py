"""The head that is put before a received dataset."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Files, Spool, encode_head


@pytest.mark.parametrize("instance_uid", ["1.2.3", "1.2.34", "", "nonsense"])
def test_the_head_is_what_pydicom_writes(instance_uid: str) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("" if instance_uid == "nonsense" else instance_uid)
    meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    file = DicomBytesIO()
    write_file_meta_info(file, meta, enforce_standard=False)
    head = encode_head("1.2.840.10008.5.1.4.1.1.1", instance_uid, str(ExplicitVRLittleEndian))
    assert head == bytes(128) + b"DICM" + file.getvalue()


class FullDisk(io.FileIO):
    """A file on a disk that is full."""

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_finds_the_disk_full_is_told_of_and_removed(tmp_path: Path) -> None:
    """Also what is written only when the file is closed."""
    path = str(tmp_path / "x.part")
    spool = Spool(
        Files(lambda: io.BufferedRandom(FullDisk(path, "x+")), lambda: None, 10_000), "1.2", "1.3",
        str(ExplicitVRLittleEndian),
    )  # fmt: skip
    spool.write(b"content")
    with pytest.raises(OSError, match="No space"):
        spool.write_out()
    spool.discard()
    assert list(tmp_path.iterdir()) == []
