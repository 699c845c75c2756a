"""Reading a kept instance whole, within bounds: a deflated dataset may claim to be a thousand times its size."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset as read_elements
from pydicom.filereader import read_preamble
from pydicom.tag import BaseTag

from dicom_node.head import DEFLATED
from dicom_node.header import read_text

MAX_INFLATED_BYTES = 1024**3
"""Of a deflated dataset (PS3.5 A.5): a radiograph of 16 bits with 8,000 by 8,000 pixels has an eighth."""

INFLATE_BYTES = 1024**2


def read_dataset(file: BinaryIO, *, pixels: bool = True) -> Dataset:
    """Return the dataset of a DICOM file; without `pixels`, what stands before them.

    Raises OSError, ValueError over the limit, and what pydicom raises on damage (`header.DECODE_ERRORS`).
    """
    _refuse_bomb(file)
    return dcmread(file, stop_before_pixels=not pixels, defer_size=None)


def split_file(content: bytes) -> tuple[str, memoryview]:
    """Return the Transfer Syntax UID of a DICOM file, and its dataset as it is encoded.

    Raises what pydicom raises where its head is damaged (`header.DECODE_ERRORS`).
    """
    file = BytesIO(content)
    read_preamble(file, force=False)
    meta = read_elements(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)
    return read_text(meta, "TransferSyntaxUID"), memoryview(content)[file.tell() :]


def _refuse_bomb(file: BinaryIO) -> None:
    """Raise ValueError if a deflated dataset is larger than is read; the file is at its beginning again."""
    read_preamble(file, force=True)
    meta = read_elements(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)
    if read_text(meta, "TransferSyntaxUID") in DEFLATED and _inflated_size(file) > MAX_INFLATED_BYTES:
        raise ValueError(f"its dataset inflates to more than {MAX_INFLATED_BYTES} bytes")
    file.seek(0)


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group > 2


def _inflated_size(file: BinaryIO) -> int:
    """Return how large the rest of the file inflates to, or something over the limit."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while chunk := file.read(INFLATE_BYTES):
        while chunk and size <= MAX_INFLATED_BYTES and not inflater.eof:
            size += len(inflater.decompress(chunk, INFLATE_BYTES))
            chunk = inflater.unconsumed_tail
    return size
