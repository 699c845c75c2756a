"""The sizes that codestreams claim: found as decoders find them, and compared before any decoder is called."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from dicom_node.codestream import FrameSize, check_size, read_size
from dicom_node.pixels import UnreadablePixelsError, render
from tests.builders import make_cxr_dataset, make_pixels

BASELINE, J2K = str(JPEGBaseline8Bit), str(JPEG2000Lossless)
SOF = b"\xff\xc0\x00\x0b\x08" + struct.pack(">HHB", 140, 96, 1) + b"\x01\x11\x00"
SIZ = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">8IH", 100, 150, 4, 10, 100, 150, 0, 0, 1) + b"\x0b\x01\x01"
SIZE = FrameSize(140, 96, 1)
JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"


def make_compressed(syntax):
    ds = make_cxr_dataset()
    ds.compress(syntax, generate_instance_uid=False)
    return ds


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_what_encoders_write_says_its_size(syntax):
    assert read_size(get_frame(make_compressed(syntax).PixelData, 0, number_of_frames=1), syntax) == SIZE


@pytest.mark.parametrize(
    ("frame", "syntax", "size"),
    [
        (b"\xff\xd8" + SOF, BASELINE, SIZE),
        (b"\xff\xd8\xff\xe0\x00\x04\xff\xc0" + SOF, BASELINE, SIZE),  # a marker within a segment is none
        (b"\xff\xd8\x00\x12\xff\xff" + SOF, BASELINE, SIZE),  # what libjpeg skips, and fill bytes
        (b"\xff\xd8\xff\xc4\x00\x02" + SOF, BASELINE, SIZE),  # DHT is no start of frame
        (b"\xff\xd8\xff\xda\x00\x02" + SOF, BASELINE, None),
        (b"\xff\xd8" + SOF[:6], BASELINE, None),
        (b"\xff\xd8\xff", BASELINE, None),
        (b"\xff\xd8\xff\xe0", BASELINE, None),
        (b"", BASELINE, None),
        (SIZ, J2K, SIZE),
        (SIZ[:20], J2K, None),
        (b"\0" + SIZ, J2K, None),
        (JP2 + struct.pack(">I4s", 8, b"free") + struct.pack(">I4s", 0, b"jp2c") + SIZ, J2K, SIZE),
        (JP2 + struct.pack(">I4sQ", 1, b"jp2c", 99) + SIZ, J2K, SIZE),
        (JP2 + struct.pack(">I4s", 4, b"free") + SIZ, J2K, None),
        (SIZ, "1.2.840.10008.1.2.5", None),
    ],
)
def test_the_size_is_where_decoders_look_for_it(frame, syntax, size):
    assert read_size(frame, syntax) == size


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("attributes", [{"Rows": 139}, {"Columns": 97}, {"Rows": 96, "Columns": 140}])
def test_a_codestream_of_another_size_than_the_header_says_is_refused_unread(syntax, attributes):
    ds = make_compressed(syntax)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    with pytest.raises(UnreadablePixelsError, match="ValueError"):
        render(ds)


def test_a_bomb_is_refused_before_it_is_decoded():
    ds = make_compressed(JPEG2000Lossless)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    bomb = frame[:8] + struct.pack(">II", 60_000, 60_000) + frame[16:]
    ds.PixelData = encapsulate([bomb])
    ds["PixelData"].is_undefined_length = True
    assert read_size(bomb, J2K) == FrameSize(60_000, 60_000, 1)
    with pytest.raises(UnreadablePixelsError):
        render(ds)


def test_run_lengths_cannot_be_a_thousand_times_their_bytes():
    flat = make_cxr_dataset(pixels=np.zeros_like(make_pixels()))
    flat.compress(RLELossless, generate_instance_uid=False)
    frame = get_frame(flat.PixelData, 0, number_of_frames=1)
    check_size(frame, str(RLELossless), SIZE, 16)
    with pytest.raises(ValueError, match="in RLE"):
        check_size(frame, str(RLELossless), FrameSize(14_000, 9_600, 1), 16)
