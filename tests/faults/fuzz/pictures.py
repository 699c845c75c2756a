"""Pixels: each dataset gives a picture or says why it does not, whatever becomes of the native decoders."""

from __future__ import annotations

import struct
from io import BytesIO
from random import Random

import numpy as np

from dicom_node.errors import NodeError
from dicom_node.file import read_dataset
from dicom_node.header import DECODE_ERRORS
from dicom_node.orientation import read_orientation, tells_orientation
from dicom_node.pixels import render
from grounding.types import Image
from tests.faults.fuzz import seeds
from tests.faults.fuzz.bounds import Violation, WriteWatch
from tests.faults.fuzz.dicom_mutations import (
    change_length,
    change_pixel_attribute,
    change_transfer_syntax,
    change_value,
    lay_out,
    mutate_file,
    remove_element,
    swap_vr,
)
from tests.faults.fuzz.mutations import BYTES, INTEGERS, Mutator, apply

MARKERS = (
    b"\xff\xd8",
    b"\xff\xc0",
    b"\xff\xc1",
    b"\xff\xc2",
    b"\xff\xc3",
    b"\xff\xf7",
    b"\xff\x4f\xff\x51",
    b"\xff\x52",
)
"""Beginnings of headers: SOI, the SOFs, SOC with SIZ, COD."""


def run_case(seed: int) -> None:
    """Mutate an image, and render it as a worker does."""
    random = Random(seed)
    content = mutate_file(random.choice(seeds.pictures()), random, seeds.pictures(), PIXELS)
    check(content)


def check(content: bytes) -> Image | None:
    """Raise Violation unless `content` is rendered or refused; return the picture."""
    with WriteWatch(None) as watch:
        try:
            ds = read_dataset(BytesIO(content))
        except DECODE_ERRORS:
            return None
        try:
            picture = render(ds)
        except NodeError:
            return None
        read_orientation(ds)
        tells_orientation(ds)
    if watch.outside:
        raise Violation(f"outside: {watch.outside}")
    if picture.dtype != np.float32 or picture.shape != (int(ds.Rows), int(ds.Columns)):
        raise Violation(f"the picture is {picture.dtype}{picture.shape}")
    if not (np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1):
        raise Violation("the picture has values that are no grey")
    return picture


def change_frame(content: bytes, random: Random) -> bytes:
    """Change bytes of the pixel data alone."""
    start = _pixels_at(content)
    return content[:start] + apply(BYTES, content[start:], random, 2)


def change_header_of_frame(content: bytes, random: Random) -> bytes:
    """Change a number behind a marker of a codestream: a size, a count, a length."""
    start = _pixels_at(content)
    found = [at for marker in MARKERS if (at := content.find(marker, start)) >= 0]
    if not found:
        return change_frame(content, random)
    at = random.choice(found) + random.randint(0, 60)
    size = random.choice((1, 2, 2, 4))
    number = random.choice((*INTEGERS, 3, 512, 40_000)) & (256**size - 1)
    return content[:at] + number.to_bytes(size, "big") + content[at + size :]


def change_segments(content: bytes, random: Random) -> bytes:
    """Change an entry of what stands first in pixel data: an offset table, an item's length, the segments of RLE."""
    at = _pixels_at(content) + 4 * random.randint(0, 22)
    number = random.choice((*INTEGERS, 64, random.getrandbits(16)))
    return content[:at] + struct.pack("<I", number) + content[at + 4 :]


def _pixels_at(content: bytes) -> int:
    """Return where the value of the pixel data begins."""
    places = [one.value_at for one in lay_out(content).elements if one.tag == 0x7FE00010]
    return places[-1] if places else len(content) // 2


PIXELS: tuple[Mutator, ...] = (
    change_frame, change_frame, change_header_of_frame, change_header_of_frame, change_segments,
    change_pixel_attribute, change_pixel_attribute, change_transfer_syntax, change_length, change_value, remove_element,
    swap_vr,
)  # fmt: skip
